"""A policy in the learner plays the episodes of a policy in the worker, on real LIBERO."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.episode import Episode, Start
from lerobot_smoothvla.filters.steps import ChunkBlendStep
from lerobot_smoothvla.flow.ratio import FlowMatchingRatio, FlowSDERatio
from lerobot_smoothvla.rollout.central import CentralEngine, CentralWorker
from lerobot_smoothvla.rollout.configuration import RolloutConfig
from lerobot_smoothvla.rollout.engine import Actor, Decision, RolloutEngine, RolloutRequest
from lerobot_smoothvla.rollout.local import make_engine, wait_for_processes

START = Start("libero_object", 0, 3, 7)
REQUESTS = [RolloutRequest(START, seed, FlowSDERatio(level=0.3)) for seed in range(3)]
REQUESTS.append(RolloutRequest(START, 3, FlowMatchingRatio()))


class Counted(Actor):
    """An actor that remembers how many episodes each of its calls was for."""

    def decide(self, observations: Any, instructions: list[str], *others: Any) -> list[Decision]:
        self.__dict__.setdefault("rows", []).append(len(instructions))
        return super().decide(observations, instructions, *others)


@pytest.fixture(scope="module")
def name() -> str:
    return "smoothvla"


@pytest.fixture(scope="module")
def env_config() -> LiberoEnvConfig:
    return LiberoEnvConfig(
        task="libero_object", task_ids=[0], observation_height=64, observation_width=64, episode_length=20
    )


@pytest.fixture(scope="module")
def counted(checkpoint: Path) -> Counted:
    from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config

    actor = load_actor(load_actor_config(checkpoint))
    return Counted(actor.policy, actor.preprocessor, actor.postprocessor)


@pytest.fixture(scope="module")
def engine(env_config: LiberoEnvConfig, counted: Counted) -> Iterator[RolloutEngine[Any]]:
    with closing(make_engine(env_config, counted, 2, RolloutConfig(inference="central"))) as engine:
        assert isinstance(engine, CentralEngine)
        yield engine


@pytest.fixture(scope="module")
def expected(env_config: LiberoEnvConfig, counted: Counted) -> list[Episode]:
    with closing(make_engine(env_config, counted, 0)) as serial:
        return serial.run(REQUESTS)


def tensors(episode: Episode) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(episode, field.name) for field in fields(episode)}
    flat = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return flat | episode.observations | episode.record


def assert_same(one: Episode, other: Episode, tolerance: float) -> None:
    assert (one.start, one.success, one.instruction) == (other.start, other.success, other.instruction)
    for name, value in tensors(one).items():
        torch.testing.assert_close(
            value.double(), tensors(other)[name].double(), rtol=0, atol=tolerance, msg=name
        )


def test_alone_an_episode_is_the_workers_own_bit_by_bit(engine, expected):
    for request, episode in zip(REQUESTS, expected, strict=True):
        assert_same(engine.run([request])[0], episode, tolerance=0)


def all_of(workers: Iterable[CentralWorker], timeout_s: float) -> list[CentralWorker]:
    """All that are busy, as if the policy was so slow that all of them had to wait for it."""
    workers = list(workers)
    return [worker for each in workers for worker in wait_for_processes([each], timeout_s)]


def test_together_they_are_the_same_but_for_the_last_bits_of_a_batched_network(
    engine, counted, expected, monkeypatch
):
    counted.rows.clear()
    monkeypatch.setattr("lerobot_smoothvla.rollout.central.wait_for_processes", all_of)
    for one, other in zip(engine.run(REQUESTS), expected, strict=True):
        # Pixels are whole numbers, of which a few may be the next one.
        assert_same(replace(one, observations={}), replace(other, observations={}), tolerance=1e-3)
    assert max(counted.rows) == 2 and sum(counted.rows) == sum(len(e.executed) for e in expected)


def test_a_worker_that_is_killed_is_replaced_and_its_episode_played_again(engine, expected):
    killed = engine._workers[0]._process.pid

    def kill(index: int, episode: Episode) -> None:
        if killed in {worker._process.pid for worker in engine._workers}:
            os.kill(killed, signal.SIGKILL)

    before = engine.n_failures
    episodes = engine.run(REQUESTS, kill)
    assert engine.n_failures == before + 1 and len(engine._workers) == 2
    assert [episode.start for episode in episodes] == [START] * 4
    assert killed not in {worker._process.pid for worker in engine._workers}


def test_a_filter_is_refused_as_it_remembers_one_episode(env_config, counted):
    filtered = Actor(
        counted.policy, counted.preprocessor, counted.postprocessor, action_filter=ChunkBlendStep()
    )
    with pytest.raises(ValueError, match="A filter acts on one episode; use --rollout.inference=worker"):
        CentralEngine(env_config, filtered, 1)


def test_central_inference_and_ray_exclude_each_other():
    with pytest.raises(ValueError, match="needs workers on this machine"):
        RolloutConfig("ray", inference="central")
    with pytest.raises(ValueError, match="`device` is of the workers' copies.*got 'cpu' with"):
        RolloutConfig(inference="central", device="cpu")
    with pytest.raises(ValueError, match="`inference` should be one of worker, central, got 'gpu'"):
        RolloutConfig(inference="gpu")


def test_workers_act_on_a_device_that_there_is():
    with pytest.raises(ValueError, match="`device` should be one of cpu, cuda.*got 'gpu'"):
        RolloutConfig(device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="`device` should be one of this machine's, got 'cuda:1'; try"):
            RolloutConfig(device="cuda:1")
    assert RolloutConfig("ray", device="cuda:1").device == "cuda:1"
