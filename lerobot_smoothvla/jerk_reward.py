"""The reward of a whole episode: success, and how smoothly the arm got there.

Bounded smoothness of one episode, J its jerk RMS and J_ref the warm start's median on the same task:

    s = 1 / (1 + J / J_ref),            signals "jerk_rms", "joint_jerk_rms"
    s = 1 / (1 + exp((L_ref - L) / 2)), signals "ldlj", "joint_ldlj"

L is the LDLJ, the negative logarithm of a *squared* jerk, so exp(-L / 2) is a dimensionless jerk and both
forms are the same function of a ratio of jerks. Both give 1/2 at the reference. Raw jerk falls with the cube
of the duration, so "jerk_rms" pays for slowness; LDLJ does not change when the same path is driven slower.
The signals of the joints are the same measures of their positions, in rad: an arm whose hand moves smoothly
may still shake in its elbow.

Dims: T control steps, C chunks, D position axes. Units: SI; where an embodiment's positions are not in m,
its unit (px, rad) stands for every m.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal, get_args

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import ProcessorStep, ProcessorStepRegistry
from lerobot.processor.converters import create_transition
from torch import Tensor

from lerobot_smoothvla.episode import Embodiment, Episode, ScoredEpisode, Start
from lerobot_smoothvla.smoothness import JOINT_MOVING_SPEED, chunk_jerk_rms, measure, time_to_success

Signal = Literal["jerk_rms", "ldlj", "joint_jerk_rms", "joint_ldlj"]
Combination = Literal["sum", "gated"]

_INPUTS = ("positions", "dt", "executed", "success", "task_key")


@dataclass(frozen=True)
class JerkRewardConfig:
    """What makes an episode worth repeating.

    Attributes:
        signal: What smoothness is measured by; see the module. Those of joints need an environment that gives
            joints beside its positions.
        weight: λ ≥ 0 of the smoothness.
        combination: "sum" is success + λ·s; "gated" is success·(1 + λ·s), where only a success is paid.
        reference: The value of `signal` at which s = 1/2, in the signal's own unit (m/s³ for "jerk_rms",
            rad/s³ for "joint_jerk_rms", none for the others): one for all tasks, or one for each
            "suite/task_id". None until it is measured; see `reference_medians`.
        moving_speed: Speed above which the arm counts as moving, m/s; None for the embodiment's (0.01 m/s in
            LIBERO).
        min_extent: An episode that never gets this far from where it began has s = 0, m; None for the
            embodiment's (0.05 m in LIBERO).

    Raises:
        ValueError: If a value is out of its range, or λ > 1 with "sum".
    """

    signal: Signal = "jerk_rms"
    weight: float = 0.5
    combination: Combination = "gated"
    reference: float | dict[str, float] | None = None
    moving_speed: float | None = None
    min_extent: float | None = None

    def __post_init__(self) -> None:
        """Reject a reward that could not be computed, or that pays for doing nothing."""
        for name, allowed in (("signal", get_args(Signal)), ("combination", get_args(Combination))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` should be one of {allowed}, got {getattr(self, name)!r}.")
        if not 0 <= self.weight < math.inf:
            raise ValueError(
                f"`weight` (λ) should be ≥ 0, got {self.weight}; "
                "0 rewards success alone, and the sign is already such that smoother is better."
            )
        if self.combination == "sum" and self.weight > 1:
            raise ValueError(
                f"`weight` (λ) should be ≤ 1 with combination 'sum', got {self.weight}: above it a "
                "slow failure could earn more than a success. Lower it, or use combination='gated'."
            )
        for name in ("moving_speed", "min_extent"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"`{name}` should be ≥ 0, got {value}.")
        for value in self._references():
            if not math.isfinite(value) or (not self.is_ldlj and value <= 0):
                unit = "rad" if self.of_joints else "m"
                expected = "finite LDLJ" if self.is_ldlj else f"positive jerk in {unit}/s³"
                raise ValueError(
                    f"`reference` should be a {expected} with signal '{self.signal}', got {value}; "
                    "measure it on the warm start with `reference_medians`."
                )

    @property
    def of_joints(self) -> bool:
        """Whether the joints are measured, not the end effector."""
        return self.signal.startswith("joint_")

    @property
    def is_ldlj(self) -> bool:
        """Whether it is of a whole movement, without unit."""
        return self.signal.endswith("ldlj")

    def reference_of(self, task_key: str) -> float:
        """The reference of one task, in the signal's unit.

        Raises:
            ValueError: If it was not measured for this task.
        """
        if isinstance(self.reference, dict):
            if task_key not in self.reference:
                raise ValueError(
                    f"`reference` has no value for task '{task_key}', only for {sorted(self.reference)}; "
                    "measure it with `reference_medians` on warm-start episodes of this task."
                )
            return self.reference[task_key]
        if self.reference is None:
            raise ValueError(
                "`reference` should be measured before an episode is scored, got None; "
                "use `reference_medians` on episodes of the warm start."
            )
        return self.reference

    def embodiment(self, embodiment: Embodiment) -> Embodiment:
        """An embodiment with the thresholds that are set here."""
        return replace(
            embodiment,
            moving_speed=embodiment.moving_speed if self.moving_speed is None else self.moving_speed,
            min_extent=embodiment.min_extent if self.min_extent is None else self.min_extent,
        )

    def smoothness(self, terms: dict[str, float], task_key: str, embodiment: Embodiment) -> float:
        """Bounded smoothness s in [0, 1] of measured terms, as the module defines it; 0 where nothing moved.

        Raises:
            ValueError: If the task has no reference.
        """
        reference, value = self.reference_of(task_key), terms[self.signal]
        moved = terms["moving_share"] > 0 and terms["extent"] >= self.embodiment(embodiment).min_extent
        if not moved or math.isnan(value):
            return 0.0
        if not self.is_ldlj:
            return 1 / (1 + value / reference)
        # The logistic function, by a form that cannot overflow.
        return (1 + math.tanh((value - reference) / 4)) / 2

    def chunk_smoothness(self, jerks: Tensor, task_key: str) -> Tensor:
        """Smoothness s of (C,) chunks by their jerk RMS, in the signal's unit; NaN with an LDLJ.

        Raises:
            ValueError: If the task has no reference.
        """
        if self.is_ldlj:
            return torch.full_like(jerks, torch.nan)
        return 1 / (1 + jerks / self.reference_of(task_key))

    def combine(self, success: float, smoothness: float) -> float:
        """The total reward R of a success in {0, 1} and a smoothness s in [0, 1]."""
        if self.combination == "sum":
            return success + self.weight * smoothness
        return success * (1 + self.weight * smoothness)

    def _references(self) -> list[float]:
        if self.reference is None:
            return []
        return list(self.reference.values()) if isinstance(self.reference, dict) else [self.reference]


@ProcessorStepRegistry.register("smoothvla_jerk_reward")
class JerkRewardProcessorStep(ProcessorStep):
    """Scores one finished episode, given as one LeRobot transition.

    Reads from the transition's complementary data:
        positions: (T + 1, D) measured positions at control rate, m.
        dt: Control period, s.
        executed: (C,) int64 steps that were run of each chunk; their sum is T.
        success: (T,) bool, whether the task is solved after each step; nothing after the first True counts.
        task_key: "suite/task_id".
        embodiment: Optional `Embodiment` of the positions; LIBERO's without it.
        joints: Optional (T + 1, J) positions of the joints, rad.

    Writes the total into the transition's reward, and into its info `success`, `smoothness`, `total`,
    `chunk_smoothness` (C,) and `terms`: those of `smoothness.measure` and `time_to_success` (s, NaN for a
    failure), named and unweighted.
    """

    def __init__(self, config: JerkRewardConfig | None = None, **settings: Any) -> None:
        """Takes the config, or its fields as LeRobot's pipeline passes them, which override the config's.

        Raises:
            ValueError: If the reference is not measured yet.
        """
        self.config = replace(config or JerkRewardConfig(), **settings)
        if self.config.reference is None:
            self.config.reference_of("")

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Scores the episode.

        Raises:
            ValueError: If an input is missing, the inputs disagree on T, the task has no reference, or the
                signal is of joints and there are none.
        """
        data = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        if missing := [name for name in _INPUTS if name not in data]:
            raise ValueError(
                f"The transition's complementary data should hold {list(_INPUTS)}, {missing} are missing; "
                "score an `Episode` with `score`, or fill them in."
            )
        embodiment = self.config.embodiment(data.get("embodiment", Embodiment()))
        dt = data["dt"]
        positions, executed = _until_success(data["positions"], data["executed"], data["success"])
        joints: Tensor | None = data.get("joints")
        measured, moving_speed = positions, embodiment.moving_speed
        if joints is not None:
            joints = joints[: len(positions)].double()
        if self.config.of_joints:
            if joints is None:
                raise ValueError(without_joints(self.config.signal))
            measured, moving_speed = joints, JOINT_MOVING_SPEED
        terms = measure(positions, dt, executed, embodiment.moving_speed, joints)
        terms["time_to_success"] = time_to_success(data["success"], dt).item()
        success = 0.0 if math.isnan(terms["time_to_success"]) else 1.0
        smoothness = self.config.smoothness(terms, data["task_key"], embodiment)
        total = self.config.combine(success, smoothness)

        scored = transition.copy()
        scored[TransitionKey.REWARD] = total
        scored[TransitionKey.INFO] = (transition.get(TransitionKey.INFO) or {}) | {
            "success": success,
            "smoothness": smoothness,
            "total": total,
            "chunk_smoothness": self.config.chunk_smoothness(
                _chunk_jerks(measured, dt, executed, moving_speed), data["task_key"]
            ),
            "terms": terms,
        }
        return scored

    def get_config(self) -> dict[str, Any]:
        """The config's fields, as JSON can hold them."""
        return asdict(self.config)

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """A reward changes no feature."""
        return features


def score(episode: Episode, step: JerkRewardProcessorStep) -> ScoredEpisode:
    """An episode with its reward.

    Raises:
        ValueError: If the episode's task has no reference.
    """
    info = step(create_transition(complementary_data=_episode_inputs(episode)))[TransitionKey.INFO]
    return ScoredEpisode(
        episode=episode,
        success=info["success"],
        smoothness=info["smoothness"],
        total=info["total"],
        chunk_smoothness=info["chunk_smoothness"],
        terms=info["terms"],
    )


def reference_medians(episodes: Iterable[Episode], config: JerkRewardConfig) -> dict[str, float]:
    """J_ref of each task: the median of the config's signal over warm-start episodes, failures included.

    Args:
        episodes: Rollouts of the warm start, any number of tasks.
        config: Says which signal, and from which speed on the arm moves.

    Returns:
        "suite/task_id" to the median, in the signal's unit; freeze it with `replace(config, reference=...)`.

    Raises:
        ValueError: If a task has no episode in which the arm moves, or the signal is of joints that no
            environment gave.
    """
    values: defaultdict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        moving_speed = config.embodiment(episode.embodiment).moving_speed
        if config.of_joints and episode.joints is None:
            raise ValueError(without_joints(config.signal))
        terms = measure(episode.positions, episode.dt, episode.executed, moving_speed, episode.joints)
        value = terms[config.signal]
        values[task_key(episode.start)] += [] if math.isnan(value) else [value]
    if still := sorted(key for key, of_task in values.items() if not of_task):
        raise ValueError(
            f"`{config.signal}` should be measurable in at least one warm-start episode of each task, but "
            f"nothing moved in those of {still}; train the warm start further or leave these tasks out."
        )
    return {key: median(of_task) for key, of_task in values.items()}


def without_joints(signal: str) -> str:
    """What is wrong with a signal of joints where an environment gives none beside its positions."""
    instead = signal.removeprefix("joint_")
    return (
        f"`signal` '{signal}' needs positions of joints beside those of the end effector, which this "
        f"environment does not give; use --algorithm.reward.signal={instead}, which is of the "
        "positions that it gives (of joints where they are in rad)."
    )


def task_key(start: Start) -> str:
    """The name under which a task's reference is kept: "suite/task_id"."""
    return f"{start.suite}/{start.task_id}"


def _episode_inputs(episode: Episode) -> dict[str, Any]:
    """What the step reads; an episode that succeeds ends with its success."""
    success = torch.zeros(episode.n_steps, dtype=torch.bool)
    success[-1:] = episode.success
    return {
        "positions": episode.positions,
        "dt": episode.dt,
        "executed": episode.executed,
        "success": success,
        "task_key": task_key(episode.start),
        "embodiment": episode.embodiment,
        "joints": episode.joints,
    }


def _chunk_jerks(positions: Tensor, dt: float, executed: Tensor, moving_speed: float) -> Tensor:
    """(C,) jerk RMS of each chunk, also of an episode too short to have any."""
    if len(positions) < 4:
        return torch.full((len(executed),), torch.nan, dtype=positions.dtype)
    return chunk_jerk_rms(positions, dt, executed, moving_speed)


def _until_success(positions: Tensor, executed: Tensor, success: Tensor) -> tuple[Tensor, Tensor]:
    """(T + 1, D) positions and (C,) executed steps up to the first success in (T,) flags."""
    n_steps = len(success)
    if len(positions) != n_steps + 1 or int(executed.sum()) != n_steps:
        raise ValueError(
            f"An episode of T steps should have T `success` flags, T + 1 `positions` and `executed` with sum "
            f"T, got {n_steps}, {len(positions)} and {int(executed.sum())}; pass the whole episode in each."
        )
    if success.any():
        n_steps = int(success.int().argmax()) + 1
    ends = executed.cumsum(dim=0).clamp(max=n_steps)
    # Differences of float32 positions lose digits, see `measure`.
    return positions[: n_steps + 1].double(), ends.diff(prepend=ends.new_zeros(1))
