"""Simulators that workers share, on real LIBERO; the serial worker, which has its own, is the oracle."""

import base64
import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from episodes import assert_same
from lerobot.envs.configs import AlohaEnv, EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.envs.assets import renders_in_software, require_gl
from lerobot_smoothvla.envs.shift import Shift
from lerobot_smoothvla.episode import Episode, Start, Task
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.machine import parent_of, private_bytes, resident_bytes
from lerobot_smoothvla.processes import started_with
from lerobot_smoothvla.rollout import stock
from lerobot_smoothvla.rollout.engine import Actor, RolloutEngine, RolloutRequest
from lerobot_smoothvla.rollout.local import ProcessEngine, make_engine

ENV = LiberoEnvConfig(
    "libero_object", task_ids=[0, 1], observation_height=64, observation_width=64, episode_length=16
)
STARTS = [Start("libero_object", task_id, init_state=3, seed=7) for task_id in (0, 1)]
SHIFTS = [None, Shift("camera", 1.0), Shift("light", 1.0), None]
REQUESTS = [RolloutRequest(start, 0, DeployedSampler(), shift=shift) for start in STARTS for shift in SHIFTS]


@pytest.fixture(scope="module")
def name() -> str:
    return "smoothvla"


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> Actor:
    return load_actor(load_actor_config(checkpoint))


@pytest.fixture(scope="module")
def expected(policy: Actor) -> list[Episode]:
    with closing(make_engine(ENV, policy, 0)) as serial:
        return serial.run(REQUESTS)


@pytest.fixture
def software() -> None:
    require_gl()
    if not renders_in_software():
        pytest.skip("the contexts of a GPU are not shared")


@pytest.fixture
def new_server() -> Iterator[None]:
    """That workers are forked from, for one test alone."""
    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()


def pids(engine: RolloutEngine[Any]) -> list[int]:
    return [worker._process.pid for worker in engine._workers]


def assert_all_same(episodes: list[Episode], expected: list[Episode]) -> None:
    for episode, other in zip(episodes, expected, strict=True):
        assert_same(episode, other)


def test_workers_share_the_simulators_of_all_tasks_and_each_changes_its_own(
    policy: Actor, expected: list[Episode], software: None, new_server: None
) -> None:
    with closing(make_engine(ENV, policy, n_workers=2)) as engine:
        episodes = engine.run(REQUESTS)
        server = parent_of(pids(engine)[0])
        assert {parent_of(pid) for pid in pids(engine)} == {server}
        assert resident_bytes(server) > 2 * 2**30
        # With a simulator of its own it would be four times as much.
        assert max(map(private_bytes, pids(engine))) < 2**28
        threads = [path.read_text() for path in Path(f"/proc/{server}/task").glob("*/comm")]
        # Others would not be there after a fork; that one knows it.
        assert len([name for name in threads if "jemalloc" not in name]) == 1
        for worker in list(engine._workers):
            worker.kill()
        assert_all_same(engine.run(REQUESTS[:1]), expected[:1])
        assert max(map(private_bytes, pids(engine))) < 2**28
    assert_all_same(episodes, expected)


def test_what_cannot_be_built_ahead_is_left_to_the_workers(
    policy: Actor, expected: list[Episode], new_server: None
) -> None:
    with started_with({stock.VARIABLE: "no order"}):
        engine = ProcessEngine(ENV, policy, n_workers=1)
    with closing(engine):
        assert_all_same(engine.run(REQUESTS[:1]), expected[:1])
        assert private_bytes(*pids(engine)) > 2**30


def test_what_was_built_for_another_environment_is_not_taken(
    policy: Actor, software: None, new_server: None
) -> None:
    other = replace(ENV, task_ids=[0], observation_height=48, observation_width=48)
    with (
        closing(make_engine(replace(ENV, task_ids=[0]), policy, 1)),
        closing(make_engine(other, policy, 1)) as engine,
    ):
        (episode,) = engine.run(REQUESTS[:1])
    assert episode.observations["observation.images.image"].shape[-2:] == (48, 48)


def test_without_the_server_a_lost_worker_is_replaced_by_one_that_builds_its_own(
    policy: Actor, expected: list[Episode], new_server: None
) -> None:
    """It has the most memory, so a system without any would end it first."""
    with closing(make_engine(replace(ENV, task_ids=[0]), policy, n_workers=2)) as engine:
        os.kill(parent_of(pids(engine)[0]), signal.SIGKILL)
        assert_all_same(engine.run(REQUESTS[:2]), expected[:2])
        os.kill(pids(engine)[0], signal.SIGKILL)
        assert_all_same(engine.run(REQUESTS[:4]), expected[:4])
        assert engine.n_failures == 1 and len(engine._workers) == 2


def ordered(config: EnvConfig) -> list[Task]:
    order = stock.order(config)
    return pickle.loads(base64.b64decode(order[stock.VARIABLE]))[1] if order else []


def test_simulators_are_built_ahead_where_that_is_known_to_be_safe_and_they_fit(monkeypatch) -> None:
    gib = 2**30
    ten = replace(ENV, task_ids=None)
    monkeypatch.setattr(stock, "renders_in_software", lambda: True)
    monkeypatch.setattr(stock, "machine_bytes", lambda: (5 * gib, 16 * gib))
    assert ordered(replace(ENV, task_ids=[4])) == [("libero_object", 4)]
    assert ordered(ten) == [("libero_object", 0), ("libero_object", 1)]  # In half of what is free.
    assert ordered(replace(ten, task="libero_90")) == ordered(AlohaEnv()) == []
    monkeypatch.setattr(stock, "machine_bytes", lambda: (gib, 16 * gib))
    assert ordered(ENV) == []
    monkeypatch.setattr(stock, "machine_bytes", lambda: (5 * gib, 16 * gib))
    monkeypatch.setattr(stock, "renders_in_software", lambda: False)
    assert ordered(ENV) == []
