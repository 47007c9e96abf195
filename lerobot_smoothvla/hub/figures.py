"""The pictures of a model card, as PNG: what the run's log says, and what the evaluations found."""

import math
from collections.abc import Callable
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lerobot_smoothvla.evaluation.evaluate import Summary
from lerobot_smoothvla.evaluation.statistics import Interval
from lerobot_smoothvla.hub.card import CardFacts, Picture

_WIDTH, _HEIGHT, _DPI = 8.0, 3.2, 150
"""Inches of a picture, and pixels of an inch."""


def pictures(facts: CardFacts) -> dict[Picture, bytes]:
    """Those that there is something to show in.

    Args:
        facts: Of the card.

    Returns:
        PNG by name, in the order in which the card shows them.
    """
    drawn = {}
    for picture, draw in _DRAWN_BY.items():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")
        if draw(figure, facts):
            png = BytesIO()
            figure.savefig(png, format="png")
            drawn[picture] = png.getvalue()
    return drawn


def _training(figure: Figure, facts: CardFacts) -> bool:
    """Success and jerk of the rollouts over the iterations, if there are several."""
    if len(facts.metrics) < 2:
        return False
    curves = {"success_rate": "success of the rollouts", "jerk_rms": f"jerk RMS, {facts.unit}/s³"}
    for axes, (name, label) in zip(figure.subplots(1, 2), curves.items(), strict=True):
        values = [line.get(name) for line in facts.metrics]
        axes.plot(
            [line["iteration"] for line in facts.metrics],
            [math.nan if value is None else value for value in values],
            marker="." if len(values) <= 60 else "",
        )
        axes.set(xlabel="iteration", ylabel=label)
        axes.locator_params("x", integer=True)
    return True


def _evaluations(figure: Figure, facts: CardFacts) -> bool:
    """Success against jerk of this policy and of those that it was compared with, with their intervals."""
    summaries = [(measured, measured.result.summary()) for measured in facts.evaluations]
    shown = [(measured, summary) for measured, summary in summaries if summary.terms["jerk_rms"]]
    if not shown:
        return False
    for axes, (measured, summary) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
    ):
        if measured.baseline is not None:
            _cross(axes, measured.baseline.summary(), measured.baseline_name, "C1")
        _cross(axes, summary, "this policy", "C0")
        axes.set(xlabel=f"jerk RMS, {measured.result.unit}/s³", ylabel="success", ylim=(-0.05, 1.05))
        axes.set_title(measured.condition or "scenes as in training", fontsize="medium")
        axes.legend(fontsize="small")
    return True


def _cross(axes: Axes, summary: Summary, label: str, colour: str) -> None:
    success, jerk = summary.success_rate, summary.terms["jerk_rms"]
    if jerk is not None:
        axes.errorbar(
            jerk.estimate,
            success.estimate,
            _arms(success),
            _arms(jerk),
            marker="o",
            capsize=3,
            label=label,
            color=colour,
        )


def _arms(interval: Interval) -> list[list[float]]:
    """How far it reaches below and above its estimate."""
    return [[interval.estimate - interval.low], [interval.high - interval.estimate]]


_DRAWN_BY: dict[Picture, Callable[[Figure, CardFacts], bool]] = {
    "training": _training,
    "evaluations": _evaluations,
}
