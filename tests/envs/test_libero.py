"""The oracle is LeRobot's own environment, freshly built, with both cameras rendered in every step.

In libero_object it is LeRobot's default, which loads the model anew at each reset. Where fixtures are placed
at random, as in libero_spatial, LeRobot's hard and soft resets draw other places from the same seed: there it
is a soft reset.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.envs.libero import LiberoEnv, _get_suite
from numpy.typing import NDArray

from lerobot_smoothvla.demos.expert import PickAndPlace
from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv, Observation
from lerobot_smoothvla.episode import Start

CHUNK = 8
HORIZON = 140
OBJECT = Start("libero_object", task_id=0, init_state=3, seed=7)
SPATIAL = Start("libero_spatial", task_id=4, init_state=11, seed=2)


@dataclass(frozen=True)
class Reference:
    """An episode of LeRobot's environment: K steps, K + 1 frames."""

    frames: list[dict[str, Any]]
    positions: NDArray[np.float64]
    rewards: list[float]
    successes: list[bool]


def chunked_env(start: Start, horizon: int = HORIZON, **options: Any) -> ChunkedLiberoEnv:
    config = LiberoEnvConfig(
        task=start.suite, observation_height=64, observation_width=64, episode_length=horizon, **options
    )
    return ChunkedLiberoEnv(config, start.suite, start.task_id)


@pytest.fixture(scope="module")
def env() -> Iterator[ChunkedLiberoEnv]:
    made = chunked_env(OBJECT)
    yield made
    made.close()


def stock_episode(start: Start, actions: NDArray[np.float32], hard_reset: bool) -> Reference:
    stock = LiberoEnv(
        _get_suite(start.suite),
        start.task_id,
        start.suite,
        obs_type="pixels_agent_pos",
        observation_height=64,
        observation_width=64,
        episode_index=start.init_state,
        hard_reset=hard_reset,
    )
    frame, _ = stock.reset(seed=start.seed)
    site = stock._env.robots[0].eef_site_id
    frames, positions, rewards, successes = [frame], [], [], []
    for action in actions:
        frame, reward, _, _, info = stock.step(action)
        frames.append(frame)
        positions.append(np.array(stock._env.sim.data.site_xpos[site]))
        rewards.append(reward)
        successes.append(info["is_success"])
        if successes[-1]:
            break
    stock.close()
    # Its OpenGL objects are freed here, where its context is the current one.
    del stock
    gc.collect()
    return Reference(frames, np.stack(positions), rewards, successes)


def random_actions(n_steps: int, seed: int = 0) -> NDArray[np.float32]:
    """A random walk that pushes down, so that the arm meets the table and what stands on it."""
    walk = np.cumsum(np.random.default_rng(seed).normal(0, 0.3, (n_steps, 7)), axis=0)
    return np.clip(walk + np.array([0, 0, -0.5, 0, 0, 0, 0]), -1, 1).astype(np.float32)


def expert_actions(env: ChunkedLiberoEnv, start: Start) -> NDArray[np.float32]:
    env.reset_to(start)
    expert = PickAndPlace(env)
    actions = [expert.act().astype(np.float32)]
    while not env.step(actions[-1])[2]:
        actions.append(expert.act().astype(np.float32))
    return np.stack(actions)


def assert_same(observation: Observation, expected: Observation) -> None:
    assert observation.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(observation[key], expected[key], rtol=0, atol=0)


def assert_equals_stock(
    env: ChunkedLiberoEnv, start: Start, actions: NDArray[np.float32], hard_reset: bool
) -> Reference:
    reference = stock_episode(start, actions, hard_reset)
    assert_same(env.reset_to(start), env.to_lerobot(reference.frames[0]))
    positions, steps, done = [], 0, False
    while not done:
        outcome = env.step_chunk(actions[steps : steps + CHUNK])
        steps += outcome.n_steps
        positions.append(outcome.positions)
        done = outcome.done
        assert outcome.success == reference.successes[steps - 1]
        assert (outcome.observation is None) == done
        if outcome.observation is not None:
            assert_same(outcome.observation, env.to_lerobot(reference.frames[steps]))
    assert steps == len(reference.successes)
    np.testing.assert_array_equal(np.concatenate(positions), reference.positions)
    return reference


def test_a_successful_episode_equals_rendering_every_step_bit_by_bit(env: ChunkedLiberoEnv) -> None:
    actions = expert_actions(env, OBJECT)
    reference = assert_equals_stock(env, OBJECT, actions, hard_reset=True)
    assert reference.rewards == [0.0] * (len(actions) - 1) + [1.0]
    assert reference.successes[-1]
    assert len(actions) % CHUNK != 0, "the success should fall inside a chunk"


def test_an_episode_with_contacts_equals_rendering_every_step_to_the_horizon() -> None:
    horizon = 2 * CHUNK + 3
    env = chunked_env(SPATIAL, horizon)
    reference = assert_equals_stock(env, SPATIAL, random_actions(horizon), hard_reset=False)
    assert not any(reference.successes)
    fixtures = env._env.sim.model.body_pos.copy()
    env.reset_to(replace(SPATIAL, seed=SPATIAL.seed + 1))
    moved = np.abs(env._env.sim.model.body_pos - fixtures).max()
    assert 0 < moved < 0.05, "the seed places the fixtures, so it belongs to the start"
    env.close()


def test_a_start_is_the_same_bit_by_bit_after_any_history(env: ChunkedLiberoEnv) -> None:
    first = env.reset_to(OBJECT)
    physics = env._env.sim.get_state().flatten()
    for seed, other in enumerate([OBJECT, Start(OBJECT.suite, OBJECT.task_id, 40, 123)]):
        env.reset_to(other)
        gripper_closed = random_actions(2 * CHUNK, seed)
        gripper_closed[:, 6] = 1
        env.step_chunk(gripper_closed)
        assert_same(env.reset_to(OBJECT), first)
        np.testing.assert_array_equal(env._env.sim.get_state().flatten(), physics)


def test_cameras_render_once_a_reset_and_once_a_chunk(
    env: ChunkedLiberoEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.reset_to(OBJECT)
    rendered: list[str] = []
    render = env._env.sim.render

    def counting(*args: Any, camera_name: str, **kwargs: Any) -> Any:
        rendered.append(camera_name)
        return render(*args, camera_name=camera_name, **kwargs)

    monkeypatch.setattr(env._env.sim, "render", counting)
    both = ["agentview", "robot0_eye_in_hand"]
    env.reset_to(OBJECT)
    assert rendered == both
    for n_chunks in (2, 3):
        env.step_chunk(random_actions(CHUNK))
        assert rendered == both * n_chunks
    frames: list[Any] = []
    env.step_chunk(random_actions(CHUNK), on_frame=frames.append)
    assert rendered == both * (3 + CHUNK)
    assert len(frames) == CHUNK


def test_an_observer_of_every_frame_changes_nothing(env: ChunkedLiberoEnv) -> None:
    actions = random_actions(CHUNK)
    env.reset_to(OBJECT)
    unobserved = env.step_chunk(actions).observation
    env.reset_to(OBJECT)
    observed = env.step_chunk(actions, on_frame=lambda raw: None).observation
    assert unobserved is not None and observed is not None
    assert_same(observed, unobserved)


def test_the_last_frames_of_a_chunk_are_those_of_rendering_every_step(env: ChunkedLiberoEnv) -> None:
    actions = random_actions(CHUNK)
    env.reset_to(OBJECT)
    every_frame = [env.step_chunk(action[None]).observation for action in actions]
    env.reset_to(OBJECT)
    frames = env.step_chunk(actions[: CHUNK - 1], n_frames=2).frames
    assert len(frames) == 2
    frames += env.step_chunk(actions[CHUNK - 1 :], n_frames=2).frames
    assert len(frames) == 3, "a chunk of one step has one frame to show"
    for frame, expected in zip(frames, every_frame[-3:], strict=True):
        assert expected is not None
        assert_same(frame, expected)


def test_positions_are_traced_at_control_rate(env: ChunkedLiberoEnv) -> None:
    env.reset_to(OBJECT)
    before = env.position
    upwards = np.zeros((CHUNK, 7), np.float32)
    upwards[:, 2] = 1
    outcome = env.step_chunk(upwards)
    assert outcome.positions.shape == (CHUNK, 3)
    assert outcome.n_steps == CHUNK
    np.testing.assert_array_equal(outcome.positions[-1], env.position)
    assert outcome.joints is not None and outcome.joints.shape == (CHUNK, 7)
    np.testing.assert_array_equal(outcome.joints[-1], env.joints)
    heights = np.concatenate([[before[2]], outcome.positions[:, 2]])
    assert (np.diff(heights)[1:] > 0).all()
    assert env.dt == 0.05


def test_the_horizon_ends_the_episode_in_the_middle_of_a_chunk_and_stays_done(
    env: ChunkedLiberoEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "_max_episode_steps", CHUNK + 2)
    env.reset_to(OBJECT)
    first, second = env.step_chunk(random_actions(CHUNK)), env.step_chunk(random_actions(CHUNK))
    assert (first.done, first.n_steps) == (False, CHUNK)
    assert (second.done, second.n_steps, second.success, second.observation) == (True, 2, False, None)
    with pytest.raises(RuntimeError, match="call `reset_to`"):
        env.step_chunk(random_actions(CHUNK))
    env.reset_to(OBJECT)
    assert env.step_chunk(random_actions(CHUNK)).n_steps == CHUNK


def test_stepping_before_the_first_reset_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="call `reset_to`"):
        chunked_env(OBJECT).step_chunk(random_actions(1))


def test_environments_of_one_process_see_their_own_scenes(env: ChunkedLiberoEnv) -> None:
    """Also after another one was built, which takes the OpenGL context, and closed, which frees it."""
    alone = env.reset_to(OBJECT)
    other = chunked_env(SPATIAL)
    other_alone = other.reset_to(SPATIAL)
    assert_same(env.reset_to(OBJECT), alone)
    assert_same(other.reset_to(SPATIAL), other_alone)
    other.close()
    gc.collect()
    assert_same(env.reset_to(OBJECT), alone)
    assert_same(other.reset_to(SPATIAL), other_alone)
    other.close()


def test_observations_have_lerobots_keys_and_types(env: ChunkedLiberoEnv) -> None:
    observation = env.reset_to(OBJECT)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in observation.items()} == {
        "observation.images.image": (torch.uint8, (3, 64, 64)),
        "observation.images.image2": (torch.uint8, (3, 64, 64)),
        "observation.state": (torch.float32, (8,)),
    }


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Start("libero_object", 1, 0, 0), "should belong to libero_object task 0, got libero_object task 1"),
        (Start("libero_goal", 0, 0, 0), "got libero_goal task 0"),
        (Start("libero_object", 0, 50, 0), r"should be in \[0, 49\] for libero_object task 0, got 50"),
        (Start("libero_object", 0, -1, 0), "got -1"),
    ],
)
def test_a_start_that_does_not_exist_is_refused(env: ChunkedLiberoEnv, start: Start, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.reset_to(start)


@pytest.mark.parametrize(
    ("suite", "task_id", "horizon", "message"),
    [
        ("libero_object", 10, None, r"should be in \[0, 9\] for suite 'libero_object', got 10"),
        ("libero_objects", 0, None, "Unknown LIBERO suite 'libero_objects'"),
        ("libero_object", 0, 0, "`episode_length` should be at least 1 control step, got 0"),
    ],
)
def test_a_task_that_does_not_exist_is_refused_before_a_simulator_is_built(
    suite: str, task_id: int, horizon: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ChunkedLiberoEnv(LiberoEnvConfig(task=suite, episode_length=horizon), suite, task_id)
