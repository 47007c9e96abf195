"""What a study found: every episode as a line, means and planned comparisons with their intervals, a table.

Dims: S seeds of an arm, M starts.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.evaluation.evaluate import Evaluation, Measurement, without_nan
from lerobot_smoothvla.evaluation.report import EVAL_INFO, read_evaluation
from lerobot_smoothvla.evaluation.statistics import Interval, crossed_bootstrap_interval
from lerobot_smoothvla.study.plan import ARMS, WARM_START, StudyConfig, Trial, trials

EPISODES, RESULTS, TABLE = "episodes.jsonl", "results.json", "table.md"

MEASURES = (
    "success_rate",
    "jerk_rms",
    "jerk_rms_success",
    "jerk_at_matched_duration",
    "boundary_jerk_rms",
    "ldlj",
    "sparc",
    "time_to_success",
    "path_length",
)
"""Success, and terms of `smoothness.measure`. `jerk_rms_success` is the jerk of successes alone, and
`jerk_at_matched_duration` that of the same path driven in the warm start's time: J·(T / T_sft)³, where both
succeed. A policy that only slows down improves the former and not the latter."""

PLANNED = (("success", "smooth"), (WARM_START, "smooth"), (WARM_START, "success"), ("sum", "smooth"))
"""Baseline and candidate of the comparisons that were planned; docs/study.md has their hypotheses."""

Key = tuple[str, str, str]
"""Condition, filter and arm."""


@dataclass(frozen=True)
class Cell:
    """An arm in a condition, over its seeds.

    Attributes:
        n_seeds: S.
        n_starts: M.
        measures: Mean of each of `MEASURES` over seeds and starts; None where no episode has it.
    """

    n_seeds: int
    n_starts: int
    measures: dict[str, Interval | None]


@dataclass(frozen=True)
class Comparison:
    """Candidate minus baseline, paired by start and, but for the warm start, by seed.

    Attributes:
        condition: Of both.
        baseline: Arm and filter, "arm+filter".
        candidate: The same.
        planned: Whether it was planned before the runs.
        differences: Of each of `MEASURES`.
        relative_jerk: Of jerk RMS, as a share of the baseline's mean.
    """

    condition: str
    baseline: str
    candidate: str
    planned: bool
    differences: dict[str, Interval | None]
    relative_jerk: Interval | None


def read_trials(config: StudyConfig) -> dict[Trial, Evaluation]:
    """The evaluations that are there."""
    directories = {trial: trial.output_dir(config.directory) for trial in trials(config.plan)}
    return {
        trial: read_evaluation(directory)[1]["policy"]
        for trial, directory in directories.items()
        if (directory / EVAL_INFO).is_file()
    }


def write_results(config: StudyConfig) -> Path:
    """Write episodes, results and table of what has been evaluated so far; returns the table.

    Raises:
        FileNotFoundError: If nothing has been evaluated.
    """
    found = read_trials(config)
    if not found:
        raise FileNotFoundError(
            f"There is no evaluation in '{config.directory}'; run `smoothvla study --size={config.size}`."
        )
    config.results.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(without_nan(_line(trial, measurement)))
        for trial, evaluation in found.items()
        for measurement in evaluation.measurements
    ]
    (config.results / EPISODES).write_text("\n".join(lines) + "\n")
    cells, comparisons = summarise(found)
    info = {
        "size": config.size,
        "cells": [
            {"condition": c, "filter": f, "arm": a, **asdict(cell)} for (c, f, a), cell in cells.items()
        ],
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    (config.results / RESULTS).write_text(json.dumps(without_nan(info), indent=1) + "\n")
    table = config.results / TABLE
    table.write_text(markdown(cells, comparisons))
    return table


def summarise(found: dict[Trial, Evaluation]) -> tuple[dict[Key, Cell], list[Comparison]]:
    """Means of every arm, and every comparison that can be made: the planned ones, and with the filters."""
    by_key: dict[Key, dict[int, Evaluation]] = {}
    for trial, evaluation in found.items():
        by_key.setdefault((trial.condition.name, trial.filter, trial.arm), {})[trial.seed] = evaluation
    references = {c: runs[0] for (c, f, a), runs in by_key.items() if (f, a) == ("none", WARM_START)}
    cells, comparisons = {}, []
    for (condition, name, arm), runs in by_key.items():
        values = {m: _values(runs, m, references.get(condition)) for m in MEASURES}
        n_starts = len(next(iter(runs.values())).measurements)
        cells[condition, name, arm] = Cell(len(runs), n_starts, {m: _interval(v) for m, v in values.items()})
    for condition, filter_name, arm in by_key:
        if (filter_name, arm) != ("none", "smooth") and arm in (WARM_START, *ARMS):
            candidate = (condition, "none", "smooth")
            if candidate in by_key:
                planned = filter_name != "none" or (arm, "smooth") in PLANNED
                comparisons.append(_compare(by_key, (condition, filter_name, arm), candidate, planned))
    for condition in references:
        if (condition, "none", "success") in by_key:
            keys = (condition, "none", WARM_START), (condition, "none", "success")
            comparisons.append(_compare(by_key, *keys, planned=True))
    return cells, comparisons


def _compare(
    by_key: dict[Key, dict[int, Evaluation]], baseline: Key, candidate: Key, planned: bool
) -> Comparison:
    condition = baseline[0]
    reference = by_key.get((condition, "none", WARM_START), {}).get(0)
    first, second = by_key[baseline], by_key[candidate]
    if set(first) == {0}:  # One warm start for all seeds.
        first = dict.fromkeys(second, first[0])
    seeds = sorted(first.keys() & second.keys())
    first, second = ({seed: of[seed] for seed in seeds} for of in (first, second))
    differences, relative = {}, None
    for measure in MEASURES:
        before, after = (_values(of, measure, reference) for of in (first, second))
        # A term is compared where both sides have it.
        differences[measure] = _interval(after - before)
        if measure == "jerk_rms":
            scale = np.nanmean(np.where(np.isfinite(after), before, np.nan))
            relative = _interval((after - before) / scale)
    names = ["+".join((arm, *([f] if f != "none" else []))) for _, f, arm in (baseline, candidate)]
    return Comparison(condition, names[0], names[1], planned, differences, relative)


def _values(runs: dict[int, Evaluation], measure: str, reference: Evaluation | None) -> NDArray[np.float64]:
    """(S, M) values, starts in their order; NaN where there is none."""
    times = {m.start: m.terms["time_to_success"] for m in reference.measurements} if reference else {}
    rows = [
        [_value(m, measure, times) for m in sorted(evaluation.measurements, key=lambda m: m.start)]
        for _, evaluation in sorted(runs.items())
    ]
    return np.array(rows, dtype=np.float64)


def _value(measurement: Measurement, measure: str, times: dict[Start, float]) -> float:
    terms = measurement.terms
    if measure == "success_rate":
        return float(measurement.success)
    if measure == "jerk_rms_success":
        return terms["jerk_rms"] if measurement.success else math.nan
    if measure == "jerk_at_matched_duration":
        own = terms["time_to_success"]
        return terms["jerk_rms"] * (own / times.get(measurement.start, math.nan)) ** 3
    return terms[measure]


def _interval(values: NDArray[np.float64]) -> Interval | None:
    return crossed_bootstrap_interval(values) if np.isfinite(values).any() else None


def _line(trial: Trial, measurement: Measurement) -> dict[str, Any]:
    terms = {name: float(f"{value:.6g}") for name, value in measurement.terms.items()}
    return {
        "condition": trial.condition.name,
        "filter": trial.filter,
        "arm": trial.arm,
        "run_seed": trial.seed,
        **asdict(measurement.start),
        "success": measurement.success,
        **terms,
    }


def markdown(cells: dict[Key, Cell], comparisons: Sequence[Comparison]) -> str:
    """Two tables: what every arm does, and the comparisons."""
    lines = [
        "| condition | arm | filter | runs × starts | success | jerk RMS, m/s³ | of successes | LDLJ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shown = ("success_rate", "jerk_rms", "jerk_rms_success", "ldlj")
    for (condition, name, arm), cell in cells.items():
        values = [interval_text(cell.measures[m]) for m in shown]
        row = [condition, arm, name, f"{cell.n_seeds} × {cell.n_starts}", *values]
        lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        "| condition | difference | success | jerk RMS, m/s³ | % | at matched duration | solved after, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        d = c.differences
        percent = c.relative_jerk and Interval(
            *(100 * v for v in (c.relative_jerk.estimate, c.relative_jerk.low, c.relative_jerk.high))
        )
        row = [
            c.condition,
            f"{c.candidate} − {c.baseline}" + ("" if c.planned else " (not planned)"),
            interval_text(d["success_rate"], signed=True),
            interval_text(d["jerk_rms"], signed=True),
            interval_text(percent, signed=True),
            interval_text(d["jerk_at_matched_duration"], signed=True),
            interval_text(d["time_to_success"], signed=True),
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def interval_text(interval: Interval | None, signed: bool = False) -> str:
    """As "0.85 (0.64 to 0.95)"."""
    if interval is None:
        return "–"
    sign = "+" if signed else ""
    values = [f"{v:{sign}.2f}".replace("-", "−") for v in (interval.estimate, interval.low, interval.high)]
    return f"{values[0]} ({values[1]} to {values[2]})"
