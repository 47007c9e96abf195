"""The smoothness of a dataset as a page and as JSON."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from lerobot_smoothvla.evaluation.report import number, spelt
from lerobot_smoothvla.provenance import provenance
from lerobot_smoothvla.report.figures import histogram
from lerobot_smoothvla.report.markup import Html, details, facts_list, table, tag
from lerobot_smoothvla.report.page import document, write_page
from lerobot_smoothvla.report.score import TERMS, Moment, Recording, Score, mean_of, median_of
from lerobot_smoothvla.report.starts import profile_charts

PAGE, JSON = "score.html", "score.json"
_LABELS = {
    "jerk_rms": "jerk RMS, {unit}/s³",
    "ldlj": "LDLJ",
    "sparc": "SPARC",
    "duration": "duration, s",
    "path_length": "path length, {unit}",
    "moving_share": "share moving",
}
_SHOWN_EPISODES = 3
"""Of the worst moments, how many episodes are drawn."""
_EXPLANATIONS = {
    "norm": "The unit norm is LeRobot's -100 to 100 over each joint's calibrated range: compare only what "
    "the same robot recorded with the same calibration.",
    "rad": "Steps of a joint's encoder are jerk, too: of 4096 a turn, as SO arms have, one is 41 rad/s³ "
    "at 30 frames a second. Compare only what the same kind of robot recorded at the same rate.",
}


def write_score(score: Score, directory: Path) -> Path:
    """Write the page and the JSON, over earlier ones.

    Returns:
        The page.

    Raises:
        OSError: If they cannot be written.
    """
    origin = provenance()
    write_page(directory / PAGE, score_page(score, origin))
    info = json.dumps({**score.to_json(), "provenance": origin}, indent=2, allow_nan=False)
    (directory / JSON).write_text(info + "\n", encoding="utf-8")
    return directory / PAGE


def score_sentences(score: Score) -> Iterator[str]:
    """What was measured and what came out."""
    signal, n = score.signal, len(score.recordings)
    frames = sum(len(recording.positions) for recording in score.recordings)
    yield (
        f"{n} episodes, {frames} frames at {score.fps:g} frames a second. Position: "
        f"{', '.join(signal.names)} of {signal.key}, in {signal.unit}."
    )
    overall, middle = score.overall(), median_of(score.recordings, "jerk_rms")
    yield (
        f"Jerk RMS is {spelt(overall['jerk_rms'])} {signal.unit}/s³ on average (95 % interval), median "
        f"{number(middle)}; LDLJ {spelt(overall['ldlj'])}, SPARC {spelt(overall['sparc'])} (nearer 0 is "
        "smoother)."
    )
    if middle and score.moments:
        measured = [r for r in score.recordings if math.isfinite(r.terms["jerk_rms"])]
        worst, moment = max(measured, key=lambda r: r.terms["jerk_rms"]), score.moments[0]
        yield (
            f"The least smooth episode is {worst.index}, with {worst.terms['jerk_rms'] / middle:.1f} times "
            f"the median jerk RMS; the worst moment is in episode {moment.episode} at {moment.time:.2f} s."
        )
    yield from score.notes
    if signal.unit in _EXPLANATIONS:
        yield _EXPLANATIONS[signal.unit]


def score_page(score: Score, origin: dict[str, str]) -> str:
    """The page."""
    unit = score.signal.unit
    charts = [
        histogram(
            f"Episodes by {_LABELS[name].format(unit=unit)}",
            _LABELS[name].format(unit=unit),
            [recording.terms[name] for recording in score.recordings],
        )
        for name in ("jerk_rms", "ldlj", "sparc", "duration")
    ]
    parts = [
        tag("h2", "Summary"),
        tag("ul", *(tag("li", said) for said in score_sentences(score)), class_="words"),
        tag("h2", "Episodes"),
        tag("div", *charts, class_="charts"),
        _tasks(score),
        details("Every episode", _episodes(score)),
        *_worst(score),
        tag("h2", "Where it comes from"),
        facts_list(list(origin.items())),
    ]
    return document(f"Smoothness of {score.name}", parts)


def _headers(score: Score) -> list[str]:
    return [_LABELS[name].format(unit=score.signal.unit) for name in TERMS]


def _tasks(score: Score) -> Html:
    groups = {**score.by_task(), "all": list(score.recordings)}
    rows = [
        [task, str(len(of_task)), *(spelt(mean_of(of_task, name)) for name in TERMS)]
        for task, of_task in groups.items()
    ]
    return table("Mean over episodes with its 95 % interval", ["task", "episodes", *_headers(score)], rows)


def _episodes(score: Score) -> Html:
    rows = [
        [str(r.index), str(len(r.positions)), *(_cell(r, name) for name in TERMS), r.task]
        for r in score.recordings
    ]
    return table("Measures of every episode", ["episode", "frames", *_headers(score), "task"], rows)


def _cell(recording: Recording, name: str) -> str:
    value = recording.terms[name]
    return number(value if math.isfinite(value) else None)


def _worst(score: Score) -> list[Html]:
    if not score.moments:
        return []
    unit, dt = score.signal.unit, 1 / score.fps
    rows = [
        [str(rank), str(m.episode), f"{m.first_frame} to {m.last_frame}", f"{m.time:.2f}", number(m.jerk)]
        for rank, m in enumerate(score.moments, start=1)
    ]
    headers = ["rank", "episode", "frames", "time, s", f"jerk, {unit}/s³"]
    note = "Frames count from 0 at the episode's first, and so does the time; a jerk takes four frames."
    parts = [
        tag("h2", "Worst moments"),
        table("Where the jerk is largest", headers, rows),
        tag("p", note, class_="note"),
    ]
    recordings = {recording.index: recording for recording in score.recordings}
    for episode in list(dict.fromkeys(moment.episode for moment in score.moments))[:_SHOWN_EPISODES]:
        recording = recordings[episode]
        marks = _marks([moment for moment in score.moments if moment.episode == episode])
        parts.append(tag("h3", f"Episode {episode}: {recording.task}"))
        parts.append(profile_charts([(f"episode {episode}", 0, recording.positions, dt)], unit, marks))
    return parts


def _marks(moments: Sequence[Moment]) -> list[tuple[float, str]]:
    return [(m.time, f"frames {m.first_frame} to {m.last_frame}: jerk {number(m.jerk)}") for m in moments]
