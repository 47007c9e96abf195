"""What a policy does on given starts: success and smoothness, per task and overall, alone or against another.

Episodes are rolled out by the plain ODE, as in deployment. Units: SI. What an episode does not have (the time
to success of a failure, the jerk of an arm that never moved) is NaN, left out of means, and null in JSON.
"""

import math
import zlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import batched
from pathlib import Path
from typing import Any

from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from torch import Tensor
from tqdm import tqdm

from lerobot_smoothvla.envs.shift import Shift, ShiftKind
from lerobot_smoothvla.envs.tasks import has_init_states, require_init_states
from lerobot_smoothvla.episode import Embodiment, Episode, Start, Task, arm_dimensions
from lerobot_smoothvla.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    paired_bootstrap_interval,
    wilson_interval,
)
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.jerk_reward import task_key
from lerobot_smoothvla.rollout.engine import RolloutEngine, RolloutRequest, Sampler
from lerobot_smoothvla.smoothness import measure

AMONG_SUCCESSES = (
    "jerk_rms",
    "boundary_jerk_rms",
    "interior_jerk_rms",
    "ldlj",
    "sparc",
    "joint_jerk_rms",
    "joint_ldlj",
)
"""Terms that are also averaged over successes alone, since how a failure moves matters less."""
DEPLOYED = DeployedSampler()
_EPISODES = 10
"""Of a task without initial states."""
_EPISODES_AT_ONCE = 64
"""An episode's images take some 20 MB at 256 px; they are dropped once it is measured."""


@dataclass(frozen=True)
class EvaluationConfig:
    """On which starts, and how many at a time.

    Attributes:
        init_states: First of each task's initial states, and one past the last; training leaves out the
            default ones. Not used where tasks have none, as anywhere but in LIBERO.
        n_episodes: Of each task; None for one from each initial state, or 10 where there are none. More than
            the initial states go on with the next simulator seed.
        seed: Simulator seed of initial state 0; state k has `seed + k`. Without initial states that of the
            first episode; the others have the next ones, and training has seeds from 2^31 on.
        n_workers: Rollout processes, one a core; 0 rolls out in this process.
        n_videos: Of each task, of its first episodes.
        shift: What of every start's scene is shifted (LIBERO): camera, light, arm, placement; see
            `envs.scene.Scene`.
        shift_magnitude: How far: m of camera (default 0.05) and placement (0.03), rad of the arm (0.1), share
            of the light (0.3).
    """

    init_states: tuple[int, int] = (40, 50)
    n_episodes: int | None = None
    seed: int = 1000
    n_workers: int = 2
    n_videos: int = 0
    shift: ShiftKind = "none"
    shift_magnitude: float | None = None

    def __post_init__(self) -> None:
        """Reject what cannot be run.

        Raises:
            ValueError: If a number is out of its range.
        """
        if self.n_episodes is not None and self.n_episodes < 1:
            raise ValueError(f"`n_episodes` should be at least 1 a task, got {self.n_episodes}.")
        for name in ("seed", "n_workers", "n_videos"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` should be at least 0, got {getattr(self, name)}.")
        if self.shift == "none" and self.shift_magnitude is not None:
            raise ValueError(
                f"`shift_magnitude` should say how far something is shifted, got {self.shift_magnitude} "
                "without --eval.shift."
            )
        _ = self.condition

    @property
    def condition(self) -> Shift | None:
        """The shift, None where there is none."""
        return Shift.of(self.shift, self.shift_magnitude)


def evaluation_starts(env_config: EnvConfig, tasks: Sequence[Task], config: EvaluationConfig) -> list[Start]:
    """The starts of every task, without a simulator.

    Args:
        env_config: Of the tasks.
        tasks: (suite, task id), sorted.
        config: Says which initial states and seeds. A start depends on neither the range nor the number.

    Returns:
        Sorted by task, then round, then initial state.

    Raises:
        ValueError: If an initial state does not exist, or the scenes cannot be shifted.
    """
    if config.condition is not None and not isinstance(env_config, LiberoEnvConfig):
        raise ValueError(
            f"--eval.shift={config.shift} needs LIBERO's scenes, got environments of type "
            f"'{env_config.type}'; leave it out."
        )
    if not has_init_states(env_config):
        seeds = range(config.seed, config.seed + (config.n_episodes or _EPISODES))
        return [Start(suite, task_id, 0, seed) for suite, task_id in tasks for seed in seeds]
    require_init_states(env_config, tasks, config.init_states)
    first, end = config.init_states
    starts = []
    for suite, task_id in tasks:
        for n in range(config.n_episodes or end - first):
            n_round, offset = divmod(n, end - first)
            state = first + offset
            starts.append(Start(suite, task_id, state, config.seed + state + n_round))
    return starts


@dataclass(frozen=True)
class Measurement:
    """What is kept of an episode.

    Attributes:
        start: Where it began.
        success: Whether the task was solved within the horizon.
        terms: Those of `smoothness.measure`, `time_to_success` (s) and `action_magnitude` (controller units).
        unit: Of the positions that the terms were measured in.
        positions: (T + 1, D) the positions themselves, in that unit; None where they were not kept.
    """

    start: Start
    success: bool
    terms: dict[str, float]
    unit: str = "m"
    positions: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def dt(self) -> float | None:
        """Control period, s; None where there are no two positions."""
        if self.positions is None or len(self.positions) < 2:
            return None
        return self.terms["duration"] / (len(self.positions) - 1)


@dataclass(frozen=True)
class Summary:
    """Means over episodes, or over the differences of two policies on the same starts, with 95 % intervals.

    Attributes:
        n_episodes: How many (of a comparison: starts).
        n_successes: How many succeeded (of a comparison: from how many starts both did).
        success_rate: Wilson's interval (of a comparison: the paired bootstrap's).
        terms: Per term that is measured the mean and its bootstrap interval; None where no episode has it.
        among_successes: The same for those of `AMONG_SUCCESSES` over the `n_successes` alone.
    """

    n_episodes: int
    n_successes: int
    success_rate: Interval
    terms: dict[str, Interval | None]
    among_successes: dict[str, Interval | None]


@dataclass(frozen=True)
class Evaluation:
    """Measured episodes, one of each start.

    Raises:
        ValueError: If there is none, or a start comes twice.
    """

    measurements: tuple[Measurement, ...]

    def __post_init__(self) -> None:
        """Reject what cannot be summarised or paired."""
        n_starts = len({m.start for m in self.measurements})
        if not 0 < n_starts == len(self.measurements):
            raise ValueError(
                f"An evaluation should have one episode of each start, got {len(self.measurements)} of "
                f"{n_starts} starts; another seed makes another start."
            )

    @property
    def unit(self) -> str:
        """Of the positions that the terms were measured in."""
        return self.measurements[0].unit

    def by_task(self) -> dict[str, "Evaluation"]:
        """The same episodes task by task, "suite/task_id" in the order of the tasks."""
        tasks: dict[str, list[Measurement]] = {}
        for measurement in sorted(self.measurements, key=lambda m: m.start):
            tasks.setdefault(task_key(measurement.start), []).append(measurement)
        return {key: Evaluation(tuple(of_task)) for key, of_task in tasks.items()}

    def summary(self) -> Summary:
        """Success and the mean of every term, over all episodes as one sample."""
        solved = [m for m in self.measurements if m.success]
        return Summary(
            n_episodes=len(self.measurements),
            n_successes=len(solved),
            success_rate=wilson_interval(len(solved), len(self.measurements)),
            terms={name: _mean(self.measurements, name) for name in self.measurements[0].terms},
            among_successes={
                name: _mean(solved, name) for name in AMONG_SUCCESSES if name in self.measurements[0].terms
            },
        )

    def to_json(self) -> dict[str, Any]:
        """`unit`, `overall`, `per_task` and `per_episode`, with null for what is not there."""
        info = {
            "unit": self.unit,
            "overall": asdict(self.summary()),
            "per_task": {key: asdict(of_task.summary()) for key, of_task in self.by_task().items()},
            "per_episode": [
                {**asdict(m.start), "success": m.success, "terms": m.terms} for m in self.measurements
            ],
        }
        return without_nan(info)

    @classmethod
    def from_json(cls, info: Mapping[str, Any]) -> "Evaluation":
        """The evaluation that `to_json` wrote, without positions.

        Raises:
            ValueError: If an entry is missing.
        """
        try:
            return cls(
                tuple(
                    Measurement(
                        Start(*(row[name] for name in ("suite", "task_id", "init_state", "seed"))),
                        row["success"],
                        {name: math.nan if value is None else value for name, value in row["terms"].items()},
                        info.get("unit", "m"),
                    )
                    for row in info["per_episode"]
                )
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"This is no evaluation of `smoothvla eval`: {error!r} went wrong in it; evaluate again."
            ) from error


def evaluate(
    engine: RolloutEngine,
    starts: Sequence[Start],
    videos: Mapping[Start, Path] | None = None,
    description: str = "evaluating",
    sampler: Sampler = DEPLOYED,
    shift: Shift | None = None,
) -> Evaluation:
    """Roll the engine's policy out once from every start.

    The noise that the policy integrates from depends on the start alone, so two policies meet the same.

    Args:
        engine: Holds the policy; stays open.
        starts: All different; sorted by task they need the fewest simulators.
        videos: Where to write videos of some of them.
        description: Of the progress bar.
        sampler: How chunks are drawn.
        shift: Of the scene of every start.

    Returns:
        Measurements in the order of the starts.

    Raises:
        RolloutError: If a rollout failed three times.
        ValueError: If a start comes twice.
    """
    videos = videos or {}
    requests = [RolloutRequest(s, _noise_seed(s), sampler, videos.get(s), shift) for s in starts]
    measurements: list[Measurement] = []
    solved: list[bool] = []
    with tqdm(total=len(requests), desc=description, unit="episode") as bar:

        def show(index: int, episode: Episode) -> None:
            solved.append(episode.success)
            bar.set_postfix(success=f"{sum(solved)}/{len(solved)}", refresh=False)
            bar.update()

        for some in batched(requests, _EPISODES_AT_ONCE):
            measurements += [measure_episode(episode) for episode in engine.run(some, show)]
    return Evaluation(tuple(measurements))


def measure_episode(episode: Episode) -> Measurement:
    """The terms of one episode."""
    embodiment = episode.embodiment
    terms = measure(episode.positions, episode.dt, episode.executed, embodiment.moving_speed, episode.joints)
    # An episode ends with its success.
    terms["time_to_success"] = episode.n_steps * episode.dt if episode.success else math.nan
    terms["action_magnitude"] = action_magnitude(episode.actions, embodiment)
    return Measurement(episode.start, bool(episode.success), terms, embodiment.unit, episode.positions)


def action_magnitude(actions: Tensor, embodiment: Embodiment) -> float:
    """Mean norm of (T, A) actions without the grippers' dimensions; in the controller's units.

    Of displacements it falls when a policy slows down, and so warns before success does. Of positions, as in
    ALOHA and PushT, it says only where the targets are.
    """
    return actions[:, arm_dimensions(actions.shape[-1], embodiment.grippers)].norm(dim=-1).mean().item()


def compare(baseline: Evaluation, candidate: Evaluation) -> Summary:
    """Candidate minus baseline, paired by start.

    Returns:
        Means of the differences; a term's over the starts from which both have it.

    Raises:
        ValueError: If they were not evaluated on the same starts.
    """
    names = baseline.measurements[0].terms
    both = {m.start for m in baseline.measurements if m.success}
    both &= {m.start for m in candidate.measurements if m.success}
    success_rate = paired_bootstrap_interval(
        {m.start: float(m.success) for m in baseline.measurements},
        {m.start: float(m.success) for m in candidate.measurements},
    )
    return Summary(
        n_episodes=len(baseline.measurements),
        n_successes=len(both),
        success_rate=success_rate,
        terms={name: _difference(baseline, candidate, name) for name in names},
        among_successes={
            name: _difference(baseline, candidate, name, both) for name in AMONG_SUCCESSES if name in names
        },
    )


def _noise_seed(start: Start) -> int:
    """The same in every process and every run, unlike `hash`."""
    return zlib.crc32(repr(start).encode())


def _measured(
    measurements: Iterable[Measurement], name: str, among: Container[Start] | None = None
) -> dict[Start, float]:
    """The finite values of a term."""
    return {
        m.start: value
        for m in measurements
        if math.isfinite(value := m.terms.get(name, math.nan)) and (among is None or m.start in among)
    }


def _mean(measurements: Iterable[Measurement], name: str) -> Interval | None:
    values = list(_measured(measurements, name).values())
    return bootstrap_interval(values) if values else None


def _difference(
    baseline: Evaluation, candidate: Evaluation, name: str, among: Container[Start] | None = None
) -> Interval | None:
    first = _measured(baseline.measurements, name, among)
    second = _measured(candidate.measurements, name, first.keys())
    first = {start: first[start] for start in second}
    return paired_bootstrap_interval(first, second) if first else None


def without_nan(value: Any) -> Any:
    """A copy of nested dicts and lists in which every number is one that JSON knows, or None."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
