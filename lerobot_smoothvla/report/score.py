"""How smooth the episodes of a dataset are, and where they are not.

Dims: T + 1 frames of an episode, D position axes. Positions are in the signal's unit, which stands for every
m in `smoothness`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor

from lerobot_smoothvla.dataset_loading import FPS, load_dataset, readable
from lerobot_smoothvla.evaluation.evaluate import without_nan
from lerobot_smoothvla.evaluation.statistics import Interval, bootstrap_interval
from lerobot_smoothvla.report.signal import (
    PositionConfig,
    Signal,
    as_positions,
    control_rate,
    find_key,
    find_unit,
    flat_names,
)
from lerobot_smoothvla.smoothness import jerk, measure

TERMS = ("jerk_rms", "ldlj", "sparc", "duration", "path_length", "moving_share")
_APART_S = 0.5
"""Two of the worst moments of an episode are at least so long apart."""


@dataclass
class ScoreDatasetConfig:
    """Which dataset.

    Attributes:
        repo_id: Its name on the Hub, or any name for one in `root`.
        root: Its directory, if it is on this machine.
    """

    repo_id: str = ""
    root: Path | None = None

    @property
    def name(self) -> str:
        """Last part of its name."""
        return self.repo_id.rpartition("/")[2] or (self.root.resolve().name if self.root else "")


@dataclass
class ScoreConfig:
    """What to score.

    Attributes:
        dataset: Which one.
        position: Where its positions are.
        fps: Frames a second; None takes the dataset's (of LIBERO's datasets the 20 Hz of their control).
        n_worst: How many of the worst moments to list.
        output_dir: Gets `score.html` and `score.json`, over earlier ones; default `outputs/score/<name>`.
    """

    dataset: ScoreDatasetConfig = field(default_factory=ScoreDatasetConfig)
    position: PositionConfig = field(default_factory=PositionConfig)
    fps: float | None = None
    n_worst: int = 10
    output_dir: Path | None = None

    def __post_init__(self) -> None:
        """Reject what cannot be scored.

        Raises:
            ValueError: If no dataset is named or a number is out of its range.
        """
        if not self.dataset.name:
            raise ValueError(
                "There is nothing to score: pass --dataset.repo_id=USER/NAME or --dataset.root=DIR."
            )
        if self.fps is not None and not FPS[0] <= self.fps <= FPS[1]:
            raise ValueError(
                f"`fps` should be from {FPS[0]:g} to {FPS[1]:g} frames a second, got {self.fps}."
            )
        if self.n_worst < 0:
            raise ValueError(f"`n_worst` should be at least 0, got {self.n_worst}.")

    @property
    def directory(self) -> Path:
        """Where the result goes."""
        return self.output_dir or Path("outputs/score") / self.dataset.name


@dataclass(frozen=True)
class Recording:
    """An episode of the dataset.

    Attributes:
        index: In the dataset.
        task: What it shows.
        positions: (T + 1, D) at the frames.
        terms: `TERMS` of it; what cannot be measured is NaN.
    """

    index: int
    task: str
    positions: Tensor = field(compare=False, repr=False)
    terms: dict[str, float]


@dataclass(frozen=True)
class Moment:
    """Where the jerk is large.

    Attributes:
        episode: Index in the dataset.
        first_frame: Of the four whose positions make the jerk, from 0 at the episode's first.
        last_frame: Of the four.
        time: In the middle of them, s from the episode's first frame.
        jerk: Its norm, unit/s³.
    """

    episode: int
    first_frame: int
    last_frame: int
    time: float
    jerk: float


@dataclass(frozen=True)
class Score:
    """The smoothness of a dataset.

    Attributes:
        name: Of the dataset.
        signal: What was measured.
        fps: Frames a second that were reckoned with.
        recordings: All episodes.
        moments: The worst, the worst first.
        notes: What a reader must know.
    """

    name: str
    signal: Signal
    fps: float
    recordings: tuple[Recording, ...]
    moments: tuple[Moment, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All but the positions, with null for what is not there."""
        return without_nan(
            {
                "dataset": self.name,
                "position": asdict(self.signal),
                "fps": self.fps,
                "notes": list(self.notes),
                "overall": {name: interval and asdict(interval) for name, interval in self.overall().items()},
                "per_episode": [
                    {"episode": r.index, "task": r.task, "n_frames": len(r.positions), **r.terms}
                    for r in self.recordings
                ],
                "worst_moments": [asdict(moment) for moment in self.moments],
            }
        )

    def overall(self) -> dict[str, Interval | None]:
        """Of each term the mean over the episodes that have it, with its bootstrap interval."""
        return {name: mean_of(self.recordings, name) for name in TERMS}

    def by_task(self) -> dict[str, list[Recording]]:
        """The recordings of each task, in the order in which the tasks first come."""
        tasks: dict[str, list[Recording]] = {}
        for recording in self.recordings:
            tasks.setdefault(recording.task, []).append(recording)
        return tasks


def score_dataset(config: ScoreConfig) -> Score:
    """Measure every episode.

    Raises:
        OSError: If the dataset is neither on this machine nor in reach.
        ValueError: If it cannot be read, or does not tell where its positions are, or in which unit.
    """
    of = config.dataset
    dataset = load_dataset(of.repo_id or f"local/{of.name}", of.root)
    features, robot_type = dataset.meta.features, dataset.meta.robot_type
    key, dims = find_key(features, config.position)
    with readable(f"'{of.name}'"):
        # A format of its own: LeRobot's transform would touch every frame by itself.
        columns = dataset.select_columns([key, "episode_index"]).with_format("numpy")[:]
        positions = as_positions(columns[key], dims)
        indices = torch.as_tensor(columns["episode_index"]).flatten()
        tasks = {index: _task(dataset, index) for index in indices.unique().tolist()}
    names = tuple(flat_names(features[key])[dim] for dim in dims)
    signal = Signal.of(key, dims, names, find_unit(key, names, robot_type, positions, config.position))
    positions = positions * signal.scale
    fps, note = (config.fps, None) if config.fps else control_rate(features, robot_type, dataset.meta.fps)
    recordings = tuple(
        _recording(index, task, positions[indices == index], 1 / fps, signal) for index, task in tasks.items()
    )
    notes = tuple(filter(None, [note, _too_short(recordings)]))
    return Score(
        config.dataset.name,
        signal,
        fps,
        recordings,
        worst_moments(recordings, 1 / fps, config.n_worst),
        notes,
    )


def worst_moments(recordings: Sequence[Recording], dt: float, n: int) -> tuple[Moment, ...]:
    """The n largest jerks of all recordings, of one recording not closer than half a second to one another.

    Args:
        recordings: Some episodes.
        dt: Between two frames, s.
        n: How many.
    """
    found: list[Moment] = []
    for recording in recordings:
        if len(recording.positions) < 4:
            continue
        norms = jerk(recording.positions, dt).norm(dim=-1)
        taken: list[int] = []
        for index in norms.argsort(descending=True).tolist():
            if len(taken) == n:
                break
            if all(abs(index - other) * dt >= _APART_S for other in taken):
                taken.append(index)
        found += [
            Moment(recording.index, i, i + 3, (i + 1.5) * dt, norms[i].item()) for i in taken if norms[i] > 0
        ]
    return tuple(sorted(found, key=lambda moment: -moment.jerk)[:n])


def mean_of(recordings: Sequence[Recording], name: str) -> Interval | None:
    """Mean of a term over the recordings that have it, with its 95 % bootstrap interval."""
    values = _finite(recordings, name)
    return bootstrap_interval(values) if values else None


def median_of(recordings: Sequence[Recording], name: str) -> float | None:
    """Median of a term over the recordings that have it."""
    values = _finite(recordings, name)
    return median(values) if values else None


def _finite(recordings: Sequence[Recording], name: str) -> list[float]:
    return [value for recording in recordings if math.isfinite(value := recording.terms[name])]


def _recording(index: int, task: str, positions: Tensor, dt: float, signal: Signal) -> Recording:
    # A dataset does not say where chunks were, so all is one chunk.
    executed = torch.tensor([len(positions) - 1])
    measured = measure(positions, dt, executed, signal.moving_speed)
    return Recording(index, task, positions, {name: measured[name] for name in TERMS})


def _task(dataset: LeRobotDataset, index: int) -> str:
    return "; ".join(dataset.meta.episodes[index]["tasks"])


def _too_short(recordings: Sequence[Recording]) -> str | None:
    short = [str(recording.index) for recording in recordings if len(recording.positions) < 4]
    return f"Episodes {', '.join(short)} have fewer than 4 frames and so no jerk." if short else None
