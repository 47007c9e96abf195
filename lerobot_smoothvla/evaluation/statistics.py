"""Intervals for what an evaluation reports: success rates, means and medians, differences on the same starts.

Dims: N values, R resamples, S runs with seeds of their own, M starts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from lerobot_smoothvla.episode import Start

Statistic = Callable[..., NDArray[np.float64]]
"""`numpy.mean`, `numpy.median` or alike: reduces an array along `axis`."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval, in the unit of what was measured."""

    estimate: float
    low: float
    high: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a success rate; unlike the normal one it holds for small n and near 0 and 1.

    With p = successes / n and z the normal quantile: centre (p + z²/2n) / (1 + z²/n), half width
    z √(p(1-p)/n + z²/4n²) / (1 + z²/n). Wilson, J. Am. Stat. Assoc. 22, 1927.

    Args:
        successes: Episodes that succeeded.
        n: All episodes.
        confidence: Share of such intervals that should hold the true rate.

    Returns:
        The rate p and its interval.

    Raises:
        ValueError: If not 0 ≤ successes ≤ n with n ≥ 1, or `confidence` is not in (0, 1).
    """
    _require_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"A rate needs 0 ≤ successes ≤ n and n ≥ 1, got {successes} of {n}.")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    rate = successes / n
    centre = rate + z2 / (2 * n)
    half = (z2 * (rate * (1 - rate) / n + z2 / (4 * n**2))) ** 0.5
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    # Rounding puts the exact bounds 0 and 1 a hair outside or inside.
    return Interval(rate, 0.0 if successes == 0 else low, 1.0 if successes == n else high)


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64],
    statistic: Statistic = np.mean,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean or median; the same seed gives the same interval.

    Args:
        values: (N,) one value an episode.
        statistic: Called as `statistic(resamples, axis=-1)` on (R, N).
        confidence: Share of such intervals that should hold the true value (a little less for N < 20).
        n_resamples: R.
        seed: Of the generator that draws the resamples.

    Returns:
        The statistic of `values` and its interval.

    Raises:
        ValueError: If there is no value, one is not finite, or `confidence` is not in (0, 1).
    """
    _require_confidence(confidence)
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise ValueError(
            f"A bootstrap needs a list of at least one finite value, got shape {sample.shape} with "
            f"{int((~np.isfinite(sample)).sum())} not finite; leave episodes out in which the term is NaN."
        )
    rows = np.random.default_rng(seed).integers(len(sample), size=(n_resamples, len(sample)))
    resampled = statistic(sample[rows], axis=-1)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(sample, axis=-1)), float(low), float(high))


def paired_bootstrap_interval(
    baseline: Mapping[Start, float],
    candidate: Mapping[Start, float],
    statistic: Statistic = np.mean,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of candidate - baseline, resampled over starts that both have played.

    A hard start is hard for both, so the differences vary less than the values do.

    Args:
        baseline: Each start's value under the first policy.
        candidate: Each start's value under the second policy.
        statistic: Of the differences; see `bootstrap_interval`.
        confidence: See `bootstrap_interval`.
        n_resamples: R.
        seed: Of the generator that draws the resamples.

    Returns:
        The statistic of the differences and its interval; the order of the mappings does not matter.

    Raises:
        ValueError: If the starts differ, and as `bootstrap_interval` does.
    """
    if baseline.keys() != candidate.keys():
        alone = sorted(baseline.keys() ^ candidate.keys())
        raise ValueError(
            f"A paired comparison needs the same starts on both sides, got {len(baseline)} and "
            f"{len(candidate)}, of which {len(alone)} have no partner (first: {alone[0]}); "
            "evaluate both policies on the same starts."
        )
    differences = [candidate[start] - baseline[start] for start in sorted(baseline)]
    return bootstrap_interval(differences, statistic, confidence, n_resamples, seed)


def crossed_bootstrap_interval(
    differences: NDArray[np.float64], confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Interval of a mean difference, resampled over runs and over starts.

    Starts alone would say how sure these very runs are; another training run with another seed differs, too.
    Both ways are resampled independently, with replacement, and every pair of a drawn run and a drawn start
    counts as often as it was drawn: Owen, Ann. Appl. Stat. 1(2), 2007, whose interval errs on the wide side.

    Args:
        differences: (S, M) candidate - baseline of each run on each start; NaN where there is none, as the
            jerk of successes where one side failed.
        confidence: Share of such intervals that should hold the true value; with few runs a little less.
        n_resamples: R.
        seed: Of the generator that draws the resamples.

    Returns:
        The mean of what is there and its interval.

    Raises:
        ValueError: If nothing is there, or `confidence` is not in (0, 1).
    """
    _require_confidence(confidence)
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).any():
        raise ValueError(
            f"`differences` should be (runs, starts) with at least one finite value, got {values.shape}; "
            "leave a term out that no pair of episodes has."
        )
    n_runs, n_starts = values.shape
    random = np.random.default_rng(seed)
    runs = random.multinomial(n_runs, np.full(n_runs, 1 / n_runs), n_resamples)
    starts = random.multinomial(n_starts, np.full(n_starts, 1 / n_starts), n_resamples)
    there = np.isfinite(values)

    def total(of: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.einsum("rs,sm,rm->r", runs, of, starts, optimize=True)

    counts = total(there.astype(np.float64))
    sums = total(np.where(there, values, 0.0))[counts > 0]
    low, high = np.quantile(sums / counts[counts > 0], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(np.nanmean(values)), float(low), float(high))


def _require_confidence(confidence: float) -> None:
    """Reject percentages and impossible levels."""
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` should be a share between 0 and 1, as 0.95, got {confidence}.")
