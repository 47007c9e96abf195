import numpy as np
import pytest
import torch
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.demos.expert import (
    CLOSED,
    FINGER_DEPTH,
    OPEN,
    PAD_HEIGHT,
    SOLVABLE_TASKS,
    Extent,
    PickAndPlace,
    Segment,
    plan,
    require_solvable,
)
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.smoothness import jerk_rms

ORIGIN = np.array([-0.2, 0.0, 0.3])
BOTTLE = Extent(np.array([0.0, -0.13, 0.0]), np.array([0.04, -0.07, 0.14]))
GRASP = BOTTLE.grasps()[0]
SHIFT = np.array([-0.05, 0.35])


def a_plan(speed: float = 1.0, strokes: int = 0):
    return plan(ORIGIN, BOTTLE, GRASP, SHIFT, release_height=0.11, rim=0.14, speed=speed, strokes=strokes)


def test_a_segment_rests_before_and_after_and_passes_half_way_at_1875_thousandths_of_the_mean_speed():
    displacement = np.array([0.3, 0.0, -0.1])
    segment = Segment(displacement, start=1.0, duration=2.0)
    for time, travelled, speed in [(0.5, 0.0, 0.0), (2.0, 0.5, 1.875), (3.5, 1.0, 0.0)]:
        position, velocity = segment.at(time)
        np.testing.assert_allclose(position, travelled * displacement)
        np.testing.assert_allclose(velocity, speed * displacement / 2.0, atol=1e-15)


def test_a_segment_has_the_jerk_of_the_minimum_jerk_polynomial():
    # ∫ j² dt = 720 d² / T⁵, the least for rest-to-rest motion (Flash & Hogan 1985).
    segment, dt = Segment(np.array([0.2, 0.0, 0.0]), start=0.0, duration=1.5), 1e-3
    x = np.array([segment.at(time)[0][0] for time in np.arange(0.0, 1.5 + dt, dt)])
    jerk = np.diff(x, n=3) / dt**3
    assert np.sum(jerk**2) * dt == pytest.approx(720 * 0.2**2 / 1.5**5, rel=1e-2)


def test_the_reference_velocity_is_the_derivative_of_the_reference_position():
    path, dt = a_plan(), 1e-5
    for time in np.arange(0.05, path.segments[-1].end, 0.1):
        difference = (path.reference(time + dt)[0] - path.reference(time - dt)[0]) / (2 * dt)
        np.testing.assert_allclose(path.reference(time)[1], difference, atol=1e-6)


def test_strokes_are_at_constant_speed_with_rests_and_arrive_no_later_than_the_eased_displacement():
    displacement = np.array([0.3, 0.0, -0.1])
    strokes = Segment(displacement, start=1.0, duration=2.4).strokes(2)
    for time, travelled, speed in [(1.4, 0.25, 1.5), (2.0, 0.5, 0.0), (2.6, 0.75, 1.5), (3.1, 1.0, 0.0)]:
        position, velocity = (
            np.sum(parts, axis=0) for parts in zip(*(s.at(time) for s in strokes), strict=True)
        )
        np.testing.assert_allclose(position, travelled * displacement)
        np.testing.assert_allclose(velocity, speed * displacement / 2.4, atol=1e-15)


@pytest.mark.parametrize("strokes", [0, 2])
def test_the_gripper_closes_at_rest_around_the_item_and_opens_at_rest_over_the_target(strokes):
    path = a_plan(strokes=strokes)
    assert [path.gripper(t) for t in (0.0, path.close_at, path.open_at - 0.01, path.open_at)] == [
        OPEN,
        CLOSED,
        CLOSED,
        OPEN,
    ]
    for time, expected in [
        (path.close_at, GRASP),
        (path.open_at, GRASP + [*SHIFT, 0.11 - BOTTLE.low[2]]),
    ]:
        position, velocity = path.reference(time)
        np.testing.assert_allclose(position, expected, atol=1e-12)
        np.testing.assert_allclose(velocity, 0.0, atol=1e-12)


def test_the_carried_item_clears_the_rim_before_it_is_over_the_target():
    path, radius = a_plan(), 0.1
    over = [
        position[2] - (GRASP - BOTTLE.low)[2]
        for position in (path.reference(t)[0] for t in np.arange(path.close_at, path.segments[3].end, 0.01))
        if np.abs(position[1] - (GRASP[1] + SHIFT[1])) < radius
    ]
    assert min(over[: len(over) // 2]) > 0.14


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_speed_scales_every_movement(speed):
    for slow, fast in zip(a_plan().segments, a_plan(speed).segments, strict=True):
        assert fast.duration == pytest.approx(slow.duration / speed)


def test_a_speed_of_zero_is_rejected():
    with pytest.raises(ValueError, match="positive factor, got 0"):
        a_plan(speed=0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ([0, 0, 0], [0.04, 0.06, 0.14], [0.02, 0.03, 0.14 - FINGER_DEPTH]),  # a bottle: near its top
        ([0, 0, 0], [0.08, 0.04, 0.018], [0.04, 0.02, PAD_HEIGHT]),  # a flat box: just over the floor
        ([0, 0, 0], [0.1, 0.1, 0.05], [0.05, 0.095, 0.02]),  # a bowl: by its rim
    ],
)
def test_the_grasp_suits_the_size_of_the_item(low, high, expected):
    grasps = Extent(np.array(low, dtype=float), np.array(high, dtype=float)).grasps()
    np.testing.assert_allclose(grasps[0], expected)


def test_a_neighbour_blocks_a_grasp_where_the_hand_would_land_on_it():
    grasp = np.array([0.0, 0.0, 0.01])
    can, flat = np.array([0.03, 0.03, 0.08]), np.array([0.03, 0.03, 0.02])
    for corner, size, blocked in [
        ([0.02, 0.08, 0.0], can, True),  # under the hand
        ([0.02, 0.08, 0.0], flat, False),  # so low that the hand stays over it
        ([0.0, 0.03, 0.0], flat, True),  # under a finger
        ([0.05, 0.0, 0.0], can, False),  # beside the hand
    ]:
        assert Extent(np.array(corner), np.array(corner) + size).blocks(grasp) is blocked


def test_a_long_item_may_be_held_off_its_middle_and_a_wide_one_by_its_other_rim():
    box = Extent(np.zeros(3), np.array([0.08, 0.04, 0.02])).grasps()
    assert sorted(round(float(x), 3) for x, _, _ in box) == [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07]
    bowl = Extent(np.zeros(3), np.array([0.1, 0.1, 0.05])).grasps()
    assert [(round(float(y), 3), round(float(z), 3)) for _, y, z in bowl] == [
        (0.095, 0.02),
        (0.095, 0.025),
        (0.005, 0.02),
        (0.005, 0.025),
    ]


def test_a_task_that_the_expert_cannot_do_is_named_with_those_that_it_can():
    require_solvable([(suite, task_id) for suite, ids in SOLVABLE_TASKS.items() for task_id in ids])
    with pytest.raises(ValueError, match="libero_spatial task 4, libero_10 task 0.*can do: libero_object 0"):
        require_solvable([("libero_object", 0), ("libero_spatial", 4), ("libero_10", 0)])


@pytest.mark.parametrize(
    ("suite", "task_id", "strokes"),
    [("libero_object", 1, 0), ("libero_spatial", 5, 0), ("libero_spatial", 1, 2)],
)
def test_the_expert_solves_a_flat_box_and_a_bowl_by_its_rim_without_dawdling(suite, task_id, strokes):
    from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

    env = ChunkedLiberoEnv(LiberoEnvConfig(task=suite), suite, task_id)
    env.reset_to(Start(suite, task_id, init_state=0, seed=0))
    expert = PickAndPlace(env, strokes=strokes)
    positions = [env.position]
    for _ in range(150):
        action = expert.act()
        assert np.abs(action).max() <= 1.0
        _, _, solved, _, _ = env.step(action)
        positions.append(env.position)
        if solved:
            break
    env.close()
    assert solved
    moved = torch.as_tensor(np.array(positions))
    assert (jerk_rms(moved, env.dt) > 15) == (strokes > 0)  # m/s³
