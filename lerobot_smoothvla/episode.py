"""What flows between the stages: `Start` → `Episode` → `ScoredEpisode` → `Group`.

Dims: C policy calls (chunks) of one episode, H steps a chunk, T control steps, D position axes (3 of an end
effector), J joints, A action dimensions of the robot, P padded action dimensions of the model. Units: SI, but
that positions are in the embodiment's unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lerobot_smoothvla.smoothness import MOVING_SPEED

Commands = Literal["displacement", "position"]
"""What an action asks for: a displacement in one control step, so a velocity, or a position to be at."""


Task = tuple[str, int]
"""Suite and index of the task in it, as in a `Start`."""


@dataclass(frozen=True, order=True)
class Start:
    """Where an episode begins: a task, an initial state of it, and the simulator's seed.

    The same initial state with another seed is another start (fixtures move by millimetres), so a group
    shares both.

    Attributes:
        suite: LIBERO suite (`libero_object`), Meta-World task or group (`reach-v3`, `easy`), else the type of
            the environment (`pusht`).
        task_id: Index of the task in its suite.
        init_state: Index into the task's fixed initial states; 0 where there are none and the seed says all.
        seed: Seed of the simulator's own randomness.
    """

    suite: str
    task_id: int
    init_state: int
    seed: int

    @property
    def task(self) -> Task:
        """What is to be done."""
        return self.suite, self.task_id


@dataclass(frozen=True)
class Embodiment:
    """What the numbers of an episode mean; the defaults are LIBERO's.

    Attributes:
        unit: Of the positions: "m", "rad", "px".
        moving_speed: Speed above which it counts as moving, unit/s.
        min_extent: What never gets this far from where it began has not moved, unit.
        grippers: Indices of the action dimensions that open and close a hand.
        commands: What the others ask for.
    """

    unit: str = "m"
    moving_speed: float = MOVING_SPEED
    min_extent: float = 0.05
    grippers: tuple[int, ...] = (-1,)
    commands: Commands = "displacement"

    @property
    def jerk_order(self) -> int:
        """How often an action is differenced for a jerk."""
        return 2 if self.commands == "displacement" else 3


def arm_dimensions(n_actions: int, grippers: Sequence[int]) -> list[int]:
    """Indices of the action dimensions that are no gripper's."""
    left_out = {index % n_actions for index in grippers}
    return [index for index in range(n_actions) if index not in left_out]


@dataclass(frozen=True)
class Episode:
    """One finished rollout. Nothing in it is scored yet.

    Attributes:
        start: Where it began.
        instruction: The task string that the policy read.
        observations: What the policy saw at each call, before its preprocessor: images (C, 3, h, w) uint8,
            state (C, S) float32, keyed as LeRobot does (`observation.images.image`, `observation.state`).
        record: What a ratio estimator needs to replay the sampling, each (C, ...).
        chunks: (C, H, P) sampled actions in the model's (normalised, padded) space.
        executed: (C,) int64, how many steps of each chunk were run; their sum is T.
        actions: (T, A) what the environment received.
        positions: (T + 1, D) measured positions at control rate, in the embodiment's unit; the settle steps
            before the first policy call are left out and the episode ends at its success.
        dt: Control period, s.
        success: Whether the task was solved within the horizon.
        max_steps: The horizon in control steps.
        embodiment: What positions and actions mean.
        joints: (T + 1, J) measured positions of the arm's joints, rad; None where the environment gives none
            beside `positions`.
    """

    start: Start
    instruction: str
    observations: dict[str, Tensor]
    record: dict[str, Tensor]
    chunks: Tensor
    executed: Tensor
    actions: Tensor
    positions: Tensor
    dt: float
    success: bool
    max_steps: int
    embodiment: Embodiment = Embodiment()
    joints: Tensor | None = None

    @property
    def n_steps(self) -> int:
        """Control steps T that were run."""
        return len(self.actions)


@dataclass(frozen=True)
class ScoredEpisode:
    """An episode with its reward.

    Attributes:
        episode: The rollout.
        success: 0.0 or 1.0.
        smoothness: Bounded smoothness s in [0, 1]; 0 where nothing moved.
        total: The combined reward.
        chunk_smoothness: (C,) s of each chunk by its own jerk RMS; NaN where nothing moved.
        terms: Named, unweighted measurements (`jerk_rms` in m/s³, `ldlj`, `time_to_success` in s, ...).
    """

    episode: Episode
    success: float
    smoothness: float
    total: float
    chunk_smoothness: Tensor
    terms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """G rollouts of one start: what GRPO compares with one another.

    Raises:
        ValueError: If the episodes do not share one start, or are fewer than two.
    """

    episodes: tuple[ScoredEpisode, ...]

    def __post_init__(self) -> None:
        """Reject groups that cannot be compared."""
        starts = {scored.episode.start for scored in self.episodes}
        if len(self.episodes) < 2 or len(starts) != 1:
            raise ValueError(
                f"A group should hold at least 2 rollouts of one start, "
                f"got {len(self.episodes)} of {len(starts)}."
            )

    @property
    def start(self) -> Start:
        """The start that all of them share."""
        return self.episodes[0].episode.start
