"""An evaluation as a terminal shows it and as a directory keeps it."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lerobot_smoothvla.envs.shift import Shift
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.evaluation.evaluate import AMONG_SUCCESSES, Evaluation, Summary, compare
from lerobot_smoothvla.evaluation.statistics import Interval
from lerobot_smoothvla.jerk_reward import task_key

EVAL_INFO = "eval_info.json"
"""The file's name in LeRobot, too."""
POSITIONS = "positions.safetensors"
"""Beside it: `policy/3` are the positions of the fourth episode in `per_episode` of `policy`."""
VIDEOS = "videos"

LABELS = {
    "jerk_rms": "jerk RMS, {unit}/s³",
    "boundary_jerk_rms": "  between chunks",
    "interior_jerk_rms": "  within chunks",
    "ldlj": "LDLJ",
    "sparc": "SPARC",
    "joint_jerk_rms": "joints' jerk RMS, rad/s³",
    "joint_ldlj": "joints' LDLJ",
    "time_to_success": "time to success, s",
    "duration": "duration, s",
    "path_length": "path length, {unit}",
    "action_magnitude": "action magnitude",
}
COLUMNS = {
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


def write(
    directory: Path,
    paths: Mapping[str, str],
    results: Mapping[str, Evaluation],
    filters: Mapping[str, dict[str, Any]] | None = None,
    shift: Shift | None = None,
) -> Path:
    """Write positions and then `eval_info.json`, whose path it returns; arguments as in `to_json`."""
    _write_positions(directory, results)
    return write_info(directory, to_json(paths, results, filters, shift))


def _write_positions(directory: Path, results: Mapping[str, Evaluation]) -> None:
    """Keep every episode's (T + 1, D) float32 positions: some 3 kB an episode, and no pickle.

    They are what the jerk comes from, and too long for a JSON that people read. The control period is an
    episode's `duration` over T.
    """
    tensors = {
        f"{name}/{index}": measurement.positions.float().contiguous()
        for name, evaluation in results.items()
        for index, measurement in enumerate(evaluation.measurements)
        if measurement.positions is not None
    }
    save_file(tensors, directory / POSITIONS)


def read_evaluation(directory: Path) -> tuple[dict[str, str], dict[str, Evaluation]]:
    """The paths and results that `to_json` took, with positions where the directory has them.

    Raises:
        FileNotFoundError: If it holds no evaluation.
        ValueError: If what it holds cannot be read.
    """
    file, kept = directory / EVAL_INFO, directory / POSITIONS
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        tensors = load_file(kept) if kept.is_file() else {}
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"'{directory}' holds an evaluation that cannot be read ({error}).") from error
    if "policy" not in info:
        raise ValueError(f"'{file}' has no entry `policy`: it was not written by `smoothvla eval`.")
    names = [name for name in ("compare", "policy") if name in info]
    results = {name: _with_positions(Evaluation.from_json(info[name]), name, tensors) for name in names}
    return {name: str(info[name].get("path", name)) for name in names}, results


def _with_positions(evaluation: Evaluation, name: str, tensors: Mapping[str, Tensor]) -> Evaluation:
    return Evaluation(
        tuple(
            replace(measurement, positions=tensors.get(f"{name}/{index}"))
            for index, measurement in enumerate(evaluation.measurements)
        )
    )


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
    return f"{_aligned(task_rows(evaluation))}\n\n{_aligned(overall_rows(evaluation))}"


def overall_rows(evaluation: Evaluation) -> list[list[str]]:
    """Headers, and a row for each term: its mean and interval over all episodes, and over successes."""
    overall, unit = evaluation.summary(), evaluation.unit
    rows = [["overall, mean [95 %]", "all episodes", f"{overall.n_successes} successes"]]
    for term, label in _labels(overall):
        rows.append([label.format(unit=unit), spelt(overall.terms[term]), _among_successes(overall, term)])
    return rows


def task_rows(evaluation: Evaluation) -> list[list[str]]:
    """Headers, a row for each task, and one overall."""
    summaries = {key: one.summary() for key, one in evaluation.by_task().items()}
    headers = [column.format(unit=evaluation.unit) for column in COLUMNS.values()]
    rows = [["task", "n", "success", "95 %", *headers]]
    for name, summary in {**summaries, "overall": evaluation.summary()}.items():
        rate = summary.success_rate
        means = [number(_estimate(summary.terms[term])) for term in COLUMNS]
        rows.append([name, str(summary.n_episodes), f"{rate.estimate:.2f}", _bounds(rate), *means])
    return rows


def comparison_table(baseline: Evaluation, candidate: Evaluation) -> str:
    """Both policies' means and the paired differences with intervals; at most 100 columns wide."""
    return _aligned(comparison_rows(baseline, candidate))


def comparison_rows(baseline: Evaluation, candidate: Evaluation) -> list[list[str]]:
    """Headers, and a row for the success rate and for each term."""
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
            number(first.success_rate.estimate),
            number(second.success_rate.estimate),
            spelt(difference.success_rate, signed=True),
            "",
        ],
    ]
    for term, label in _labels(difference):
        rows.append(
            [
                label.format(unit=baseline.unit),
                number(_estimate(first.terms[term])),
                number(_estimate(second.terms.get(term))),
                spelt(difference.terms[term], signed=True),
                _among_successes(difference, term, signed=True),
            ]
        )
    return rows


def _labels(summary: Summary) -> list[tuple[str, str]]:
    """Of the terms that the environment measures."""
    return [(term, label) for term, label in LABELS.items() if term in summary.terms]


def _among_successes(summary: Summary, term: str, signed: bool = False) -> str:
    return spelt(summary.among_successes[term], signed) if term in AMONG_SUCCESSES else ""


def _estimate(interval: Interval | None) -> float | None:
    return None if interval is None else interval.estimate


def number(value: float | None, signed: bool = False) -> str:
    """About three significant digits; "-" for what is not there."""
    if value is None:
        return "-"
    digits = next((n for n, limit in ((3, 1), (2, 10), (1, 100)) if abs(value) < limit), 0)
    return f"{value:{'+' if signed else ''}.{digits}f}"


def _bounds(interval: Interval) -> str:
    return f"[{interval.low:.2f}, {interval.high:.2f}]"


def spelt(interval: Interval | None, signed: bool = False) -> str:
    """Estimate and interval; "-" for what is not there."""
    if interval is None:
        return "-"
    low, high = number(interval.low, signed), number(interval.high, signed)
    return f"{number(interval.estimate, signed)} [{low}, {high}]"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its header."""
    header, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, "|---" * len(rows[0]) + "|", *others]) + "\n"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
