"""Closed forms, reference values of the original implementation, and invariances."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lerobot_smoothvla.smoothness import (
    acceleration,
    boundary_and_interior_jerk_rms,
    chunk_jerk_rms,
    commanded_jerk_rms,
    commanded_path_length,
    extent,
    jerk,
    jerk_rms,
    log_dimensionless_jerk,
    measure,
    path_length,
    spectral_arc_length,
    speed,
    time_to_success,
    velocity,
)

DT = 0.05

seeds = st.integers(0, 2**31 - 1)
factors = st.floats(0.2, 5.0)


def minimum_jerk(n_steps: int, length: float = 1.0, dims: int = 3) -> Tensor:
    """(n_steps + 1, dims) positions of a straight minimum-jerk segment along the first axis, m."""
    u = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    positions = torch.zeros(n_steps + 1, dims, dtype=torch.float64)
    positions[:, 0] = length * (10 * u**3 - 15 * u**4 + 6 * u**5)
    return positions


def random_walk(seed: int, *shape: int) -> Tensor:
    """Positions of a jerky but moving arm, m."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).cumsum(dim=-2) * 0.01


# Rows of the original implementation by Balasubramanian (2019 version), at fc = 10 Hz, padlevel = 4 and
# amp_th = 0.05: profile, sampling rate in Hz, duration in s, SPARC, log dimensionless jerk.
REFERENCE = [
    ("minimum_jerk", 20, 5.0, -1.4058293244214655, -5.224139067539933),
    ("minimum_jerk", 20, 7.5, -1.4025410882668525, -5.256287444400843),
    ("minimum_jerk", 100, 2.0, -1.4058292841558582, -5.272547142146425),
    ("two_submovements", 20, 5.0, -2.2445461711996173, -8.001490406100237),
    ("two_submovements", 20, 7.5, -2.2663977209230186, -8.031742846147296),
    ("two_submovements", 100, 2.0, -2.2445454583876274, -8.046358494225897),
    ("tremor", 20, 5.0, -2.1820188360390937, -15.843845429553282),
    ("tremor", 20, 7.5, -2.2392824589377893, -17.46461211704827),
    ("tremor", 100, 2.0, -2.029391203289211, -12.760862550871373),
    ("triangle", 20, 5.0, -1.4085113605816697, -7.377758908227874),
    ("triangle", 20, 7.5, -1.4085960026195126, -7.78322401633604),
    ("triangle", 100, 2.0, -1.4085380161100645, -8.070906088787819),
    ("half_sine", 20, 5.0, -1.5623442975097899, -3.885588135167635),
    ("half_sine", 20, 7.5, -1.5634430033670408, -3.885693406573226),
    ("half_sine", 100, 2.0, -1.562323070438924, -3.8857287722002125),
]


def speed_profile(name: str, rate: int, duration: float) -> Tensor:
    t = torch.arange(round(rate * duration), dtype=torch.float64) / rate
    u = t / duration
    bell = 30 * u**2 - 60 * u**3 + 30 * u**4
    w = (2 * u) % 1
    profiles = {
        "minimum_jerk": bell,
        "two_submovements": 30 * w**2 - 60 * w**3 + 30 * w**4,
        "tremor": bell * (1 + 0.3 * torch.sin(2 * math.pi * 6 * t)),
        "triangle": 2 * (1 - (2 * u - 1).abs()),
        "half_sine": math.pi / 2 * torch.sin(math.pi * u),
    }
    return profiles[name] / duration


@pytest.mark.parametrize(("name", "rate", "duration", "sparc", "ldlj"), REFERENCE)
def test_both_dimensionless_measures_reproduce_the_original_implementation(name, rate, duration, sparc, ldlj):
    profile = speed_profile(name, rate, duration)

    assert spectral_arc_length(profile, 1 / rate).item() == pytest.approx(sparc, rel=1e-9)
    assert log_dimensionless_jerk(profile[:, None], 1 / rate).item() == pytest.approx(ldlj, rel=1e-9)


def test_a_cubic_has_exactly_its_constant_jerk():
    t = torch.arange(20, dtype=torch.float64) * DT
    coefficients = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    positions = t[:, None] ** 3 * coefficients + t[:, None] ** 2 - 3 * t[:, None] + 1

    expected = 6 * coefficients
    torch.testing.assert_close(jerk(positions, DT), expected.expand(17, 3), rtol=0, atol=1e-8)
    assert jerk_rms(positions, DT).item() == pytest.approx(expected.norm().item())


def test_a_parabola_has_exactly_its_constant_acceleration():
    time = torch.arange(12, dtype=torch.float64) * DT
    positions = (time**2)[:, None] * torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    expected = torch.tensor([2.0, -4.0, 1.0], dtype=torch.float64).expand(10, 3)
    torch.testing.assert_close(acceleration(positions, DT), expected)
    with pytest.raises(ValueError, match="An acceleration needs at least 3 samples, got 2"):
        acceleration(positions[:2], DT)


def test_a_parabola_has_no_jerk():
    t = torch.arange(10, dtype=torch.float64)[:, None]
    assert jerk_rms(3 * t**2 - t, 1.0).item() == pytest.approx(0, abs=1e-9)


def test_a_finely_sampled_minimum_jerk_segment_has_the_closed_forms():
    n_steps, length, duration = 4000, 0.3, 2.0
    dt = duration / n_steps
    positions = minimum_jerk(n_steps, length)

    # ∫ jerk² = 720 L²/T⁵ and v_peak = 15 L / 8 T.
    ldlj = log_dimensionless_jerk(velocity(positions, dt), dt).item()
    assert ldlj == pytest.approx(-math.log(720 / (15 / 8) ** 2), abs=5e-3)
    assert jerk_rms(positions, dt).item() == pytest.approx(math.sqrt(720) * length / duration**3, rel=2e-3)
    assert speed(positions, dt).max().item() == pytest.approx(15 / 8 * length / duration, rel=1e-5)
    assert path_length(positions).item() == pytest.approx(length)


def test_a_minimum_jerk_segment_is_smoother_than_the_same_with_tremor_by_every_measure():
    smooth = minimum_jerk(60, 0.3)
    shaken = smooth + 0.002 * torch.sin(torch.arange(61, dtype=torch.float64) * 1.9)[:, None]
    executed = torch.tensor([60])
    a, b = measure(smooth, DT, executed), measure(shaken, DT, executed)

    assert a["jerk_rms"] < b["jerk_rms"] and a["ldlj"] > b["ldlj"] and a["sparc"] > b["sparc"]


def test_a_corner_at_constant_speed_costs_ldlj():
    steps = torch.full((40, 2), 0.0, dtype=torch.float64)
    steps[:20, 0] = steps[20:, 1] = 0.01

    assert log_dimensionless_jerk(steps / DT, DT).isfinite()
    assert log_dimensionless_jerk(steps.norm(dim=-1, keepdim=True) / DT, DT).item() == math.inf


@settings(deadline=None, max_examples=30)
@given(seed=seeds, time=factors, amplitude=factors)
def test_jerk_rms_is_linear_in_amplitude_and_falls_with_the_cube_of_time(seed, time, amplitude):
    positions = random_walk(seed, 30, 3)
    expected = jerk_rms(positions, DT) * amplitude / time**3
    torch.testing.assert_close(jerk_rms(positions * amplitude, DT * time), expected)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, time=factors, amplitude=factors)
def test_ldlj_does_not_change_with_time_and_amplitude(seed, time, amplitude):
    velocities = velocity(random_walk(seed, 30, 3), DT)
    scaled = log_dimensionless_jerk(velocities * amplitude / time, DT * time)
    torch.testing.assert_close(scaled, log_dimensionless_jerk(velocities, DT))


@settings(deadline=None, max_examples=30)
@given(time=st.floats(0.5, 5.0), amplitude=factors, submovements=st.integers(1, 3))
def test_sparc_does_not_change_with_time_and_amplitude_where_its_threshold_cuts(
    time, amplitude, submovements
):
    """Above 10 Hz the fixed cut would take over, hence segments of at least 1 s."""
    segment = speed(minimum_jerk(40), DT).repeat(submovements)
    scaled = spectral_arc_length(segment * amplitude / time, DT * time)
    torch.testing.assert_close(scaled, spectral_arc_length(segment, DT))


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_rotation_and_translation_change_no_measure(seed):
    positions = random_walk(seed, 30, 3)
    rotation = torch.linalg.qr(random_walk(seed + 1, 3, 3)).Q
    executed = torch.tensor([8, 8, 8, 5])
    moved = measure(positions @ rotation + 1, DT, executed)
    assert moved == pytest.approx(measure(positions, DT, executed), rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, moving_speed=st.sampled_from([None, 0.01, 0.3]))
def test_batched_equals_looped(seed, moving_speed):
    batch = random_walk(seed, 2, 3, 25, 3)
    batch[0, 0] = 0  # one arm stands still
    executed = torch.tensor([8, 0, 8, 8])
    rows = list(batch.flatten(0, 1))

    def assert_same(function):
        looped = torch.stack([function(row) for row in rows]).view(2, 3)
        torch.testing.assert_close(function(batch), looped, equal_nan=True)

    assert_same(lambda p: jerk_rms(p, DT, moving_speed))
    assert_same(lambda p: boundary_and_interior_jerk_rms(p, DT, executed, moving_speed)[0])
    assert_same(lambda p: boundary_and_interior_jerk_rms(p, DT, executed, moving_speed)[1])
    assert_same(lambda p: log_dimensionless_jerk(velocity(p, DT), DT))
    assert_same(lambda p: spectral_arc_length(speed(p, DT), DT))
    assert_same(path_length)
    assert_same(extent)


def naive_jerk_rms(
    positions: Tensor, executed: list[int], moving_speed: float | None, part: Callable[[list[int]], Hashable]
) -> dict[Hashable, float]:
    """Jerk RMS of each part, to which a sample belongs by the chunks of its three control steps."""
    owner = [chunk for chunk, n in enumerate(executed) for _ in range(n)]
    jerks, speeds = jerk(positions, DT), speed(positions, DT)
    squares: dict[Hashable, list[float]] = defaultdict(list)
    for k in range(len(owner) - 2):
        if moving_speed is None or max(speeds[k : k + 3]) > moving_speed:
            squares[part(owner[k : k + 3])].append(jerks[k].square().sum().item())
    return {name: math.sqrt(sum(terms) / len(terms)) for name, terms in squares.items()}


executed_steps = st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(lambda e: sum(e) >= 3)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, executed=executed_steps, moving_speed=st.sampled_from([None, 0.3]))
def test_boundary_and_interior_equal_a_naive_loop(seed, executed, moving_speed):
    positions = random_walk(seed, sum(executed) + 1, 3)
    expected = naive_jerk_rms(positions, executed, moving_speed, lambda chunks: len(set(chunks)) > 1)
    measured = boundary_and_interior_jerk_rms(positions, DT, torch.tensor(executed), moving_speed)
    for value, crosses in zip(measured, (True, False), strict=True):
        assert value.item() == pytest.approx(expected.get(crosses, math.nan), nan_ok=True)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, executed=executed_steps, moving_speed=st.sampled_from([None, 0.3]))
def test_the_jerk_of_chunks_equals_a_naive_loop(seed, executed, moving_speed):
    positions = random_walk(seed, sum(executed) + 1, 3)
    of_chunk = naive_jerk_rms(positions, executed, moving_speed, lambda chunks: chunks[-1])
    measured = chunk_jerk_rms(positions, DT, torch.tensor(executed), moving_speed)
    expected = [of_chunk.get(chunk, math.nan) for chunk in range(len(executed))]
    assert measured.tolist() == pytest.approx(expected, nan_ok=True)


def test_a_kink_at_a_chunk_boundary_is_boundary_jerk_alone():
    steps = torch.zeros(24, 3, dtype=torch.float64)
    steps[:8, 0] = steps[8:, 1] = 0.01
    positions = torch.cat([torch.zeros(1, 3, dtype=torch.float64), steps.cumsum(dim=0)])
    boundary, interior = boundary_and_interior_jerk_rms(positions, DT, torch.tensor([8, 8, 8]))

    assert boundary.item() > 10
    assert interior.item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("pause", [0, 10, 200])
def test_stillness_does_not_dilute_the_jerk_of_motion(pause):
    shaken = random_walk(0, 30, 3) - random_walk(0, 30, 3)[0]
    still = torch.zeros(3 + pause, 3, dtype=torch.float64)
    positions = torch.cat([still, shaken])

    shortest = torch.cat([still[:3], shaken])
    assert jerk_rms(positions, DT, 0.01).item() == pytest.approx(jerk_rms(shortest, DT, 0.01).item())


def test_an_abrupt_stop_counts_in_full():
    """Speeds 1, 1, 1, 0, 0, 0: jerks 0, -1, 1, 0, of which the last alone lies wholly in the stillness."""
    positions = torch.tensor([0.0, 1, 2, 3, 3, 3, 3])[:, None]
    assert jerk_rms(positions, 1.0, 0.5).item() == pytest.approx(math.sqrt(2 / 3))


def test_trembling_on_the_spot_adds_to_the_path_but_not_to_the_extent():
    positions = torch.tensor([0.0, 1.0]).repeat(50)[:, None]
    assert (path_length(positions).item(), extent(positions).item()) == (99, 1)


def test_time_to_success_is_that_of_the_first_success():
    success = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]]).bool()
    expected = torch.tensor([math.nan, 0.15, 0.05])
    torch.testing.assert_close(time_to_success(success, DT), expected, equal_nan=True)


def test_measure_names_every_term_with_its_unit_value():
    positions = minimum_jerk(40, 0.4)
    terms = measure(positions, DT, torch.tensor([16, 16, 8]))

    assert (terms["path_length"], terms["extent"]) == pytest.approx((0.4, 0.4))
    assert terms["duration"] == pytest.approx(2.0)
    assert 0.8 < terms["moving_share"] < 1
    assert terms["jerk_rms"] == pytest.approx(jerk_rms(positions, DT, 0.01).item())
    assert terms["ldlj"] == pytest.approx(log_dimensionless_jerk(velocity(positions, DT), DT).item())
    assert terms["sparc"] == pytest.approx(spectral_arc_length(speed(positions, DT), DT).item())
    low, high = sorted((terms["boundary_jerk_rms"], terms["interior_jerk_rms"]))
    assert low < terms["jerk_rms"] < high


@pytest.mark.parametrize("n_steps", range(6))
def test_measure_of_a_motionless_episode_of_any_length_is_nan_and_not_an_error(n_steps):
    terms = measure(torch.ones(n_steps + 1, 3), DT, torch.tensor([n_steps]))

    undefined = {name for name, value in terms.items() if math.isnan(value)}
    assert undefined == {"jerk_rms", "boundary_jerk_rms", "interior_jerk_rms", "ldlj", "sparc"}
    assert terms["path_length"] == terms["extent"] == terms["moving_share"] == 0
    assert terms["duration"] == pytest.approx(n_steps * DT)


@pytest.mark.parametrize("n_steps", range(1, 6))
def test_measure_of_a_short_moving_episode_is_not_an_error(n_steps):
    terms = measure(random_walk(0, n_steps + 1, 3), DT, torch.tensor([n_steps]))
    assert math.isnan(terms["jerk_rms"]) == math.isnan(terms["ldlj"]) == (n_steps < 3)
    assert terms["path_length"] > 0


def test_measure_of_float32_positions_keeps_the_jerk():
    positions = minimum_jerk(100, 0.4) + 0.8
    single = measure(positions.float(), DT, torch.tensor([100]))["jerk_rms"]
    assert single == pytest.approx(measure(positions, DT, torch.tensor([100]))["jerk_rms"], abs=2e-3)


@pytest.mark.parametrize("dt", [0.0, -0.05, math.nan])
@pytest.mark.parametrize(
    "function",
    [
        lambda dt: velocity(torch.zeros(9, 3), dt),
        lambda dt: jerk(torch.zeros(9, 3), dt),
        lambda dt: jerk_rms(torch.zeros(9, 3), dt),
        lambda dt: log_dimensionless_jerk(torch.zeros(9, 3), dt),
        lambda dt: spectral_arc_length(torch.zeros(9), dt),
        lambda dt: time_to_success(torch.zeros(9).bool(), dt),
        lambda dt: measure(torch.zeros(9, 3), dt, torch.tensor([8])),
    ],
)
def test_a_control_period_that_is_not_positive_is_rejected(function, dt):
    with pytest.raises(ValueError, match="`dt` should be a positive control period"):
        function(dt)


@pytest.mark.parametrize(
    ("function", "minimum"),
    [
        (lambda n: velocity(torch.zeros(n, 3), DT), 2),
        (lambda n: jerk(torch.zeros(n, 3), DT), 4),
        (lambda n: jerk_rms(torch.zeros(n, 3), DT), 4),
        (lambda n: log_dimensionless_jerk(torch.zeros(n, 3), DT), 3),
        (lambda n: spectral_arc_length(torch.zeros(n), DT), 2),
        (lambda n: measure(torch.zeros(n, 3), DT, torch.tensor([n])), 1),
    ],
)
def test_too_few_samples_are_rejected(function, minimum):
    with pytest.raises(ValueError, match=f"at least {minimum} samples, got {minimum - 1}"):
        function(minimum - 1)


def test_executed_steps_that_do_not_add_up_are_rejected():
    for function in (boundary_and_interior_jerk_rms, chunk_jerk_rms):
        with pytest.raises(ValueError, match="should sum to the 24 control steps .* got 32"):
            function(torch.zeros(25, 3), DT, torch.tensor([16, 16]))


def test_the_jerk_that_actions_ask_for_is_that_of_the_path_they_ask_for():
    positions = random_walk(3, 4, 13, 3)
    executed = torch.tensor([9, 5, 1, 3])
    asked = commanded_jerk_rms(positions[:, :12], executed, 3)
    for path, n, rms in zip(positions, executed.tolist(), asked, strict=True):
        assert rms.item() * DT**-3 == pytest.approx(jerk_rms(path[: n + 3], DT).item())
    # Displacements are the differences of positions.
    torch.testing.assert_close(commanded_jerk_rms(positions[:, :12].diff(dim=1), executed, 2), asked)


def test_the_length_that_actions_ask_for_is_that_of_the_path_they_ask_for():
    positions = random_walk(3, 4, 13, 3)
    executed = torch.tensor([9, 5, 1, 3])
    asked = commanded_path_length(positions[:, :12], executed, 3)
    for path, n, length in zip(positions, executed.tolist(), asked, strict=True):
        # The chunk's own steps lead on from the last position before it.
        assert length.item() == pytest.approx(path_length(path[2 : n + 3]).item())
    torch.testing.assert_close(commanded_path_length(positions[:, :12].diff(dim=1), executed, 2), asked)
