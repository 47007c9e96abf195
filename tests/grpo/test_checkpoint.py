"""Checkpoints are whole or not there, and a run goes on from them as if it had not stopped."""

import json
import pickle
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from builders import TINY_SMOOTHVLA, save_checkpoint
from hostile import Code
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.grpo import checkpoint
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig, GRPOPipelineConfig


@pytest.fixture(scope="module")
def warm_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random weights."""
    path = tmp_path_factory.mktemp("warm_start")
    save_checkpoint(path, SmoothVLAConfig(**TINY_SMOOTHVLA))
    return path


@pytest.fixture
def run(warm_start: Path, tmp_path: Path) -> tuple[GRPOPipelineConfig, GRPOAlgorithm]:
    """Config and algorithm of a run in `tmp_path / "run"`."""
    policy = load_actor_config(warm_start)
    config = GRPOPipelineConfig(env=LiberoEnvConfig(), policy=policy, output_dir=tmp_path / "run")
    return config, GRPOAlgorithm(load_actor(policy), config.algorithm)


def test_a_checkpoint_is_whole_or_not_there(run, monkeypatch):
    config, algorithm = run
    first = checkpoint.save(config, algorithm, 1)
    assert checkpoint.last(config.output_dir).parent.resolve() == first.resolve()

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(algorithm.actor.postprocessor, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(config, algorithm, 2)
    assert checkpoint.last(config.output_dir).parent.resolve() == first.resolve()
    monkeypatch.undo()
    second = checkpoint.save(config, algorithm, 2)
    assert checkpoint.last(config.output_dir).parent.resolve() == second.resolve()
    assert not list(second.parent.glob(".*"))


def test_a_checkpoint_of_the_same_iteration_replaces_the_one_before(run):
    config, algorithm = run
    checkpoint.save(config, algorithm, 1)
    with torch.no_grad():
        algorithm._parameters[0].add_(1)
    saved = checkpoint.save(config, algorithm, 1)
    again = load_actor(load_actor_config(checkpoint.last(config.output_dir))).policy.state_dict()
    assert all(again[name].equal(weight) for name, weight in algorithm.get_weights().items())
    assert sorted(path.name for path in saved.parent.iterdir()) == ["000001", "last"]


def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_is_needed(run, small_disk):
    config, algorithm = run
    config.output_dir = small_disk / "run"
    for parameter in algorithm._parameters:
        parameter.grad = torch.zeros_like(parameter)
    algorithm.get_optimizers()["policy"].step()
    first = checkpoint.save(config, algorithm, 1)
    kept = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    (small_disk / "filler").write_bytes(b"\0" * (shutil.disk_usage(small_disk).free - 65_536))
    with pytest.raises(OSError, match=r"takes about [\d.]+ MB, and 0\.1 MB are free. Make space") as error:
        checkpoint.save(config, algorithm, 2)
    needed = float(re.search(r"about ([\d.]+) MB", str(error.value))[1])
    assert needed * 1e6 == pytest.approx(sum(map(len, kept.values())), rel=0.1)
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == kept
    assert checkpoint.last(config.output_dir).parent.resolve() == first.resolve()
    assert sorted(path.name for path in first.parent.iterdir()) == ["000001", "last"]
    (small_disk / "filler").unlink()
    checkpoint.save(config, algorithm, 2)


def test_a_restored_run_has_the_optimizer_the_random_state_and_the_count(run):
    config, algorithm = run
    for parameter in algorithm._parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    algorithm.get_optimizers()["policy"].step()
    saved = checkpoint.save(config, algorithm, 7)
    expected = torch.rand(3)
    path = checkpoint.last(config.output_dir)
    resumed = GRPOAlgorithm(load_actor(load_actor_config(path)), config.algorithm)
    assert checkpoint.restore(saved, resumed) == 7 == resumed.optimization_step
    assert torch.rand(3).equal(expected)
    states = [a.get_optimizers()["policy"].state_dict()["state"] for a in (algorithm, resumed)]
    assert all(states[0][i]["exp_avg"].equal(states[1][i]["exp_avg"]) for i in states[0]) and states[0]
    weights = [a.get_weights() for a in (algorithm, resumed)]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    "name", ["optimizer_state.safetensors", "rng_state.safetensors", "training_step.json"]
)
def test_a_strangers_training_state_runs_nothing_and_is_one_paragraph(run, tmp_path: Path, name: str):
    config, algorithm = run
    saved, mark = checkpoint.save(config, algorithm, 1), tmp_path / "it_ran"
    torch.save(Code(mark), saved / "training_state/optimizer.pt")
    checkpoint.restore(saved, algorithm)
    contents = [pickle.dumps(Code(mark)), b"", b"{}", b"[3]", struct.pack("<Q", 1 << 40) + b"{}"]
    for content in contents:
        next((saved / "training_state").rglob(name)).write_bytes(content)
        with pytest.raises(ValueError, match=f"(training|optimizer's) state in {saved}"):
            checkpoint.restore(saved, algorithm)
    assert not mark.exists()


@pytest.mark.parametrize("step", [-1, "3", 1.5, None, True])
def test_a_step_that_is_no_count_is_refused(run, step):
    config, algorithm = run
    saved = checkpoint.save(config, algorithm, 1)
    (saved / "training_state/training_step.json").write_text(json.dumps({"step": step}))
    with pytest.raises(ValueError, match="`step` should be a count, got"):
        checkpoint.restore(saved, algorithm)


def test_frozen_parts_and_bf16_survive_a_resumption(run):
    config, _ = run
    config.algorithm = GRPOConfig(freeze=("vision", "vlm"), bf16=True)
    algorithm = GRPOAlgorithm(load_actor(config.policy), config.algorithm)
    saved = checkpoint.save(config, algorithm, 1)
    path = checkpoint.last(config.output_dir)
    again = GRPOPipelineConfig.from_pretrained(path, cli_args=[]).algorithm
    resumed = GRPOAlgorithm(load_actor(load_actor_config(path)), again)
    assert checkpoint.restore(saved, resumed) == 1
    weights = [a.get_weights() for a in (algorithm, resumed)]
    assert all(weights[0][key].dtype == weights[1][key].dtype for key in weights[0])
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])
    trained, trained_again = (
        {name for name, p in a.actor.policy.named_parameters() if p.requires_grad}
        for a in (algorithm, resumed)
    )
    assert trained == trained_again and resumed.actor.execution == algorithm.actor.execution


def test_a_resumption_that_trains_other_parameters_is_refused(run):
    config, algorithm = run
    saved = checkpoint.save(config, algorithm, 1)
    other = GRPOAlgorithm(load_actor(config.policy), GRPOConfig(freeze=("vision",)))
    with pytest.raises(ValueError, match="not that of the parameters that are trained now.*algorithm.freeze"):
        checkpoint.restore(saved, other)


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from.*start the run without"):
        checkpoint.last(tmp_path)
    with pytest.raises(ValueError, match="--output_dir"):
        checkpoint.last(None)
