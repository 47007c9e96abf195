"""The same start under each policy: how fast, how abrupt, and on video."""

import base64
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.evaluation.evaluate import Measurement
from lerobot_smoothvla.evaluation.report import number
from lerobot_smoothvla.jerk_reward import task_key
from lerobot_smoothvla.report.figures import Series, legend, line_chart
from lerobot_smoothvla.report.markup import Html, join, table, tag
from lerobot_smoothvla.report.runs import Policy
from lerobot_smoothvla.smoothness import acceleration, jerk, velocity

_STARTS = 4
"""Shown at most."""
_MB = 1_000_000
_DERIVATIVES = (
    ("Speed, {unit}/s", velocity),
    ("Acceleration, {unit}/s²", acceleration),
    ("Jerk, {unit}/s³", jerk),
)


class VideoBudget:
    """What is left of the size that videos may take in a page."""

    def __init__(self, megabytes: float) -> None:
        """Begin with all of it."""
        self._left = megabytes * _MB

    def player(self, path: Path, label: str) -> Html:
        """The video, or a sentence in its place where it would be too large."""
        size = path.stat().st_size
        if size > self._left:
            said = f"The video of {label} ({size / _MB:.1f} MB) is left out, as all may take --max_video_mb: "
            return tag("p", said, str(path), class_="note")
        self._left -= size
        source = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode() + "#t=0.001"
        player = tag(
            "video", src=source, controls=True, muted=True, playsinline=True, aria_label=f"Video: {label}"
        )
        return tag("figure", tag("figcaption", label), player)


def starts_section(policies: Sequence[Policy], budget: VideoBudget) -> list[Html]:
    """A few starts, those with videos first, with what each policy made of them."""
    chosen = _chosen(policies)
    if not chosen:
        return []
    parts = [
        tag("h2", "The same start"),
        legend([policy.label for policy in policies]),
        tag("p", "Single episodes, to look at; what is true of policies stands above.", class_="note"),
    ]
    for start in chosen:
        parts += _start(start, policies, budget)
    return parts


def profiles(positions: Tensor, dt: float) -> list[tuple[list[float], list[float]]]:
    """Times and norms of velocity, acceleration and jerk of one episode.

    Args:
        positions: (T + 1, D), unit.
        dt: Control period, s.

    Returns:
        For each derivative that T + 1 positions suffice for: its times (each in the middle of the positions
        that it spans, s) and its norms (unit/s, unit/s², unit/s³).
    """
    found = []
    for order, (_, derivative) in enumerate(_DERIVATIVES, start=1):
        if len(positions) > order:
            norms = derivative(positions.double(), dt).norm(dim=-1).tolist()
            found.append(([(index + order / 2) * dt for index in range(len(norms))], norms))
    return found


def profile_charts(
    episodes: Sequence[tuple[str, int, Tensor, float]], unit: str, marks: Sequence[tuple[float, str]] = ()
) -> Html:
    """Speed, acceleration and jerk over time.

    Args:
        episodes: Label, style, (T + 1, D) positions in `unit`, and control period in s.
        unit: Of the positions.
        marks: Times to point to, s, and what is there.
    """
    measured = [(label, style, profiles(positions, dt)) for label, style, positions, dt in episodes]
    charts = []
    for order, (title, _) in enumerate(_DERIVATIVES):
        series = [
            Series(label, *found[order], style, markers=False)
            for label, style, found in measured
            if len(found) > order
        ]
        if series:
            charts.append(line_chart(title.format(unit=unit), "time, s", series, marks=marks))
    return tag("div", *charts, class_="charts")


def _chosen(policies: Sequence[Policy]) -> list[Start]:
    """Starts of which there is something to see; with more policies and with videos before the others."""
    seen: dict[Start, tuple[int, int]] = {}
    for policy in policies:
        for measurement in policy.evaluation.measurements:
            start = measurement.start
            n_videos, n_positions = seen.get(start, (0, 0))
            n_videos += policy.run.video(policy.name, start) is not None
            seen[start] = (n_videos, n_positions + (measurement.positions is not None))
    shown = [start for start, counts in seen.items() if any(counts)]
    return sorted(shown, key=lambda start: (tuple(-n for n in seen[start]), start))[:_STARTS]


def _start(start: Start, policies: Sequence[Policy], budget: VideoBudget) -> list[Html]:
    played = [
        (style, policy, measurement)
        for style, policy in enumerate(policies)
        for measurement in policy.evaluation.measurements
        if measurement.start == start
    ]
    unit = played[0][2].unit
    rows = [[policy.label, *_facts(measurement)] for _, policy, measurement in played]
    headers = ["policy", "outcome", "duration, s", f"jerk RMS, {unit}/s³", "LDLJ"]
    title = f"{task_key(start)}, initial state {start.init_state}, seed {start.seed}"
    parts = [tag("h3", title), table("What each policy made of it", headers, rows)]
    videos = [
        budget.player(path, policy.label)
        for _, policy, _ in played
        if (path := policy.run.video(policy.name, start)) is not None
    ]
    if videos:
        players = tag("div", *videos, class_="charts")
        several = sum("<video" in video for video in videos) > 1
        button = tag("button", "Play together", class_="together", type="button") if several else Html()
        parts.append(tag("div", button, players))
    kept = [
        (policy.label, style, m.positions, m.dt)
        for style, policy, m in played
        if m.positions is not None and m.dt is not None
    ]
    said = "This evaluation kept no positions, so there are no profiles: evaluate again to have them."
    parts.append(profile_charts(kept, unit) if kept else tag("p", said, class_="note"))
    return [join(parts)]


def _facts(measurement: Measurement) -> list[str]:
    outcome = "success" if measurement.success else "failure"
    return [outcome, *(number(measurement.terms[name]) for name in ("duration", "jerk_rms", "ldlj"))]
