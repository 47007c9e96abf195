"""What a study found: every episode as a line, and from these lines alone means, planned comparisons, tables.

Dims: S seeds of an arm, M starts.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.evaluation.evaluate import Evaluation, Measurement, without_nan
from lerobot_smoothvla.evaluation.report import EVAL_INFO, markdown, read_evaluation
from lerobot_smoothvla.evaluation.statistics import Interval, crossed_bootstrap_interval
from lerobot_smoothvla.study.plan import WARM_START, StudyConfig, Trial, trials

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

RELATIVE = ("jerk_rms", "jerk_rms_success")
"""Of these, differences are also a share of the baseline."""

PLANNED = (
    ("success", "smooth"),
    (WARM_START, "smooth"),
    (WARM_START, "success"),
    ("sum", "smooth"),
    ("success", "best"),
    (WARM_START, "best"),
    ("smooth", "best"),
)
"""Baseline and candidate of the comparisons that were planned; docs/study.md has their hypotheses."""

OURS = ("smooth", "best")
"""Arms that are also compared with each filtered baseline."""

NOT_PLANNED = ((("trained", "blend", "success"), ("trained", "blend", "best")),)
"""Baseline and candidate of a comparison that was thought of when the others were known."""

Key = tuple[str, str, str]
"""Condition, filter and arm."""
Results = dict[Key, dict[int, Evaluation]]
"""Evaluations by the seed of their run."""


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
        planned: Whether it was to be made before anything was known.
        baseline: Arm and filter, "arm+filter".
        candidate: The same.
        differences: Of each of `MEASURES`.
        relative: Of jerk RMS, and of that where both succeed, as a share of the baseline's mean.
    """

    condition: str
    planned: bool
    baseline: str
    candidate: str
    differences: dict[str, Interval | None]
    relative: dict[str, Interval | None]


def write_results(config: StudyConfig) -> Path:
    """Write episodes, results and table of what has been evaluated so far; returns the table.

    Raises:
        FileNotFoundError: If nothing has been evaluated.
    """
    directories = {trial: trial.output_dir(config.directory) for trial in trials(config.plan)}
    found = {
        trial: read_evaluation(directory)[1]["policy"]
        for trial, directory in directories.items()
        if (directory / EVAL_INFO).is_file()
    }
    if not found:
        raise FileNotFoundError(
            f"There is no evaluation in '{config.directory}'; run `smoothvla study --size={config.size}`."
        )
    config.directory.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(without_nan(_line(trial, measurement)))
        for trial, evaluation in found.items()
        for measurement in evaluation.measurements
    ]
    (config.directory / EPISODES).write_text("\n".join(lines) + "\n")
    return write_tables(config.directory)


def write_tables(directory: Path) -> Path:
    """Write `results.json` and `table.md` from the episodes beside them; returns the table."""
    cells, comparisons = summarise(read_episodes(directory))
    info = {
        "cells": [
            {"condition": c, "filter": f, "arm": a, **asdict(cell)} for (c, f, a), cell in cells.items()
        ],
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    (directory / RESULTS).write_text(json.dumps(without_nan(info), indent=1) + "\n")
    table = directory / TABLE
    table.write_text(f"{markdown(cell_rows(cells))}\n{markdown(comparison_rows(comparisons))}")
    return table


def read_episodes(directory: Path) -> Results:
    """What `write_results` wrote there, with its six digits.

    Raises:
        FileNotFoundError: If it wrote nothing.
    """
    file = directory / EPISODES
    if not file.is_file():
        raise FileNotFoundError(f"There are no episodes of a study in '{directory}': expected {file}.")
    measurements: dict[tuple[Key, int], list[Measurement]] = {}
    for text in file.read_text().splitlines():
        line = json.loads(text)
        key, seed = (line.pop("condition"), line.pop("filter"), line.pop("arm")), line.pop("run_seed")
        line.pop("shift")
        start = Start(**{field.name: line.pop(field.name) for field in fields(Start)})
        success = line.pop("success")
        terms = {name: math.nan if value is None else value for name, value in line.items()}
        measurements.setdefault((key, seed), []).append(Measurement(start, success, terms))
    found: Results = {}
    for (key, seed), some in measurements.items():
        found.setdefault(key, {})[seed] = Evaluation(tuple(some))
    return found


def summarise(found: Results) -> tuple[dict[Key, Cell], list[Comparison]]:
    """Means of every arm, and the comparisons that can be made: also with each filtered baseline."""
    cells = {}
    for key, runs in found.items():
        reference = _reference(found, key[0])
        starts = _starts(runs)
        measures = {m: _interval(_values(runs, starts, m, reference)) for m in MEASURES}
        cells[key] = Cell(len(runs), len(starts), measures)
    pairs = [
        ((condition, "none", baseline), (condition, "none", candidate))
        for condition in dict.fromkeys(condition for condition, _, _ in found)
        for baseline, candidate in PLANNED
    ]
    filtered = [key for key in found if key[1] != "none" and key[2] not in OURS]
    pairs += [(key, (key[0], "none", ours)) for ours in OURS for key in filtered]
    pairs += NOT_PLANNED
    made = [_compare(found, *pair) for pair in pairs if found.keys() >= {*pair}]
    return cells, [comparison for comparison in made if comparison is not None]


def _compare(found: Results, baseline: Key, candidate: Key) -> Comparison | None:
    """None where they have no seed in common yet."""
    condition = baseline[0]
    reference = _reference(found, condition)
    first, second = found[baseline], found[candidate]
    if set(first) == {0}:  # One warm start for all seeds.
        first = dict.fromkeys(second, first[0])
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    first, second = ({seed: of[seed] for seed in seeds} for of in (first, second))
    starts = sorted({*_starts(first), *_starts(second)})
    differences, relative = {}, {}
    for measure in MEASURES:
        before, after = (_values(of, starts, measure, reference) for of in (first, second))
        difference = after - before  # A term is compared where both sides have it.
        differences[measure] = _interval(difference)
        if measure in RELATIVE:
            there = np.isfinite(difference)
            relative[measure] = _interval(difference / before[there].mean()) if there.any() else None
    names = ["+".join((arm, *([f] if f != "none" else []))) for _, f, arm in (baseline, candidate)]
    planned = (baseline, candidate) not in NOT_PLANNED
    return Comparison(condition, planned, names[0], names[1], differences, relative)


def _reference(found: Results, condition: str) -> Evaluation | None:
    """The warm start's, whose durations others are matched with."""
    return found.get((condition, "none", WARM_START), {}).get(0)


def _starts(runs: dict[int, Evaluation]) -> list[Start]:
    """All that were played; of an unfinished study not every run has played all of them."""
    return sorted({m.start for evaluation in runs.values() for m in evaluation.measurements})


def _values(
    runs: dict[int, Evaluation], starts: Sequence[Start], measure: str, reference: Evaluation | None
) -> NDArray[np.float64]:
    """(S, M) values; NaN where there is none."""
    times = {m.start: m.terms["time_to_success"] for m in reference.measurements} if reference else {}
    rows = []
    for _, evaluation in sorted(runs.items()):
        values = {m.start: _value(m, measure, times) for m in evaluation.measurements}
        rows.append([values.get(start, math.nan) for start in starts])
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
        "shift": trial.condition.evaluation.shift,
        "run_seed": trial.seed,
        **asdict(measurement.start),
        "success": measurement.success,
        **terms,
    }


def cell_rows(cells: Mapping[Key, Cell]) -> list[list[str]]:
    """Headers, and a row for what each arm does."""
    shown = ("success_rate", "jerk_rms", "jerk_rms_success", "ldlj")
    return [
        ["condition", "arm", "filter", "runs × starts", "success", "jerk RMS, m/s³", "of successes", "LDLJ"],
        *(
            [condition, arm, name, f"{cell.n_seeds} × {cell.n_starts}"]
            + [interval_text(cell.measures[measure]) for measure in shown]
            for (condition, name, arm), cell in cells.items()
        ),
    ]


def comparison_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Headers, and a row for each comparison."""
    measured = ("at matched duration", "solved after, s")
    rows = [["condition", "difference", "success", "jerk RMS, m/s³", "%", "of successes, %", *measured]]
    for c in comparisons:
        rows.append(
            [
                c.condition,
                f"{c.candidate} − {c.baseline}" + ("" if c.planned else " (not planned)"),
                interval_text(c.differences["success_rate"], signed=True),
                interval_text(c.differences["jerk_rms"], signed=True),
                *(interval_text(c.relative[measure], signed=True, scale=100) for measure in RELATIVE),
                interval_text(c.differences["jerk_at_matched_duration"], signed=True),
                interval_text(c.differences["time_to_success"], signed=True),
            ]
        )
    return rows


def interval_text(interval: Interval | None, signed: bool = False, scale: float = 1.0) -> str:
    """As "0.85 (0.64 to 0.95)", of `scale` times its values."""
    if interval is None:
        return "–"
    sign = "+" if signed else ""
    limits = interval.estimate, interval.low, interval.high
    values = [f"{scale * value:{sign}.2f}".replace("-", "−") for value in limits]
    return f"{values[0]} ({values[1]} to {values[2]})"
