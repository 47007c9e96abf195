"""A fine-tuned checkpoint as a plain one: what stock LeRobot loads and does, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from builders import LIBERO_FEATURES, LORA, POLICIES, TINY_SMOOTHVLA, act, save_checkpoint, write_smolvlm
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.processor import DataProcessorPipeline
from stock import act_in_stock_lerobot

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.rollout.engine import Actor

STATS = {
    "observation.state": {"mean": torch.full((8,), 0.1), "std": torch.full((8,), 1.5)},
    "action": {"mean": torch.linspace(-1, 1, 7), "std": torch.full((7,), 0.3)},
}
OURS = {"flow_samples", "noise_level", "noise_length", "stochastic_steps", "noise_last_step"}


def smoothvla(monkeypatch: pytest.MonkeyPatch, path: Path, output: Path, *arguments: str) -> int:
    arguments = (f"--policy.path={path}", f"--output_dir={output}", *arguments)
    monkeypatch.setattr(sys, "argv", ["smoothvla", "export", *arguments])
    return main()


def on_smolvlm(directory: Path) -> Path:
    """A `smoothvla` checkpoint on a random SmolVLM."""
    backbone = write_smolvlm(directory / "smolvlm")
    settings = {**TINY_SMOOTHVLA, "vlm_model_name": str(backbone), "noise_level": 0.4, "num_steps": 3}
    save_checkpoint(directory / "checkpoint", SmoothVLAConfig(**settings), STATS)
    return directory / "checkpoint"


def with_adapter(base: Path, directory: Path) -> Actor:
    """A checkpoint with an adapter that changes what the policy does."""
    config = load_actor_config(base)
    actor = load_actor(config, LORA[config.type])
    with torch.no_grad():
        for name, value in actor.policy.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1, generator=torch.manual_seed(0))
    for part in (actor.policy, actor.policy.config, actor.preprocessor, actor.postprocessor):
        part.save_pretrained(directory)
    return actor


def acts(actor: Actor) -> torch.Tensor:
    return act(actor.policy, actor.preprocessor, actor.postprocessor)


def test_a_smoothvla_becomes_a_smolvla_that_acts_the_same_in_stock_lerobot(tmp_path: Path, monkeypatch):
    """Bit by bit, in a process that does not load this package."""
    fine_tuned, plain = on_smolvlm(tmp_path), tmp_path / "deep/plain"
    assert smoothvla(monkeypatch, fine_tuned, plain) == 0
    config = json.loads((plain / "config.json").read_text())
    assert config["type"] == "smolvla" and config["num_steps"] == 3 and not OURS & set(config)
    expected = acts(load_actor(load_actor_config(fine_tuned)))
    assert torch.equal(act_in_stock_lerobot(plain, tmp_path), expected)
    assert [path.name for path in plain.parent.iterdir()] == ["plain"]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_an_adapter_is_merged_into_a_checkpoint_of_its_type(name: str, tmp_path: Path, monkeypatch):
    POLICIES[name](tmp_path / "base")
    actor = with_adapter(tmp_path / "base", tmp_path / "adapter")
    assert smoothvla(monkeypatch, tmp_path / "adapter", tmp_path / "plain") == 0
    assert not list((tmp_path / "plain").glob("adapter*"))
    base, plain = (load_actor(load_actor_config(tmp_path / name)) for name in ("base", "plain"))
    assert (plain.policy.config.type, plain.policy.config.use_peft) == (base.policy.config.type, False)
    assert not any("lora" in key for key in plain.policy.state_dict())
    assert (acts(base) - acts(actor)).abs().max() > 1e-2
    # x·(W + BA) for x·W + (x·A)·B
    torch.testing.assert_close(acts(plain), acts(actor), rtol=0, atol=1e-5)


def test_an_adapter_on_a_smoothvla_becomes_a_smolvla(tmp_path: Path, monkeypatch):
    actor = with_adapter(on_smolvlm(tmp_path), tmp_path / "adapter")
    assert smoothvla(monkeypatch, tmp_path / "adapter", tmp_path / "plain") == 0
    plain = load_actor(load_actor_config(tmp_path / "plain"))
    assert plain.policy.config.type == "smolvla"
    torch.testing.assert_close(acts(plain), acts(actor), rtol=0, atol=1e-5)


# --- what is refused


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedded")
    save_checkpoint(path, SmoothVLAConfig(**TINY_SMOOTHVLA))
    return path


def test_an_embedded_backbone_cannot_become_a_smolvla(embedded: Path, tmp_path: Path, monkeypatch, capsys):
    assert smoothvla(monkeypatch, embedded, tmp_path / "plain") == 2
    assert "embedded backbone is in no LeRobot without this plugin; fine-tune from" in capsys.readouterr().err
    assert not (tmp_path / "plain").exists()


def test_a_plain_checkpoint_is_left_alone(tmp_path: Path, monkeypatch, capsys):
    SmolVLAConfig(device="cpu", **LIBERO_FEATURES).save_pretrained(tmp_path / "smolvla")
    assert smoothvla(monkeypatch, tmp_path / "smolvla", tmp_path / "plain") == 2
    assert "it has no adapter, and stock LeRobot loads it as it is" in capsys.readouterr().err


def test_what_stands_at_the_output_directory_is_not_overwritten(
    embedded: Path, tmp_path: Path, monkeypatch, capsys
):
    (tmp_path / "mine").touch()
    assert smoothvla(monkeypatch, embedded, tmp_path) == 2
    assert f"The output directory {tmp_path} exists; choose another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch, capsys):
    fine_tuned = on_smolvlm(tmp_path)

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(DataProcessorPipeline, "save_pretrained", full)
    assert smoothvla(monkeypatch, fine_tuned, tmp_path / "out/plain") == 2
    assert "could not be written (No space left on device); choose an --output" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir=plain"], "nothing to export: pass --policy.path=CHECKPOINT"),
        (["--policy.path=no/such/policy", "--output_dir=plain"], "There is no checkpoint 'no/such/policy'"),
        (["--policy.path=a/policy"], "output_dir"),
        (["--policy.path=a/policy", "--output_dir=plain", "--policy.num_steps=3"], "got --num_steps=3 for"),
    ],
)
def test_bad_input_is_one_paragraph(arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["smoothvla", "export", *arguments])
    assert main() == 2
    said = capsys.readouterr().err.splitlines()
    (line,) = [line for line in said if line.startswith("smoothvla export: error: ")]
    assert message in line
    assert not list(tmp_path.iterdir())
