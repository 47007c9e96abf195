"""LIBERO's pickles are read as arrays; one that would run code does not, here or in LeRobot's loader."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hostile import Code
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from libero.libero import get_libero_path

from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.envs.init_states import arrays_only, read_init_states
from lerobot_smoothvla.envs.tasks import chunked_env, task_names

SUITE = "libero_goal"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it_ran"


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first task's file in a copy of the suite's, which LIBERO takes for its own."""
    original = Path(get_libero_path("init_states")) / SUITE
    shutil.copytree(original, tmp_path / "init_files" / SUITE)
    config = {"init_states": str(tmp_path / "init_files")}
    config |= {key: get_libero_path(key) for key in ("benchmark_root", "bddl_files", "datasets", "assets")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    monkeypatch.setattr("libero.libero.config_file", str(tmp_path / "config.yaml"))
    return tmp_path / "init_files" / SUITE / f"{task_names()[SUITE][0]}.pruned_init"


def test_liberos_own_files_are_read_bit_by_bit():
    for file in sorted(Path(get_libero_path("init_states")).glob("*/*.pruned_init")):
        assert np.array_equal(read_init_states(file, file.stem), torch.load(file, weights_only=False))


@pytest.mark.parametrize("save", [torch.save, lambda thing, file: file.write_bytes(pickle.dumps(thing))])
def test_a_pickle_that_runs_code_does_not(save, mark: Path, tmp_path: Path):
    file = tmp_path / "evil.pruned_init"
    save(Code(mark), file)
    with pytest.raises(ValueError, match="initial states of a task should be a file with an array"):
        read_init_states(file, "a task")
    assert not mark.exists()
    torch.load(file, weights_only=False) if save is torch.save else pickle.loads(file.read_bytes())
    assert mark.exists(), "The file is harmless, so it proves nothing."


def test_a_command_stops_before_any_simulator_with_one_paragraph(
    states: Path, mark: Path, monkeypatch, capsys
):
    torch.save(Code(mark), states)
    flags = ["--env.type=libero", f"--env.task={SUITE}", "--env.task_ids=[0]", "--policy.path=no/policy"]
    monkeypatch.setattr(sys, "argv", ["smoothvla", "grpo", *flags])
    assert main() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"smoothvla grpo: error: The initial states of {SUITE} task 0 should be a file")
    assert "one that asks for `posix.system`, which it did not get. Install LIBERO again" in error
    assert not mark.exists()


def test_lerobots_loader_runs_nothing_in_a_worker(states: Path, mark: Path):
    config = LiberoEnvConfig(task=SUITE)
    assert chunked_env(config, SUITE, 0).n_init_states == 50
    torch.save(Code(mark), states)
    with pytest.raises(ValueError, match="asks for `posix.system`"):
        chunked_env(config, SUITE, 0)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 cut off", json.dumps({"states": []}).encode(), pickle.dumps([1, 2])]
)
def test_a_broken_file_is_named(content: bytes, tmp_path: Path):
    file = tmp_path / "broken.pruned_init"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="initial states of a task should be .*, got something else"):
        read_init_states(file, "a task")


@pytest.mark.parametrize("held", [torch.zeros(3, 2), np.zeros(3), {"states": np.zeros((3, 2))}])
def test_a_file_that_holds_something_else_is_named(held, tmp_path: Path):
    torch.save(held, tmp_path / "other.pruned_init")
    with pytest.raises(ValueError, match="got something else"):
        read_init_states(tmp_path / "other.pruned_init", "a task")


@pytest.mark.parametrize("variable", [None, "0"])
def test_the_environment_is_as_before(variable: str | None, monkeypatch: pytest.MonkeyPatch):
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    monkeypatch.delenv(name, raising=False) if variable is None else monkeypatch.setenv(name, variable)
    with arrays_only("a task"):
        assert os.environ[name] == "1"
    assert os.environ.get(name) == variable
