"""Ray actors give the episodes of the serial worker, on real LIBERO."""

import math
import signal
from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.episode import Episode, Start
from lerobot_smoothvla.flow.ratio import FlowSDERatio
from lerobot_smoothvla.rollout.configuration import RolloutConfig
from lerobot_smoothvla.rollout.engine import Actor, RolloutEngine, RolloutError, RolloutRequest
from lerobot_smoothvla.rollout.local import make_engine

REQUESTS = [RolloutRequest(Start("libero_object", 0, 3, 7), seed, FlowSDERatio(level=0.3)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def name() -> str:
    return "smoothvla"


@pytest.fixture(scope="module")
def env_config() -> LiberoEnvConfig:
    return LiberoEnvConfig(
        task="libero_object", observation_height=64, observation_width=64, episode_length=10
    )


@pytest.fixture(scope="module")
def engine(env_config: LiberoEnvConfig, checkpoint: Path) -> Iterator[RolloutEngine[Any]]:
    """An actor of its own cluster, which ends with it."""
    actor = load_actor(load_actor_config(checkpoint))
    with closing(make_engine(env_config, actor, 1, RolloutConfig("ray"))) as engine:
        yield engine
    import ray  # Only here: the engine says how, before it is first imported.

    assert not ray.is_initialized()


def expected(env_config: LiberoEnvConfig, actor: Actor) -> list[Episode]:
    with closing(make_engine(env_config, actor, 0)) as engine:
        return engine.run(REQUESTS)


def _processes() -> list[psutil.Process]:
    """Those that this one has started; Ray's are among them."""
    return psutil.Process().children(recursive=True)


def assert_same(episodes: list[Episode], others: list[Episode]) -> None:
    for one, other in zip(episodes, others, strict=True):
        assert torch.equal(one.positions, other.positions) and torch.equal(one.chunks, other.chunks)
        for key, value in one.record.items():
            assert torch.equal(value, other.record[key])


def test_actors_give_the_serial_workers_episodes_with_the_weights_they_got_last(engine, env_config, actor):
    first = expected(env_config, actor)
    moved = deepcopy(actor.policy)
    with torch.no_grad():
        moved.model.action_out_proj.bias += 0.5
    assert_same(engine.run(REQUESTS), first)
    engine.load_weights(moved)
    second = engine.run(REQUESTS)
    assert not torch.equal(second[0].chunks, first[0].chunks)
    actor.policy.load_state_dict(moved.state_dict())
    assert_same(second, expected(env_config, actor))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_what_a_killed_or_hung_actor_had_is_rolled_out_by_another(
    number, engine, env_config, actor, monkeypatch
):
    engine.load_weights(actor.policy)
    monkeypatch.setattr(engine, "_timeout_s", 5.0)
    before, replace, (lost,) = engine.n_failures, engine._replace, engine._workers
    (process,) = (process for process in _processes() if "_Remote" in "".join(process.cmdline()))

    def replace_and_wait():
        engine._timeout_s = math.inf  # A new actor takes longer to start.
        return replace()

    monkeypatch.setattr(engine, "_replace", replace_and_wait)
    episodes = engine.run(REQUESTS, lambda index, _: index == 0 and process.send_signal(number))
    assert_same(episodes, expected(env_config, actor))
    assert engine.n_failures == before + 1 and engine._workers != [lost]
    psutil.wait_procs([process], timeout=10)
    assert not process.is_running()


def test_the_reason_of_a_failed_rollout_comes_back(engine):
    bad = RolloutRequest(Start("libero_object", 0, 99, 0), 0, FlowSDERatio(level=0.3))
    with pytest.raises(RolloutError, match="Initial state should be in"):
        engine.run([bad])


def test_more_actors_than_cores_are_refused(engine, env_config, actor):
    with pytest.raises(ValueError, match="`n_workers` should be at most 1, the cores of the Ray cluster"):
        make_engine(env_config, actor, 2, RolloutConfig("ray"))


@pytest.mark.parametrize(
    ("device", "gpus", "share"), [("cpu", 0, 0), ("cpu", 2, 0), ("cuda", 1, 1 / 8), ("cuda:0", 3, 1 / 3)]
)
def test_every_core_could_have_its_share_of_a_gpu(device, gpus, share):
    from lerobot_smoothvla.rollout.ray import _gpu_share

    assert _gpu_share(device, 4, {"CPU": 8, "GPU": gpus}) == share
    with pytest.raises(ValueError, match="needs a GPU beside every worker, and the Ray cluster has none"):
        _gpu_share("cuda", 4, {"CPU": 8})


def test_nobody_else_can_reach_the_cluster_of_this_machine(engine):
    listening = [c for p in _processes() for c in p.net_connections("tcp") if c.status == "LISTEN"]
    assert listening
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one of local, ray, got 'slurm'"):
        RolloutConfig("slurm")
    with pytest.raises(ValueError, match="add --rollout.backend=ray"):
        RolloutConfig(address="auto")
