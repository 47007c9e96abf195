"""What runs and evaluations say, in sentences that are honest about how little a few starts show."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from lerobot_smoothvla.evaluation.evaluate import Evaluation, compare
from lerobot_smoothvla.evaluation.report import number
from lerobot_smoothvla.evaluation.statistics import Interval
from lerobot_smoothvla.report.runs import Policy, TrainingRun

_COMPARED = {
    "jerk_rms": ("Jerk RMS", "{unit}/s³", "lower", "higher"),
    "ldlj": ("LDLJ, which does not reward slowness", "", "less smooth", "smoother"),
    "joint_jerk_rms": ("Jerk RMS of the joints", "rad/s³", "lower", "higher"),
    "time_to_success": ("Time to success", "s", "shorter", "longer"),
}
"""Term: its name, its unit, and what a negative and a positive difference mean."""


def training_words(label: str, runs: Sequence[TrainingRun]) -> str:
    """What the GRPO runs of an arm did, as means where there are several seeds."""
    done = " and ".join(sorted({f"{len(run.metrics)} of {run.steps or '?'}" for run in runs}))
    said = f"{label}: {done} iterations"
    config = runs[0].config
    starts, size = (config.get(f"algorithm.{name}") for name in ("n_groups", "group_size"))
    if starts and size:
        said += f" of {starts * size} rollouts ({starts} start{'s' * (starts != 1)}, {size} of each)"
    if where := config.get("env.task"):
        said += f" on {where}"
    seeds = ", ".join(str(run.config["seed"]) for run in runs if run.config.get("seed") is not None)
    if seeds:
        said += f", seed{'s' * (len(runs) > 1)} {seeds}"
    if not any(run.metrics for run in runs):
        return said + "."
    success, jerk = (_first_and_last(runs, name) for name in ("success_rate", "jerk_rms"))
    return (
        f"{said}. From the first to the last iteration, success of the rollouts went {success} and jerk RMS "
        f"{jerk} {runs[0].unit}/s³{' (means over seeds)' * (len(runs) > 1)}."
    )


def policy_words(policy: Policy) -> str:
    """What a policy did on its starts."""
    summary, unit = policy.evaluation.summary(), policy.evaluation.unit
    said = (
        f"{policy.label} solved {summary.n_successes} of {summary.n_episodes} starts "
        f"({_among(summary.success_rate)})"
    )
    jerk = summary.terms.get("jerk_rms")
    return said + (f", with jerk RMS {_among(jerk)} {unit}/s³." if jerk else ".")


def comparison_words(baseline: Evaluation, candidate: Evaluation) -> Iterator[str]:
    """Paired differences, candidate minus baseline, each with what it does and does not show."""
    difference, n = compare(baseline, candidate), len(candidate.measurements)
    yield _difference("Success", "", "fewer", "more", difference.success_rate, n)
    for term, (name, unit, negative, positive) in _COMPARED.items():
        if term not in difference.terms:
            continue
        interval = difference.terms[term]
        n_paired = _n_paired(baseline, candidate, term)
        if interval is None:
            yield f"{name}: there is no start from which both have it."
        else:
            unit = unit.format(unit=candidate.unit)
            yield _difference(name, unit, negative, positive, interval, n_paired)
    jerk, time = (difference.terms.get(name) for name in ("jerk_rms", "time_to_success"))
    if jerk and time and jerk.high < 0 < time.low:
        yield "Jerk fell and time to success rose: it may be slower rather than smoother; LDLJ tells."


def _difference(name: str, unit: str, negative: str, positive: str, change: Interval, n: int) -> str:
    if change.low == change.high == 0:
        return f"{name}: the same from each of the {n} starts."
    low, high = number(change.low, signed=True), number(change.high, signed=True)
    estimate = " ".join(filter(None, [number(change.estimate, signed=True), unit]))
    said = f"{name}: {estimate} (95 % {low} to {high}), paired over {n} start{'s' * (n != 1)}"
    if n == 1:
        return f"{said}: one start shows nothing about others."
    if change.low <= 0 <= change.high:
        return f"{said}. The interval includes 0: these starts do not show a difference."
    return f"{said}: {negative if change.high < 0 else positive}, as the interval excludes 0."


def _n_paired(baseline: Evaluation, candidate: Evaluation, term: str) -> int:
    has = [
        {m.start for m in evaluation.measurements if math.isfinite(m.terms.get(term, math.nan))}
        for evaluation in (baseline, candidate)
    ]
    return len(has[0] & has[1])


def _first_and_last(runs: Sequence[TrainingRun], name: str) -> str:
    ends = []
    for index in (0, -1):
        found = [run.metrics[index].get(name) for run in runs if run.metrics]
        values = [value for value in found if value is not None]
        ends.append(number(fmean(values)) if len(values) == len(found) else "-")
    return f"from {ends[0]} to {ends[1]}"


def _among(interval: Interval) -> str:
    return f"{number(interval.estimate)}, 95 % {number(interval.low)} to {number(interval.high)}"
