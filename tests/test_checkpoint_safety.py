"""Checkpoints of a stranger, which would run code, leave their folder, or break the loader."""

import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import TINY_SMOOTHVLA, save_checkpoint
from hostile import Code
from lerobot.configs.default import PeftConfig
from safetensors.torch import save_file

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.checkpoint_safety import require_inside
from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig

PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_checkpoint(path, SmoothVLAConfig(**TINY_SMOOTHVLA))
    return path


@pytest.fixture
def received(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "received"))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it_ran"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: Path) -> str:
    """Name of a module that can be imported, which leaves `mark` behind."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/strangers_module.py").write_text(
        f"import pathlib; pathlib.Path({str(mark)!r}).touch()\nclass Step: ..."
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return "strangers_module"


def edit(file: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def load(path: Path) -> None:
    load_actor(load_actor_config(path))


def test_the_checkpoint_itself_loads(received: Path):
    load(received)


# --- pickles


@pytest.mark.parametrize("kept", [True, False])
def test_pickled_weights_are_never_opened(received: Path, mark: Path, kept: bool):
    for name in ("pytorch_model.bin", "model.bin", "model.pt", "adapter_model.bin", "optimizer.pt"):
        torch.save(Code(mark), received / name)
    if kept:
        load(received)
    else:
        (received / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match="not whole: expected .*model.safetensors"):
            load(received)
    assert not mark.exists()


def test_a_pickle_that_calls_itself_safetensors_is_none(received: Path, mark: Path):
    for file in received.glob("*.safetensors"):
        torch.save(Code(mark), file)
    with pytest.raises(ValueError, match="weights of '.*' are not those.*fetch or save the checkpoint again"):
        load(received)
    assert not mark.exists()


def test_a_backbone_with_pickled_weights_runs_nothing(tiny_smolvlm: Path, tmp_path: Path, mark: Path):
    backbone = Path(shutil.copytree(tiny_smolvlm, tmp_path / "backbone"))
    (backbone / "model.safetensors").unlink()
    torch.save(Code(mark), backbone / "pytorch_model.bin")
    settings = {**TINY_SMOOTHVLA, "vlm_model_name": str(backbone), "load_vlm_weights": True}
    with pytest.raises((ValueError, OSError, pickle.UnpicklingError)):
        save_checkpoint(tmp_path / "made", SmoothVLAConfig(**settings))
    assert not mark.exists()


# --- safetensors


def oversized(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


def beyond_its_end(file: Path) -> None:
    header = json.dumps(
        {"weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def header_without_end(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 8) + b'{"a": {"')


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("spoil", [oversized, beyond_its_end, truncated, header_without_end, empty])
@pytest.mark.parametrize("which", ["model", "policy_preprocessor_step_5_normalizer_processor"])
def test_broken_safetensors_are_one_paragraph(received: Path, spoil: Callable[[Path], None], which: str):
    spoil(received / f"{which}.safetensors")
    kind = "weights" if which == "model" else "processors"
    with pytest.raises(ValueError, match=f"The {kind} of '{received}' (are not|cannot be)"):
        load(received)


def test_tensors_of_other_shapes_in_a_processor_are_one_paragraph(received: Path):
    state = received / "policy_preprocessor_step_5_normalizer_processor.safetensors"
    save_file({"observation.state.mean.more": torch.zeros(3), "x": torch.zeros(1)}, state)
    with pytest.raises(ValueError, match="processors|normalises"):
        load(received)


# --- processors


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_step_that_names_a_class_is_not_imported(received: Path, name: str, module: str, mark: Path):
    edit(received / name, lambda c: c["steps"].insert(0, {"class": f"{module}.Step", "config": {}}))
    with pytest.raises(ValueError, match=f"in {name} a step names a class, '{module}.Step'"):
        load(received)
    assert not mark.exists() and module not in sys.modules


def test_a_registered_step_that_runs_a_tokenizers_code_is_refused(received: Path, tmp_path: Path, mark: Path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "code.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()")
    for file in ("processor_config.json", "tokenizer_config.json", "config.json"):
        (tokenizer / file).write_text(json.dumps({"auto_map": {"AutoProcessor": "code.Processor"}}))
    step = {
        "registry_name": "action_tokenizer_processor",
        "config": {"action_tokenizer_name": str(tokenizer)},
    }
    edit(received / PROCESSORS[0], lambda c: c["steps"].insert(0, step))
    with pytest.raises(ValueError, match="'action_tokenizer_processor', which may fetch code and is of none"):
        load(received)
    assert not mark.exists()


def test_a_tokenizer_with_code_of_its_own_does_not_run_it(
    received: Path, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "code.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()")
    auto_map = {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(auto_map))
    (tokenizer / "config.json").write_text("{}")
    step = {"registry_name": "tokenizer_processor", "config": {"tokenizer_name": str(tokenizer)}}
    edit(received / PROCESSORS[0], lambda c: c["steps"].insert(0, step))
    with pytest.raises((ValueError, OSError)):
        load(received)
    assert not mark.exists()


@pytest.mark.parametrize(
    "state_file",
    ["../outside.safetensors", "a/../../outside.safetensors", "..\\outside.safetensors", "x.bin"],
)
def test_a_steps_state_stays_in_the_folder(received: Path, state_file: str):
    save_file({"x": torch.zeros(1)}, received.parent / "outside.safetensors")
    edit(received / PROCESSORS[0], lambda c: c["steps"][-1].update(state_file=state_file))
    with pytest.raises(ValueError, match="keeps its state in '.*', which should be the name of"):
        load(received)


def test_an_absolute_path_is_no_name(received: Path):
    outside = received.parent / "outside.safetensors"
    save_file({"x": torch.zeros(1)}, outside)
    edit(received / PROCESSORS[0], lambda c: c["steps"][-1].update(state_file=str(outside)))
    with pytest.raises(ValueError, match="should be the name of a safetensors file in the same directory"):
        load(received)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "in policy_preprocessor.json Expecting value"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'steps'"),
        ('{"steps": [3]}', "AttributeError"),
        ('{"steps": [{"registry_name": ["a"]}]}', "which is none of"),
        ('{"steps": [{"registry_name": "nonsense"}]}', "'nonsense', which is none of absolute_actions"),
        ('{"steps": [{}]}', "KeyError: 'class'"),
        ('{"steps": [{"registry_name": "device_processor", "state_file": 3}]}', "TypeError"),
        ('{"steps": []}', "cannot be made"),
        ('{"steps": [{"registry_name": "device_processor", "config": {"a": 1}}]}', "cannot be made"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_processors_that_are_none_are_one_paragraph(received: Path, content: str, message: str):
    (received / PROCESSORS[0]).write_text(content)
    with pytest.raises(ValueError, match=f"The processors of '{received}'.*{message}"):
        load(received)


# --- adapters


@pytest.fixture(scope="module")
def saved_adapter(saved: Path) -> Path:
    actor = load_actor(load_actor_config(saved), PeftConfig(r=2))
    for part in (actor.policy, actor.policy.config, actor.preprocessor, actor.postprocessor):
        part.save_pretrained(saved.parent / "adapter")
    return saved.parent / "adapter"


@pytest.fixture
def adapter(saved_adapter: Path, tmp_path: Path) -> Path:
    """An adapter that a test may spoil."""
    return Path(shutil.copytree(saved_adapter, tmp_path / "adapter"))


def test_the_base_class_that_an_adapter_names_is_not_imported(adapter: Path, module: str, mark: Path):
    mapping = {"base_model_class": "Step", "parent_library": module}
    edit(adapter / "adapter_config.json", lambda config: config.update(auto_mapping=mapping))
    load(adapter)
    assert not mark.exists() and module not in sys.modules


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "strangers_module"}, "LORA"),
        ({"peft_type": "XLORA", "adapters": {"0": "strangers/adapter"}, "hidden_size": 8}, "XLORA"),
        (
            {
                "peft_type": "PROMPT_TUNING",
                "prompt_tuning_init": "TEXT",
                "prompt_tuning_init_text": "a",
                "tokenizer_name_or_path": "strangers/tokenizer",
                "tokenizer_kwargs": {"trust_remote_code": True},
            },
            "PROMPT_TUNING",
        ),
    ],
)
def test_an_adapter_that_loads_more_than_tensors_is_refused(
    adapter: Path, module: str, mark: Path, settings: dict, kind: str
):
    edit(adapter / "adapter_config.json", lambda config: config.update(settings))
    with pytest.raises(ValueError, match=f"The adapter '{adapter}' should be a LoRA.* of type {kind}"):
        load(adapter)
    assert not mark.exists() and module not in sys.modules


def test_pickles_of_an_adapter_and_of_its_base_are_never_opened(adapter: Path, tmp_path: Path, mark: Path):
    base = tmp_path / "base"
    base.mkdir()
    torch.save(Code(mark), base / "pytorch_model.bin")
    edit(adapter / "adapter_config.json", lambda config: config.update(base_model_name_or_path=str(base)))
    with pytest.raises(FileNotFoundError, match=f"was trained on '{base}'.*expected .*model.safetensors"):
        load(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(Code(mark), adapter / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="not whole: expected .*adapter_model.safetensors"):
        load(adapter)
    assert not mark.exists()


@pytest.mark.parametrize("spoil", [oversized, beyond_its_end, truncated, header_without_end, empty])
def test_broken_adapter_weights_are_one_paragraph(adapter: Path, spoil: Callable[[Path], None]):
    spoil(adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"The adapter '{adapter}' does not fit its base"):
        load(adapter)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"peft_type": "NONSENSE"}', '{"peft_type": "LORA", "r": "x"}', "\x00"]
)
def test_an_adapter_config_that_is_none_is_one_paragraph(adapter: Path, content: str):
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=f"'{adapter}'"):
        load(adapter)


# --- links


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "notes.txt"])
def test_a_link_out_of_the_folder_is_refused(received: Path, name: str):
    outside = received.parent / "outside"
    (received / name).rename(outside) if (received / name).exists() else outside.write_text("mine")
    (received / name).symlink_to(outside)
    with pytest.raises(ValueError, match=f"{name}' is a link out of its directory, to '{outside}'"):
        load(received)


def test_links_within_the_folder_and_to_it_are_fine(received: Path):
    (received / "model.safetensors").rename(received / "weights.safetensors")
    (received / "model.safetensors").symlink_to("weights.safetensors")
    (received.parent / "last").symlink_to("received")
    load(received.parent / "last")


def test_a_snapshot_of_the_hubs_cache_is_fine_and_a_link_out_of_the_cache_is_not(saved: Path, tmp_path: Path):
    repository = tmp_path / "models--you--policy"
    snapshot = repository / "snapshots/0123456789"
    snapshot.mkdir(parents=True)
    shutil.copytree(saved, repository / "blobs")
    for file in (repository / "blobs").iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    load(snapshot)
    (repository / "refs").mkdir()
    (snapshot / "ref").symlink_to(repository / "refs")
    with pytest.raises(ValueError, match="is a link out of its directory"):
        load(snapshot)


def test_a_pipe_in_place_of_a_file_does_not_hang(received: Path):
    (received / "model.safetensors").unlink()
    os.mkfifo(received / "model.safetensors")
    with pytest.raises(ValueError, match="should be a file or a directory, and is neither"):
        load(received)


def test_a_link_in_a_circle_is_no_traceback(received: Path):
    (received / "model.safetensors").unlink()
    (received / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises((ValueError, OSError)):
        load(received)


def test_a_run_is_not_resumed_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    mine = tmp_path / "mine.jsonl"
    mine.write_text("mine\n")
    run = tmp_path / "run"
    (run / "checkpoints/000001/pretrained_model").mkdir(parents=True)
    (run / "checkpoints/last").symlink_to("000001")
    require_inside(run)
    (run / "provenance.jsonl").symlink_to(mine)
    monkeypatch.setattr(sys, "argv", ["smoothvla", "grpo", f"--output_dir={run}", "--resume=true"])
    assert main() == 2
    assert "provenance.jsonl' is a link out of its directory" in capsys.readouterr().err
    assert mine.read_text() == "mine\n"


# --- config.json


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "3",
        "null",
        "{}",
        '{"type": "os.system"}',
        '{"type": ["smoothvla"]}',
        '{"type": "smoothvla", "input_features": null}',
        '{"type": "smoothvla", "input_features": {"observation.state": {"type": "STATE", "shape": "x"}}}',
        '{"type": "smoothvla", "chunk_size": {"a": 1}}',
        '{"type": "smoothvla", "no_such_field": 1}',
        '{"type": "diffusion", "vision_backbone": "__class__"}',
        "[" * 100_000,
        "\x00",
    ],
)
def test_a_config_that_is_none_is_one_paragraph(received: Path, content: str):
    (received / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"'{received}'"):
        load(received)


def test_a_config_of_other_bytes_is_one_paragraph(received: Path):
    (received / "config.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match=f"config.json of '{received}' cannot be read: 'utf-8' codec"):
        load(received)
