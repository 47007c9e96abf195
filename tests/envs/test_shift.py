"""Shifted starts of LIBERO; the oracle is the unshifted start."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from numpy.typing import NDArray

from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv, Observation
from lerobot_smoothvla.envs.shift import MAGNITUDES, Shift
from lerobot_smoothvla.episode import Start

START = Start("libero_object", task_id=0, init_state=3, seed=7)
OTHER = Start("libero_object", task_id=0, init_state=40, seed=123)
SCENE, HAND, STATE = "observation.images.image", "observation.images.image2", "observation.state"
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (8, 7)).astype(np.float32)


def built() -> ChunkedLiberoEnv:
    config = LiberoEnvConfig(task="libero_object", observation_height=64, observation_width=64)
    return ChunkedLiberoEnv(config, "libero_object", 0)


@pytest.fixture(scope="module")
def env() -> Iterator[ChunkedLiberoEnv]:
    made = built()
    yield made
    made.close()


def begun(
    env: ChunkedLiberoEnv, start: Start, kind: Any = "none", magnitude: float | None = None
) -> tuple[Observation, NDArray[np.float64]]:
    """The first observation and the whole physical state."""
    observation = env.reset_to(start, Shift.of(kind, magnitude))
    return observation, env._env.sim.get_state().flatten()


def same(first: Observation, second: Observation) -> dict[str, bool]:
    return {key: bool((first[key] == second[key]).all()) for key in second}


@pytest.mark.parametrize(("kind", "seen"), [("camera", {HAND: True}), ("light", {HAND: False})])
def test_camera_and_light_change_pixels_and_not_the_physics(
    env: ChunkedLiberoEnv, kind: str, seen: dict[str, bool]
) -> None:
    plain, physics = begun(env, START)
    path = env.step_chunk(ACTIONS).positions
    shifted, shifted_physics = begun(env, START, kind)
    assert same(shifted, plain) == {SCENE: False, STATE: True, **seen}
    np.testing.assert_array_equal(shifted_physics, physics)
    outcome = env.step_chunk(ACTIONS)
    np.testing.assert_array_equal(outcome.positions, path)
    assert outcome.observation is not None, "later frames are shifted as the first"


def test_the_arm_begins_elsewhere_and_the_objects_do_not(env: ChunkedLiberoEnv) -> None:
    plain, _ = begun(env, START)
    objects = free_joints(env)
    before, hand = env._env.sim.data.qpos.copy(), env.position
    shifted, _ = begun(env, START, "arm")
    moved = env._env.sim.data.qpos - before
    joints = [env._env.sim.model.get_joint_qpos_addr(name) for name in env._env.robots[0].robot_joints]
    assert np.sqrt(np.mean(moved[joints] ** 2)) == pytest.approx(0.1, rel=0.01)
    assert np.linalg.norm(env.position - hand) > 0.01
    np.testing.assert_allclose(moved[objects], 0, atol=1e-4)
    assert not any(same(shifted, plain).values())
    begin = env.position
    still = env.step_chunk(np.zeros((8, 7), np.float32)).positions
    np.testing.assert_allclose(still, np.broadcast_to(begin, still.shape), atol=1e-3)


def test_objects_begin_elsewhere_each_its_own_way_and_the_arm_does_not(
    env: ChunkedLiberoEnv,
) -> None:
    _, _ = begun(env, START)
    before, arm = env._env.sim.data.qpos.copy(), env.position
    _, _ = begun(env, START, "placement", 0.04)
    moved = (env._env.sim.data.qpos - before)[free_joints(env)]
    np.testing.assert_allclose(np.linalg.norm(moved[:, :2], axis=1), 0.04, atol=2e-3)
    np.testing.assert_allclose(moved[:, 2:], 0, atol=2e-3)
    angles = np.arctan2(moved[:, 1], moved[:, 0])
    assert np.abs(np.diff(np.sort(angles))).min() > 0.01
    np.testing.assert_allclose(env.position, arm, atol=5e-3)


def free_joints(env: ChunkedLiberoEnv) -> NDArray[np.int64]:
    """(N, 7) addresses of the poses of N objects."""
    model = env._env.sim.model._model
    return model.jnt_qposadr[model.jnt_type == 0][:, None] + np.arange(7)


@pytest.mark.parametrize("kind", MAGNITUDES)
def test_a_shifted_start_is_the_same_bit_by_bit_after_any_history(env: ChunkedLiberoEnv, kind: str) -> None:
    first, physics = begun(env, START, kind)
    env.step_chunk(ACTIONS)
    for other in MAGNITUDES:
        begun(env, OTHER, other)
        env.step_chunk(ACTIONS)
    again, physics_again = begun(env, START, kind)
    assert all(same(again, first).values())
    np.testing.assert_array_equal(physics_again, physics)
    elsewhere, _ = begun(env, START, kind, 1.5 * MAGNITUDES[kind][0])
    assert not same(elsewhere, first)[SCENE], "a larger magnitude is another scene"


def test_after_shifts_a_start_has_the_bits_of_a_fresh_environment(env: ChunkedLiberoEnv) -> None:
    for kind in MAGNITUDES:
        begun(env, OTHER, kind)
        env.step_chunk(ACTIONS)
    observation, physics = begun(env, START)
    outcome = env.step_chunk(ACTIONS)
    fresh = built()
    expected, expected_physics = begun(fresh, START)
    expected_outcome = fresh.step_chunk(ACTIONS)
    fresh.close()
    assert all(same(observation, expected).values())
    np.testing.assert_array_equal(physics, expected_physics)
    np.testing.assert_array_equal(outcome.positions, expected_outcome.positions)
    assert outcome.observation is not None and expected_outcome.observation is not None
    assert all(same(outcome.observation, expected_outcome.observation).values())
