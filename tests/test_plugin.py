"""LeRobot's own commands, run as a user runs them, in a home without files and without an answer on stdin."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lerobot_smoothvla.presets import configs_dir

BIN = Path(sys.executable).parent
FEW_STEPS = ("--steps=2", "--batch_size=2", "--num_workers=0", "--env_eval_freq=0", "--policy.device=cpu")


class Shell:
    """Runs commands with a home of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        names = ("LIBERO_CONFIG_PATH", "XDG_CACHE_HOME", "MUJOCO_GL", "HF_LEROBOT_HOME", "HF_HOME")
        kept = {name: value for name, value in os.environ.items() if name not in names}
        self.environment = kept | {"HOME": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "400"}

    def __call__(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.home,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Shell:
    """A home where the scripted demonstrations stand already: `tiny_dataset` in their place."""
    home = tmp_path_factory.mktemp("home")
    datasets = home / ".cache/huggingface/lerobot/smoothvla"
    datasets.mkdir(parents=True)
    (datasets / "libero_object_scripted").symlink_to(tiny_dataset)
    return Shell(home)


@pytest.fixture(scope="module")
def checkpoint(shell: Shell) -> Path:
    """A `pretrained_model` directory that stock `lerobot-train` wrote from selectors alone."""
    output = shell.home / "tiny"
    command = ("lerobot-train", "policy=smoothvla_tiny", "env=libero_object", "dataset=scripted")
    result = shell(*command, *FEW_STEPS, f"--output_dir={output}")
    assert result.returncode == 0, result.stderr
    return output / "checkpoints/last/pretrained_model"


def settings(pretrained: Path, name: str = "train_config.json") -> dict:
    return json.loads((pretrained / name).read_text())


def test_importing_the_plugin_is_light():
    heavy = {"transformers", "mujoco", "robosuite", "libero", "ray"}
    code = f"import lerobot_policy_smoothvla, sys; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_lerobots_commands_know_the_filters_of_a_post_processor():
    code = """
from lerobot.policies import PreTrainedPolicy
from lerobot.processor import ProcessorStepRegistry
import lerobot_policy_smoothvla
print([name for name in ProcessorStepRegistry.list() if name.startswith("smoothvla_")])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("exponential_filter", "jerk_limit", "chunk_blend"):
        assert f"'smoothvla_{name}'" in result.stdout


@pytest.mark.parametrize("command", ["lerobot-train", "lerobot-eval", "lerobot-rollout", "lerobot-record"])
def test_help_lists_the_policy_without_an_extra_flag(shell: Shell, command: str):
    result = shell(command, "--help")
    assert result.returncode == 0, result.stderr
    assert "policy=smoothvla" in result.stdout or "policies smoothvla," in result.stdout
    if command != "lerobot-record":  # LeRobot 0.6 records without a policy
        (choices,) = {
            line for line in result.stdout.splitlines() if "--policy.type {" in line and "[" in line
        }
        assert "smoothvla" in choices.replace("}", ",").split(",")


def test_selectors_train_through_the_stock_command(checkpoint: Path):
    trained = settings(checkpoint)
    assert trained["policy"]["type"] == "smoothvla"
    assert trained["policy"]["vlm_model_name"] == "smoothvla_tiny"
    assert trained["policy"]["push_to_hub"] is False
    assert trained["env"]["task"] == "libero_object"
    assert trained["dataset"]["repo_id"] == "smoothvla/libero_object_scripted"


def test_includes_train_through_the_stock_command_to_the_same_configuration(
    shell: Shell, checkpoint: Path, tiny_dataset: Path
):
    output = shell.home / "included"
    result = shell(
        "lerobot-train",
        f"--policy=include {configs_dir()}/policy/smoothvla_tiny.yaml",
        f"--env=include {configs_dir()}/env/libero_object.yaml",
        "--dataset.repo_id=smoothvla/tiny",
        f"--dataset.root={tiny_dataset}",
        "--policy.push_to_hub=false",
        f"--output_dir={output}",
        *FEW_STEPS,
    )
    assert result.returncode == 0, result.stderr
    included, selected = settings(output / "checkpoints/last/pretrained_model"), settings(checkpoint)
    assert included["policy"] == selected["policy"]
    assert included["env"] == selected["env"]


def test_policy_smoothvla_env_libero_trains_through_the_stock_command(shell: Shell, tiny_smolvlm: Path):
    result = shell(
        "lerobot-train",
        "policy=smoothvla",
        "env=libero",
        f"--policy.vlm_model_name={tiny_smolvlm}",
        f"--output_dir={shell.home / 'smoothvla'}",
        *FEW_STEPS,
    )
    assert result.returncode == 0, result.stderr
    trained = settings(shell.home / "smoothvla/checkpoints/last/pretrained_model")
    assert trained["env"]["task"] == "libero_spatial,libero_object,libero_goal,libero_10"
    assert trained["policy"]["load_vlm_weights"] is True
    assert "HuggingFaceVLA/libero is out of reach" in result.stdout
    assert "--dataset.repo_id=smoothvla/libero_object_scripted" in result.stdout


def test_stock_eval_runs_libero_without_a_question_or_a_download(shell: Shell, checkpoint: Path):
    result = shell(
        "lerobot-eval",
        f"--policy.path={checkpoint}",
        f"--env=include {configs_dir()}/env/libero_object.yaml",
        "--env.task_ids=[0]",
        "--env.episode_length=8",
        "--eval.n_episodes=1",
        "--policy.device=cpu",
        f"--output_dir={shell.home / 'eval'}",
    )
    assert result.returncode == 0, result.stderr
    assert "pc_success" in (shell.home / "eval/eval_info.json").read_text()
    assert "Downloading" not in result.stdout
    assert not (shell.home / ".libero").exists()


def test_an_unknown_preset_is_one_paragraph_and_a_failure(shell: Shell):
    result = shell("lerobot-train", "policy=smothvla", "env=libero")
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last.startswith("lerobot-train: error: There is no preset `policy=smothvla`")
    assert "Did you mean `policy=smoothvla`?" in last
    assert "Traceback" not in result.stderr
    assert not (shell.home / "outputs").exists()


def test_missing_gl_ends_before_a_simulator_starts(shell: Shell, checkpoint: Path):
    result = shell(
        "lerobot-eval",
        f"--policy.path={checkpoint}",
        "env=libero_object",
        MUJOCO_GL="egl",
        __EGL_VENDOR_LIBRARY_FILENAMES="/nowhere.json",
    )
    assert result.returncode != 0
    assert "apt-get install" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (shell.home / "outputs").exists()


def test_an_output_directory_that_exists_is_not_overwritten(shell: Shell, checkpoint: Path):
    before = sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*"))
    result = shell(
        "lerobot-train",
        "policy=smoothvla_tiny",
        "env=libero_object",
        "dataset=scripted",
        f"--output_dir={checkpoint.parents[2]}",
        *FEW_STEPS,
    )
    assert result.returncode != 0
    assert "already exists" in result.stderr
    assert sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*")) == before


def test_algorithm_grpo_is_the_command_of_that_name(shell: Shell):
    by_algorithm = shell("lerobot-train", "algorithm=grpo", "--help")
    by_name = shell("smoothvla", "grpo", "--help")
    assert by_algorithm.returncode == by_name.returncode == 0, by_algorithm.stderr
    assert by_algorithm.stdout.startswith("usage: smoothvla grpo")
    flags = [set(re.findall(r"--[\w.]+", result.stdout)) for result in (by_algorithm, by_name)]
    assert flags[0] == flags[1] and "--algorithm.group_size" in flags[0]
