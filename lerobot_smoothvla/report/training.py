"""Curves of GRPO runs over their iterations; seeds of the same arm as a band."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from lerobot_smoothvla.evaluation.report import number
from lerobot_smoothvla.report.figures import Series, legend, line_chart
from lerobot_smoothvla.report.markup import Html, details, table, tag
from lerobot_smoothvla.report.runs import TrainingRun, short_labels

_CURVES = {
    "success_rate": ("Success of the rollouts", True),
    "jerk_rms": ("Jerk RMS, {unit}/s³", False),
    "jerk_rms_success": ("Jerk RMS of successes, {unit}/s³", False),
    "joint_jerk_rms": ("Jerk RMS of the joints, rad/s³", False),
    "time_to_success": ("Time to success, s", False),
    "ratio_deviation": ("Mean |ratio − 1|", True),
    "clip_fraction": ("Clip fraction", True),
    "approx_kl": ("Approximate KL", True),
    "mixed_group_share": ("Share of groups with both outcomes", True),
}
"""Metric: what it is called, and whether its axis begins at 0."""


def training_section(arms: Mapping[str, Sequence[TrainingRun]]) -> list[Html]:
    """Curves of every arm, and their numbers."""
    runs = [run for group in arms.values() for run in group]
    units = sorted({run.unit for run in runs})
    charts = []
    for name, (title, from_zero) in _CURVES.items():
        curves = [curve(name, style, label, group) for style, (label, group) in enumerate(arms.items())]
        if any(math.isfinite(value) for one in curves for value in one.y):
            charts.append(line_chart(title.format(unit=" or ".join(units)), "iteration", curves, from_zero))
    several = any(len(group) > 1 for group in arms.values())
    labels = [f"{label} ({len(group)} seeds)" if len(group) > 1 else label for label, group in arms.items()]
    note = (
        "Every iteration has starts of its own, and the rollouts of a group share one: ups and downs of this "
        "size come by themselves, and an evaluation on fixed starts says more."
    )
    if several:
        note += " Lines are means over seeds, bands go from the least to the greatest seed."
    numbers = [
        _numbers(label, run)
        for label, run in zip(short_labels([str(r.path) for r in runs]), runs, strict=True)
    ]
    return [
        tag("h2", "Training"),
        legend(labels),
        tag("div", *charts, class_="charts"),
        tag("p", note, class_="note"),
        details("Numbers of every iteration", *numbers),
    ]


def curve(name: str, style: int, label: str, runs: Sequence[TrainingRun]) -> Series:
    """Mean of a metric over the runs that have it, and of several the least and the greatest."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for line in run.metrics:
            value = line.get(name)
            values.setdefault(line["iteration"], []).extend([] if value is None else [value])
    iterations = sorted(values)

    def reduced(reduce: Callable[[list[float]], float]) -> list[float]:
        return [reduce(values[i]) if values[i] else math.nan for i in iterations]

    low, high = (reduced(min), reduced(max)) if len(runs) > 1 else ([], [])
    return Series(label, iterations, reduced(fmean), style, low, high, markers=len(iterations) <= 60)


def _numbers(label: str, run: TrainingRun) -> Html:
    rows = [[str(line["iteration"]), *(number(line.get(name)) for name in _CURVES)] for line in run.metrics]
    return table(label, ["iteration", *(title.format(unit=run.unit) for title, _ in _CURVES.values())], rows)
