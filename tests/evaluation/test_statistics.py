"""Known values, closed forms, and coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.evaluation.statistics import (
    bootstrap_interval,
    crossed_bootstrap_interval,
    paired_bootstrap_interval,
    wilson_interval,
)


def starts(n: int) -> list[Start]:
    return [Start("libero_object", i % 10, i // 10, seed=i) for i in range(n)]


# Newcombe, Statistics in Medicine 17, 1998, table I (score method without continuity correction).
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    interval = wilson_interval(successes, n)
    assert interval.estimate == successes / n
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_bounds_solve_its_defining_equation_and_mirror(n, data):
    """The bounds are the rates q with |p - q| = z √(q(1-q)/n)."""
    successes = data.draw(st.integers(0, n))
    interval, mirrored = wilson_interval(successes, n), wilson_interval(n - successes, n)

    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - interval.high, 1 - interval.low))
    for q in (interval.low, interval.high):
        distance = (interval.estimate - q) ** 2
        assert distance == pytest.approx(1.959963984540054**2 * q * (1 - q) / n, abs=1e-12)


@pytest.mark.parametrize("rate", [0.3, 0.69, 0.9])
@pytest.mark.parametrize("n", [32, 100])
def test_wilson_covers_the_true_rate_about_95_times_in_100(rate, n):
    """Exact: the binomial probability of all outcomes whose interval holds the rate."""
    coverage = sum(
        math.comb(n, k) * rate**k * (1 - rate) ** (n - k)
        for k in range(n + 1)
        if wilson_interval(k, n).low <= rate <= wilson_interval(k, n).high
    )
    assert 0.93 < coverage < 0.98


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_an_impossible_rate_is_rejected(successes, n):
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_that_is_no_share_is_rejected(confidence):
    for call in (
        lambda: wilson_interval(1, 2, confidence),
        lambda: bootstrap_interval([1.0], np.mean, confidence),
    ):
        with pytest.raises(ValueError, match="share between 0 and 1"):
            call()


def test_the_bootstrap_of_a_mean_agrees_with_the_normal_interval_on_a_large_sample():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=1000)
    interval = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))

    assert interval.estimate == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.01
    )


@pytest.mark.parametrize(("statistic", "true_value"), [(np.mean, 1.0), (np.median, math.log(2))])
def test_bootstrap_intervals_of_skewed_data_cover_about_95_times_in_100(statistic, true_value):
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        interval = bootstrap_interval(generator.exponential(size=40), statistic, n_resamples=400)
        hits += interval.low <= true_value <= interval.high
    assert 0.89 < hits / 300 < 0.99


def test_the_bootstrap_is_deterministic_in_its_seed():
    values = np.random.default_rng(0).normal(size=10)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_a_bootstrap_interval_stays_within_the_data(values):
    interval = bootstrap_interval(values, np.median, n_resamples=50)
    assert min(values) <= interval.low <= interval.high <= max(values)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_values_that_cannot_be_resampled_are_rejected(values):
    with pytest.raises(ValueError, match="at least one finite value"):
        bootstrap_interval(values)


def test_a_constant_improvement_has_an_interval_of_no_width():
    baseline = {start: float(i) for i, start in enumerate(starts(12))}
    candidate = {start: value + 2 for start, value in baseline.items()}
    interval = paired_bootstrap_interval(baseline, candidate)
    assert (interval.low, interval.estimate, interval.high) == (2, 2, 2)


def test_the_difference_is_candidate_minus_baseline_and_changes_sign_when_swapped():
    generator = np.random.default_rng(2)
    a, b = ({start: generator.normal(loc) for start in starts(30)} for loc in (0, 1))
    forth, back = paired_bootstrap_interval(a, b), paired_bootstrap_interval(b, a)

    assert forth.estimate == pytest.approx(np.mean(list(b.values())) - np.mean(list(a.values())))
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))


def test_pairing_finds_a_small_difference_that_hides_in_the_spread_of_the_starts():
    generator = np.random.default_rng(3)
    baseline = {start: generator.normal(0, 10) for start in starts(40)}
    candidate = {start: value + generator.normal(0.5, 0.5) for start, value in baseline.items()}

    assert paired_bootstrap_interval(baseline, candidate).low > 0
    apart = bootstrap_interval(list(candidate.values())), bootstrap_interval(list(baseline.values()))
    assert apart[0].low < apart[1].high


def test_paired_intervals_cover_the_true_difference_about_95_times_in_100():
    generator = np.random.default_rng(4)
    hits = 0
    for _ in range(300):
        baseline = {start: generator.normal(0, 5) for start in starts(40)}
        candidate = {start: value + generator.normal(0.3, 1) for start, value in baseline.items()}
        interval = paired_bootstrap_interval(baseline, candidate, n_resamples=400)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.89 < hits / 300 < 0.99


def test_the_order_of_the_starts_does_not_matter():
    generator = np.random.default_rng(5)
    a, b = ({start: generator.normal() for start in starts(9)} for _ in range(2))
    assert paired_bootstrap_interval(a, b) == paired_bootstrap_interval(dict(reversed(a.items())), b)


def test_the_pairing_refuses_unequal_starts():
    a = dict.fromkeys(starts(4), 1.0)
    other_seed = {Start(s.suite, s.task_id, s.init_state, s.seed + 100): v for s, v in a.items()}
    for b in (dict.fromkeys(starts(5), 1.0), other_seed, {}):
        with pytest.raises(ValueError, match="same starts on both sides"):
            paired_bootstrap_interval(a, b)


def runs(generator: np.random.Generator, n_runs: int, n_starts: int, between_runs: float) -> np.ndarray:
    """(S, M) differences around 0.3 that vary between runs, between starts and otherwise."""
    of_run, of_start = generator.normal(0, between_runs, (n_runs, 1)), generator.normal(0, 1, (1, n_starts))
    return 0.3 + of_run + of_start + generator.normal(0, 1, (n_runs, n_starts))


def test_runs_that_differ_widen_the_interval_beyond_what_their_starts_say():
    differences = runs(np.random.default_rng(6), 5, 60, between_runs=2.0)
    crossed, pooled = crossed_bootstrap_interval(differences), bootstrap_interval(differences.ravel())
    assert crossed.estimate == pytest.approx(pooled.estimate)
    assert crossed.high - crossed.low > 3 * (pooled.high - pooled.low)


def test_crossed_intervals_cover_the_true_difference_about_95_times_in_100():
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(200):
        interval = crossed_bootstrap_interval(runs(generator, 12, 40, between_runs=0.5), n_resamples=400)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.89 < hits / 200 <= 1.0


def test_what_one_side_lacks_is_left_out():
    differences = np.array([[1.0, np.nan, 1.0], [1.0, 1.0, np.nan]])
    interval = crossed_bootstrap_interval(differences)
    assert (interval.estimate, interval.low, interval.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("differences", [np.full((2, 3), np.nan), np.zeros(3)])
def test_runs_without_a_common_value_are_rejected(differences):
    with pytest.raises(ValueError, match=r"should be \(runs, starts\) with at least one finite value"):
        crossed_bootstrap_interval(differences)
