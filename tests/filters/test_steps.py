"""Closed forms and the limits themselves; no simulator."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from torch import Tensor

from lerobot_smoothvla.filters.steps import (
    ActionFilterStep,
    ChunkBlendStep,
    ExponentialFilterStep,
    JerkLimitStep,
    MotionLimits,
)

DT = 0.05
ACCELERATION, JERK = 4.0, 80.0


def exponential(**settings) -> ExponentialFilterStep:
    return ExponentialFilterStep(**{"alpha": 0.4, **settings})


def jerk_limit(**settings) -> JerkLimitStep:
    return JerkLimitStep(**{"dt": DT, "max_acceleration": [ACCELERATION], "max_jerk": [JERK], **settings})


def blend(**settings) -> ChunkBlendStep:
    return ChunkBlendStep(**{"n_action_steps": 4, **settings})


def commands(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


STEPS = {"exponential": exponential, "jerk_limit": jerk_limit, "blend": blend}
STEPWISE = {"exponential": exponential, "jerk_limit": jerk_limit}


def test_exponential_smoothing_of_a_step_is_the_closed_form():
    step = exponential(alpha=0.3)
    answer = step.action(torch.ones(1, 40, 3))
    expected = 1 - 0.7 ** torch.arange(1, 41)
    torch.testing.assert_close(answer[0, :, 0], expected)
    assert torch.equal(answer[..., 2], torch.ones(1, 40)), "the gripper"


def test_exponential_smoothing_of_positions_begins_where_the_first_one_is():
    answer = exponential(alpha=0.3, commands="position").action(torch.full((1, 5, 2), 7.0))
    assert torch.equal(answer, torch.full((1, 5, 2), 7.0))


def test_an_alpha_of_one_changes_nothing():
    given = commands(2, 6, 7)
    assert torch.equal(exponential(alpha=1.0).action(given), given)


def test_exponential_smoothing_attenuates_as_a_filter_of_first_order():
    """Gain of a_t = α·u_t + (1 − α)·a_{t−1} at frequency ω: α / |1 − (1 − α)·e^(−iω)|."""
    alpha, omega = 0.4, 2 * torch.pi / 10
    wave = torch.sin(omega * torch.arange(400.0))
    answer = exponential(alpha=alpha, grippers=[]).action(wave[None, :, None])[0, 200:, 0]
    gain = alpha / abs(1 - (1 - alpha) * torch.exp(torch.tensor(-1j * omega)))
    # A wave of period 10 samples whose amplitude is the gain has this root mean square.
    assert answer.square().mean().sqrt() == pytest.approx(float(gain) / 2**0.5, rel=1e-3)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 1000),
    st.floats(0.5, 20),
    st.floats(5, 500),
    st.sampled_from([0.0125, 0.05, 0.1]),
)
def test_velocity_commands_keep_to_the_limits_at_every_step(seed, acceleration, jerk, dt):
    step = jerk_limit(dt=dt, max_acceleration=[acceleration], max_jerk=[jerk], grippers=[])
    velocity = step.action(commands(1, 60, 3, seed=seed).double())[0]
    velocity = torch.cat([torch.zeros(2, 3), velocity])  # At rest before.
    assert velocity.diff(dim=0).abs().max() / dt <= acceleration * (1 + 1e-6)
    assert velocity.diff(n=2, dim=0).abs().max() / dt**2 <= jerk * (1 + 1e-6)
    assert velocity.abs().max() <= 1 + 1e-6, "nothing is asked for that was not commanded"


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.floats(0.2, 3), st.floats(0.5, 20), st.floats(5, 500))
def test_position_commands_keep_to_the_limits_at_every_step(seed, velocity, acceleration, jerk):
    step = jerk_limit(
        commands="position",
        max_velocity=[velocity],
        max_acceleration=[acceleration],
        max_jerk=[jerk],
        grippers=[],
    )
    position = step.action(commands(1, 60, 3, seed=seed).double())[0]
    position = torch.cat([position[:1], position[:1], position[:1], position])
    for order, limit in ((1, velocity), (2, acceleration), (3, jerk)):
        assert position.diff(n=order, dim=0).abs().max() / DT**order <= limit * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["displacement", "position"])
def test_a_constant_command_is_reached_as_soon_as_the_limits_allow_and_kept(kind):
    step = jerk_limit(commands=kind, max_velocity=[1.0], grippers=[])
    step.action(torch.zeros(1, 1, 1))
    answer = step.action(torch.ones(1, 80, 1).double())[0, :, 0]
    # From rest to 1 u: jerk up for a/j = 0.05 s, on at a for 0.2 s, jerk down for 0.05 s; 0.3 s in all.
    if kind == "displacement":
        assert answer[4] < 1 - 1e-3
        torch.testing.assert_close(answer[5:], torch.ones(75).double())
    else:
        torch.testing.assert_close(answer[-1], torch.tensor(1.0).double())
        assert answer[10] < 1
        assert answer.max() <= 1 + 1e-9
        assert (answer.diff() >= -1e-9).all()


def test_commands_within_the_limits_are_followed_exactly():
    """Velocities along a path of constant jerk, which the limits allow."""
    times = torch.arange(1, 5) * DT
    ramp = (40.0 * times**2 / 2)[None, :, None]
    answer = jerk_limit(max_jerk=[1e5], max_acceleration=[1e4], grippers=[]).action(ramp)
    torch.testing.assert_close(answer, ramp)


def test_each_axis_has_its_limit():
    step = jerk_limit(max_acceleration=[1.0, 4.0], max_jerk=[1e6])
    answer = step.action(torch.ones(1, 3, 3))[0]
    torch.testing.assert_close(answer[0], torch.tensor([1.0 * DT, 4.0 * DT, 1.0]), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="one for each of action 0, action 1, action 2, got .1.0, 4.0"):
        step.reset()
        step.action(torch.ones(1, 3, 4))


def test_blending_goes_linearly_from_the_old_chunk_to_the_new_one():
    step = blend()
    first, second = torch.zeros(1, 8, 2), torch.ones(1, 8, 2)
    assert torch.equal(step.action(first), torch.zeros(1, 4, 2))
    answer = step.action(second)
    torch.testing.assert_close(answer[0, :, 0], torch.tensor([0.2, 0.4, 0.6, 0.8]))
    assert torch.equal(answer[0, :, 1], torch.ones(4)), "the gripper"


def test_no_more_is_blended_than_the_old_chunk_had_planned():
    step = blend()
    step.action(torch.zeros(1, 6, 1).expand(1, 6, 2))
    answer = step.action(torch.ones(1, 6, 2))
    torch.testing.assert_close(answer[0, :, 0], torch.tensor([1 / 3, 2 / 3, 1.0, 1.0]))
    step = blend(n_blend=1)
    step.action(torch.zeros(1, 8, 2))
    torch.testing.assert_close(step.action(torch.ones(1, 8, 2))[0, :, 0], torch.tensor([0.5, 1, 1, 1]))


def test_chunks_that_agree_are_left_as_they_are():
    path = commands(1, 16, 7)
    step = blend()
    answer = torch.cat([step.action(path[:, begin : begin + 8]) for begin in (0, 4, 8)], dim=1)
    torch.testing.assert_close(answer, path[:, :12])


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_a_reset_begins_anew(make: Callable[..., ActionFilterStep]):
    step, given = make(), commands(2, 8, 7)
    first, then = step.action(given), step.action(given)
    assert not torch.equal(first, then)
    step.reset()
    assert torch.equal(step.action(given), first)


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_grippers_are_left_alone_and_rows_do_not_mix(make: Callable[..., ActionFilterStep]):
    both, alone = make(grippers=[6, 2]), make(grippers=[6, 2])
    for seed in (0, 1):
        given = commands(2, 8, 7, seed=seed)
        before = given.clone()
        answer, second = both.action(given), alone.action(given[1:])
        assert torch.equal(given, before), "the chunk itself stays"
        assert torch.equal(answer[1:], second)
        for gripper in (2, 6):
            assert torch.equal(answer[..., gripper], given[:, : answer.shape[1], gripper])


@pytest.mark.parametrize("make", STEPWISE.values(), ids=STEPWISE)
def test_control_steps_one_by_one_are_the_executed_steps_of_chunks(make: Callable[..., ActionFilterStep]):
    """What `select_action` gives on a robot; what a chunk holds beyond the executed steps does not matter."""
    by_chunk, by_step = make(n_action_steps=3), make(n_action_steps=3)
    for seed in range(4):
        given = commands(2, 5, 7, seed=seed)
        expected = torch.stack([by_step.action(action) for action in given[:, :3].unbind(1)], dim=1)
        assert torch.equal(by_chunk.action(given), expected)


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_a_filter_is_saved_with_a_post_processor(make: Callable[..., ActionFilterStep], tmp_path: Path):
    settings = {"grippers": [6, 2]}
    pipeline = PolicyProcessorPipeline(
        [make(**settings)],
        name="policy_postprocessor",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    pipeline.save_pretrained(tmp_path)
    loaded = PolicyProcessorPipeline.from_pretrained(
        tmp_path,
        config_filename="policy_postprocessor.json",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    assert loaded.steps[0].get_config() == make(**settings).get_config()
    for seed in (0, 1):
        assert torch.equal(loaded(commands(1, 8, 7, seed=seed)), pipeline(commands(1, 8, 7, seed=seed)))
    pipeline.reset()
    fresh = make(**settings)
    assert torch.equal(pipeline(commands(1, 8, 7)), fresh.action(commands(1, 8, 7)))


def test_limits_of_demonstrations_are_quantiles_of_their_differences():
    walk = torch.cat([torch.zeros(1, 2), commands(400, 2)]).double()
    limits = MotionLimits.of_demonstrations([walk[:200], walk[200:]], DT, "displacement", quantile=1.0)
    for axis in range(2):
        parts = [walk[:200, axis], walk[200:, axis]]
        largest = [
            max(part.diff(n=order).abs().max().item() for part in parts) / DT**order for order in (1, 2)
        ]
        assert [limits.acceleration[axis], limits.jerk[axis]] == pytest.approx(largest)
    assert limits.velocity == []
    lower = MotionLimits.of_demonstrations([walk], DT, "displacement", quantile=0.5)
    share = (walk.diff(dim=0).abs() / DT <= torch.tensor(lower.acceleration)).double().mean(dim=0)
    assert share.tolist() == pytest.approx([0.5, 0.5], abs=0.01)


def test_limits_of_positions_are_one_derivative_higher():
    times = torch.arange(50.0).double() * DT
    limits = MotionLimits.of_demonstrations([(times**3)[:, None]], DT, "position", quantile=1.0)
    assert limits.jerk == pytest.approx([6.0])
    assert limits.velocity[0] == pytest.approx(3 * (times[-1].item() - DT / 2) ** 2, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: exponential(alpha=0.0), r"`alpha` should be in \(0, 1\], got 0.0"),
        (lambda: exponential(alpha=1.5), "got 1.5"),
        (lambda: jerk_limit(max_jerk=[]), "jerk should be positive, .* got \\[\\]"),
        (
            lambda: jerk_limit(max_acceleration=[1.0, -1.0]),
            r"acceleration should be positive.*got \[1.0, -1.0\]",
        ),
        (lambda: jerk_limit(max_jerk=[math.inf]), r"jerk should be positive, up to 1e\+09, .* got \[inf\]"),
        (lambda: jerk_limit(max_jerk=[math.nan]), r"jerk should be positive.*got \[nan\]"),
        (lambda: jerk_limit(dt=0.0), "`dt` should be a positive control period in s, got 0.0"),
        (lambda: jerk_limit(commands="position"), "need limits of the velocity"),
        (lambda: blend(n_blend=5), r"`n_blend` should be in \[1, 4\]"),
        (lambda: blend().action(torch.zeros(1, 4, 7)), "longer than the 4 steps"),
        (lambda: blend().action(torch.zeros(1, 7)), "one by one cannot be blended"),
        (lambda: MotionLimits.of_demonstrations([torch.zeros(2, 3)], DT, "displacement", 0.9), "more than 2"),
        (
            lambda: MotionLimits.of_demonstrations([torch.zeros(9, 1)], DT, "displacement", 0.9),
            r"acceleration should be positive.*\[0.0\]",
        ),
    ],
)
def test_what_cannot_be_filtered_is_refused(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_another_number_of_rows_needs_a_reset(make: Callable[..., ActionFilterStep]):
    step = make()
    step.action(commands(2, 8, 7))
    with pytest.raises(ValueError, match="acted on 2 rows .* gets 1; reset it"):
        step.action(commands(1, 8, 7))
