"""An evaluation as a terminal shows it and as a directory keeps it."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lerobot_smoothvla.envs.shift import Shift
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.evaluation.evaluate import AMONG_SUCCESSES, Evaluation, Summary, compare
from lerobot_smoothvla.evaluation.statistics import Interval
from lerobot_smoothvla.jerk_reward import task_key

EVAL_INFO = "eval_info.json"
"""The file's name in LeRobot, too."""

_LABELS = {
    "jerk_rms": "jerk RMS, {unit}/s³",
    "boundary_jerk_rms": "  between chunks",
    "interior_jerk_rms": "  within chunks",
    "ldlj": "LDLJ",
    "sparc": "SPARC",
    "time_to_success": "time to success, s",
    "duration": "duration, s",
    "path_length": "path length, {unit}",
    "action_magnitude": "action magnitude",
}
_COLUMNS = {
    "jerk_rms": "jerk {unit}/s³",
    "ldlj": "LDLJ",
    "sparc": "SPARC",
    "time_to_success": "solved s",
    "path_length": "path {unit}",
    "action_magnitude": "action",
}


def prepare_output_dir(directory: Path, file: str = EVAL_INFO) -> None:
    """Make sure that a result can be written, before hours are spent on it.

    Raises:
        FileExistsError: If the directory already holds `file`.
        OSError: If it cannot be made or written to.
    """
    if (directory / file).exists():
        raise FileExistsError(
            f"'{directory}' already holds {file}, which would be overwritten; choose another --output_dir."
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise OSError(
            f"'{directory}' cannot be written to ({error.strerror}); choose another --output_dir."
        ) from error


def to_json(
    paths: Mapping[str, str],
    results: Mapping[str, Evaluation],
    filters: Mapping[str, dict[str, Any]] | None = None,
    shift: Shift | None = None,
) -> dict[str, Any]:
    """What `eval_info.json` holds.

    Args:
        paths: The checkpoints of `policy` and, where two are compared, `compare`.
        results: Theirs.
        filters: What their actions went through.
        shift: Of every start's scene.

    Returns:
        `shift`; for each its `path`, `filter` and `Evaluation.to_json`; and with two, their `difference`,
        policy minus compare.
    """
    info: dict[str, Any] = {"shift": shift and {**asdict(shift), "unit": shift.unit}}
    for name, one in results.items():
        info[name] = {"path": paths[name], "filter": (filters or {}).get(name), **one.to_json()}
    if "compare" in results:
        info["difference"] = asdict(compare(results["compare"], results["policy"]))
    return info


def write_info(directory: Path, info: Mapping[str, Any], file: str = EVAL_INFO) -> Path:
    """Write `info` as JSON to `file` in `directory`, and return its path.

    Raises:
        FileExistsError: If another process has written it meanwhile.
    """
    text = json.dumps(info, indent=2, allow_nan=False)
    with (directory / file).open("x", encoding="utf-8") as stream:
        stream.write(text + "\n")
    return directory / file


def video_paths(starts: Sequence[Start], n_videos: int, directory: Path) -> dict[Start, Path]:
    """Where the videos of the first `n_videos` starts of each task go."""
    paths: dict[Start, Path] = {}
    counts: dict[str, int] = {}
    for start in starts:
        key = task_key(start)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= n_videos:
            name = f"init_{start.init_state}_seed_{start.seed}.mp4"
            paths[start] = directory / f"{start.suite}_{start.task_id}" / name
    return paths


def evaluation_table(evaluation: Evaluation) -> str:
    """Means per task, and overall with intervals; at most 100 columns wide."""
    overall, unit = evaluation.summary(), evaluation.unit
    summaries = {**{key: one.summary() for key, one in evaluation.by_task().items()}, "overall": overall}
    per_task = [["task", "n", "success", "95 %", *(column.format(unit=unit) for column in _COLUMNS.values())]]
    for name, summary in summaries.items():
        rate = summary.success_rate
        means = [_number(_estimate(summary.terms[term])) for term in _COLUMNS]
        per_task.append([name, str(summary.n_episodes), f"{rate.estimate:.2f}", _bounds(rate), *means])
    terms = [["overall, mean [95 %]", "all episodes", f"{overall.n_successes} successes"]]
    for term, label in _LABELS.items():
        terms.append(
            [label.format(unit=unit), _interval(overall.terms[term]), _among_successes(overall, term)]
        )
    return f"{_aligned(per_task)}\n\n{_aligned(terms)}"


def comparison_table(baseline: Evaluation, candidate: Evaluation) -> str:
    """Both policies' means and the paired differences with intervals; at most 100 columns wide."""
    first, second, difference = baseline.summary(), candidate.summary(), compare(baseline, candidate)
    rows = [
        [
            f"{difference.n_episodes} starts",
            "baseline",
            "policy",
            "difference [95 %]",
            f"where both solve ({difference.n_successes})",
        ],
        [
            "success rate",
            _number(first.success_rate.estimate),
            _number(second.success_rate.estimate),
            _interval(difference.success_rate, signed=True),
            "",
        ],
    ]
    for term, label in _LABELS.items():
        rows.append(
            [
                label.format(unit=baseline.unit),
                _number(_estimate(first.terms[term])),
                _number(_estimate(second.terms[term])),
                _interval(difference.terms[term], signed=True),
                _among_successes(difference, term, signed=True),
            ]
        )
    return _aligned(rows)


def _among_successes(summary: Summary, term: str, signed: bool = False) -> str:
    return _interval(summary.among_successes[term], signed) if term in AMONG_SUCCESSES else ""


def _estimate(interval: Interval | None) -> float | None:
    return None if interval is None else interval.estimate


def _number(value: float | None, signed: bool = False) -> str:
    """About three significant digits; "-" for what is not there."""
    if value is None:
        return "-"
    digits = next((n for n, limit in ((3, 1), (2, 10), (1, 100)) if abs(value) < limit), 0)
    return f"{value:{'+' if signed else ''}.{digits}f}"


def _bounds(interval: Interval) -> str:
    return f"[{interval.low:.2f}, {interval.high:.2f}]"


def _interval(interval: Interval | None, signed: bool = False) -> str:
    if interval is None:
        return "-"
    low, high = _number(interval.low, signed), _number(interval.high, signed)
    return f"{_number(interval.estimate, signed)} [{low}, {high}]"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
