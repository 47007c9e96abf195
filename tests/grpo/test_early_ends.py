"""Runs that end before their time: what is saved, what is said. The trainer itself, with a real policy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import TINY_SMOOTHVLA, save_checkpoint, tiny_smoothvla_in
from easy_runs import log_of
from environments import SlideEnvConfig
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from safetensors.torch import load_file

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig, GRPOPipelineConfig
from lerobot_smoothvla.grpo.trainer import GRPOTrainer
from lerobot_smoothvla.rollout.engine import RolloutError
from lerobot_smoothvla.rollout.local import make_engine
from lerobot_smoothvla.writing import WritingError


def a_trainer(
    output: Path,
    warm_start: Path,
    env: EnvConfig,
    task: tuple[str, int],
    after_save: Callable[[Path], None] = lambda checkpoint: None,
    **settings,
) -> GRPOTrainer:
    """Of three iterations that nothing saves in between."""
    policy = load_actor_config(warm_start, env_config=env)
    grpo = GRPOConfig(**{"n_groups": 2, "group_size": 4, "lr": 1e-3} | settings)
    config = GRPOPipelineConfig(
        env=env, policy=policy, output_dir=output, steps=3, save_freq=0, seed=3, algorithm=grpo
    )
    actor = load_actor(policy)
    engine = make_engine(env, actor, n_workers=0)
    return GRPOTrainer(config, GRPOAlgorithm(actor, grpo), engine, [task], after_save=after_save)


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., GRPOTrainer]:
    warm_start = tiny_smoothvla_in("slide", tmp_path_factory.mktemp("slide"))
    return lambda output, **how: a_trainer(output, warm_start, SlideEnvConfig(), ("slide", 0), **how)


@pytest.mark.parametrize(
    "reason", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("No task moves"), BrokenPipeError(32)]
)
def test_whatever_ends_a_run_its_last_finished_iteration_is_saved(reason, sliding, tmp_path, caplog):
    trainer = sliding(tmp_path / "run")
    update, after = trainer.algorithm.update, []

    def update_and_fail_in_the_second(*arguments):
        stats = update(*arguments)
        after.append({name: weight.clone() for name, weight in trainer.algorithm.get_weights().items()})
        if len(after) == 2:
            raise reason
        return stats

    trainer.algorithm.update = update_and_fail_in_the_second
    with pytest.raises(type(reason)):
        trainer.train()
    first, second = after
    assert any(not first[name].equal(second[name]) for name in first)
    last = tmp_path / "run" / "checkpoints" / "last"
    assert last.readlink() == Path("000001")
    saved = load_file(last / "pretrained_model" / "model.safetensors")
    assert all(saved[name].equal(weight) for name, weight in first.items())
    assert f"The run ends ({type(reason).__name__}) after 1 of 3 iterations, which are saved" in caplog.text


@pytest.mark.parametrize(
    ("what", "settings"),
    [
        (r"The log \S+metrics.jsonl could not be written \(.*\). It takes about \d+ bytes", {}),
        (
            r"The dropped minibatch \S+000001_0.safetensors could not be written \(.*\). It takes about \d",
            {"lr": 1e30, "epochs": 5},
        ),
    ],
    ids=["log", "dropped"],
)
def test_a_full_disk_ends_a_run_with_what_could_not_be_written(what, settings, sliding, small_disk):
    def fill(checkpoint: Path) -> None:
        (small_disk / "filler").write_bytes(b"\0" * shutil.disk_usage(small_disk).free)

    trainer = sliding(small_disk / "run", after_save=fill, minibatch_size=1, **settings)
    with pytest.raises(WritingError, match=what + r".*, and 0 bytes are free. Make space and continue"):
        trainer.train()
    (small_disk / "filler").unlink()
    assert (small_disk / "run/checkpoints/last").readlink() == Path("000000")
    load_file(small_disk / "run/checkpoints/last/pretrained_model/model.safetensors")


# --- starts that no worker can roll out: LIBERO ships 50 initial states of each task


@pytest.fixture(scope="module")
def in_libero(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., GRPOTrainer]:
    warm_start = tmp_path_factory.mktemp("libero")
    save_checkpoint(warm_start, SmoothVLAConfig(**TINY_SMOOTHVLA))
    env = LiberoEnvConfig(
        "libero_object", task_ids=[0], observation_height=64, observation_width=64, episode_length=8
    )
    return lambda output, **how: a_trainer(output, warm_start, env, ("libero_object", 0), **how)


def test_a_start_that_always_fails_is_set_aside_counted_and_named(in_libero, tmp_path, caplog):
    trainer = in_libero(tmp_path / "run", init_states=(48, 52), group_size=2)
    (tmp_path / "run").mkdir()
    trainer.step()
    trainer.engine.close()
    (line,) = log_of(tmp_path / "run")
    assert (line["starts_set_aside"], line["rollout_failures"]) == (1, 2 * 3)
    (said,) = [line for line in caplog.messages if "is set aside" in line]
    assert "init_state=5" in said and "Initial state should be in [0, 49]" in said
    (kept,) = map(json.loads, (tmp_path / "run/dropped/starts_0.jsonl").read_text().splitlines())
    assert (kept["iteration"], kept["suite"], kept["task_id"]) == (1, "libero_object", 0)
    assert kept["init_state"] > 49 and kept["reason"].endswith(f"got {kept['init_state']}.")
    assert kept["actions"] is None, "it never moved"


def test_of_a_start_whose_simulation_diverges_the_actions_are_kept(sliding, tmp_path):
    trainer = sliding(tmp_path / "run", n_groups=1)
    (tmp_path / "run").mkdir()
    trainer.engine._workers[0]._simulators.get("slide", 0)._diverged = lambda: True
    with pytest.raises(RolloutError, match="No start of iteration 1"):
        trainer.step()
    (kept,) = map(json.loads, (tmp_path / "run/dropped/starts_0.jsonl").read_text().splitlines())
    assert "diverged after 0 steps" in kept["reason"] and kept["noise_seed"] >= 0
    assert torch.tensor(kept["actions"]).isfinite().all() and len(kept["actions"]) > 0


def test_a_run_whose_starts_all_fail_ends_with_the_reason(in_libero, tmp_path, caplog):
    trainer = in_libero(tmp_path / "run", init_states=(60, 70))
    with pytest.raises(RolloutError, match="No start of iteration 1 could be rolled out; the warnings above"):
        trainer.train()
    assert sum("is set aside" in line for line in caplog.messages) == 2
    assert (tmp_path / "run/checkpoints/last").readlink() == Path("000000")
