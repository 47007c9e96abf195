"""The limits hold whatever is commanded; what keeps to them is left alone; what does not is met again."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lerobot_smoothvla.filters.limiter import MotionLimiter, Rates
from lerobot_smoothvla.filters.steps import LARGEST_LIMIT

DT = 1 / 30
V, A, J = 150.0, 1000.0, 20000.0
RELATIVE = 2e-6
"""By how much of a limit rounding may go beyond it."""


def follow(commands: NDArray, start: float, v: float = V, a: float = A, j: float = J) -> NDArray:
    """(T,) where one axis goes."""
    limiter = MotionLimiter(Rates(np.full(1, v), np.full(1, a), np.full(1, j)), DT, np.full(1, start))
    return np.concatenate([limiter.follow(np.full(1, command)) for command in commands])


def largest_rates(path: NDArray, start: float) -> list[float]:
    """Largest velocity, acceleration and jerk from rest at `start` on."""
    path = np.concatenate([np.full(3, start), path])
    return [float(np.abs(np.diff(path, n=order)).max()) / DT**order for order in (1, 2, 3)]


def motion() -> NDArray:
    """(300,) of a demonstration, from rest, with less than half of each limit."""
    times = np.arange(300) * DT
    return 15 * (1 - np.cos(0.8 * np.pi * times)) + 5 * (1 - np.cos(1.8 * np.pi * times))


COMMANDS = st.one_of(
    st.lists(st.floats(-100, 100), min_size=4, max_size=80),  # a random policy
    st.lists(st.sampled_from([-1e6, 1e6, 0.0, 1.0]), min_size=4, max_size=80),  # an adversary
    st.lists(st.floats(-3, 3), min_size=4, max_size=80).map(lambda steps: list(np.cumsum(steps))),
    st.lists(st.floats(-100, 100), min_size=1, max_size=4).map(lambda places: list(np.repeat(places, 20))),
)


@settings(deadline=None, max_examples=150)
@given(COMMANDS, st.floats(-50, 50), st.floats(0, 3), st.floats(0.5, 4), st.floats(1, 6))
@example(list(np.tile([1e6, -1e6, -1e6], 20)), 0.0, 1.964, 3.49, 4.94)  # Ruckig finds no way at some step.
def test_no_rate_is_ever_beyond_its_limit(commands, start, log_v, log_a, log_j):
    limits = [10**log_v, 10**log_a, 10**log_j]
    rates = largest_rates(follow(np.asarray(commands), start, *limits), start)
    for rate, limit, order in zip(rates, limits, (1, 2, 3), strict=True):
        rounding = 2**order * np.spacing(100 + 80 * limits[0] * DT) / DT**order
        assert rate <= limit * (1 + RELATIVE) + rounding


@pytest.mark.parametrize("v", [V, LARGEST_LIMIT])
@pytest.mark.parametrize("a", [A, LARGEST_LIMIT])
@pytest.mark.parametrize("j", [J, LARGEST_LIMIT])
def test_limits_that_limit_nothing_leave_the_others_to_do_it(v, a, j):
    commands = np.array([0.01, 1e6, -1e6, 3.0, 3.0, 3.0] * 20)
    path = follow(commands, 0.0, v, a, j)
    assert np.isfinite(path).all() and np.abs(path).max() > 0
    for rate, limit, order in zip(largest_rates(path, 0.0), (v, a, j), (1, 2, 3), strict=True):
        assert rate <= limit * (1 + RELATIVE) + 2**order * np.spacing(np.abs(path).max()) / DT**order


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=100), st.floats(-50, 50))
def test_commands_within_the_limits_are_not_touched(jerks, start):
    """Any path from rest to rest whose own largest rates are the limits: to the last bit."""
    velocity = np.cumsum(np.cumsum(np.asarray(jerks) * J)) * DT**2
    path = start + np.cumsum(np.concatenate([velocity, velocity[::-1], np.zeros(3)])) * DT
    v, a, j = (max(rate, 1e-3) for rate in largest_rates(path, start))
    assert np.array_equal(follow(path, start, v, a, j), path)


@pytest.mark.parametrize("distance", [2.0, 20.0, -60.0])
def test_an_arm_that_stands_elsewhere_catches_up_with_a_motion_and_stays_with_it(distance: float):
    path = motion()
    answer = follow(path, path[0] - distance)
    assert abs(answer[0] - (path[0] - distance)) <= J * DT**3 * (1 + RELATIVE), "it does not jump"
    assert np.array_equal(answer[60:], path[60:]), "after two seconds at the latest"


def test_a_jump_in_a_motion_is_led_over():
    path = motion()
    path[150:] += 15
    answer = follow(path, path[0])
    assert np.array_equal(answer[:150], path[:150])
    assert np.array_equal(answer[180:], path[180:])


def test_where_commands_stop_dead_it_overshoots_by_its_braking_distance_and_comes_to_rest_there():
    path = motion()
    fastest = int(np.abs(np.diff(path)).argmax())
    path[fastest + 1 :] = path[fastest]
    answer = follow(path, path[0])
    speed = path[fastest] - path[fastest - 1]
    braking = abs(speed) / DT * (abs(speed) / DT / A + A / J) / 2 + abs(speed)
    assert 0 < np.abs(answer - path).max() <= braking
    assert np.array_equal(answer[fastest + 20 :], path[fastest + 20 :])


@pytest.mark.parametrize("target", [0.3, 5.0, -90.0])
def test_a_place_is_reached_without_overshoot_and_kept(target: float):
    answer = follow(np.full(150, target), 0.0)
    assert np.array_equal(answer[100:], np.full(50, target))
    assert np.abs(answer).max() <= abs(target) * (1 + 1e-9)


def test_axes_do_not_mix():
    rng = np.random.default_rng(0)
    commands, start = rng.uniform(-50, 50, (40, 3)), rng.uniform(-50, 50, 3)
    limits = [np.array(values) for values in ([100.0, 50.0, 10.0], [900.0, 500.0, 60.0], [2e4, 9e3, 800.0])]
    together = MotionLimiter(Rates(*limits), DT, start)
    answer = np.stack([together.follow(command) for command in commands])
    for axis in range(3):
        alone = follow(commands[:, axis], start[axis], *(limit[axis] for limit in limits))
        np.testing.assert_allclose(answer[:, axis], alone, rtol=0, atol=1e-9)
