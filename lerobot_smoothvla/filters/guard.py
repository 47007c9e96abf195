"""A guard for real arms: the last step of a post-processor, which keeps actions within limits.

Dims: B robots, A action dimensions, M ≤ A of them without grippers. Units: u is that of the actions, as the
robot takes them (deg, or LeRobot's −100 to 100); s.
"""

import logging
import math
import time
import weakref
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStepRegistry,
    RelativeActionsProcessorStep,
)
from lerobot.utils.constants import OBS_IMAGE
from torch import Tensor

from lerobot_smoothvla.episode import arm_dimensions
from lerobot_smoothvla.filters.cameras import FrozenCameras
from lerobot_smoothvla.filters.limiter import Array, MotionLimiter, Rates
from lerobot_smoothvla.filters.steps import MotionLimits, require_ruckig

logger = logging.getLogger(__name__)


@dataclass
class GuardCounts:
    """What a guard had to do since its last reset.

    Attributes:
        n_steps: Control steps.
        n_limited: Of them, those in which what was commanded was not let through.
        n_not_finite: Of them, those whose action was not finite.
        n_blind: Of them, those in which a camera was frozen.
        largest: Largest correction of a finite action, u.
        axis: Of which action that was.
    """

    n_steps: int = 0
    n_limited: int = 0
    n_not_finite: int = 0
    n_blind: int = 0
    largest: float = 0.0
    axis: str = ""

    def log(self) -> None:
        """One line, if there was anything to guard."""
        if self.n_steps:
            largest = f", by at most {self.largest:.3g} ({self.axis})" if self.axis else ""
            logger.info(
                f"Motion guard: {self.n_limited} of {self.n_steps} control steps limited{largest}; "
                f"{self.n_not_finite} actions were not finite; {self.n_blind} came while a camera was frozen."
            )

    def clear(self) -> None:
        """Begin anew."""
        vars(self).update(vars(GuardCounts()))


@ProcessorStepRegistry.register("smoothvla_guard_observation")
@dataclass
class GuardObservationStep(RelativeActionsProcessorStep):
    """Changes nothing, and keeps for a guard what it has to know of the last observation.

    LeRobot connects the two on loading, by the base class: that is the one way from a pre-processor to a
    post-processor, in whose transition there is only the action.

    Attributes:
        frozen_after: How long a camera may give the same image, s; 0 for ever.
        frozen: The cameras that have for longer.
    """

    frozen_after: float = 0.5
    frozen: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Begin an episode."""
        self._cameras = FrozenCameras(self.frozen_after)

    def reset(self) -> None:
        """Begin an episode."""
        self._cameras.reset()

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """The transition as it is."""
        observation = transition.get(TransitionKey.OBSERVATION) or {}
        images = {key: one.numpy(force=True) for key, one in observation.items() if key.startswith(OBS_IMAGE)}
        self.frozen = self._cameras.look(images, time.perf_counter())
        return super().__call__(transition)

    def get_config(self) -> dict[str, Any]:
        """The setting, as JSON can hold it."""
        return {"frozen_after": self.frozen_after}


@ProcessorStepRegistry.register("smoothvla_motion_guard")
@dataclass
class MotionGuardStep(AbsoluteActionsProcessorStep):
    """Keeps actions that are positions within limits of velocity, acceleration and jerk; see `MotionLimiter`.

    It begins at rest where the arm is measured to be. An action that is not finite, or comes while a camera
    is frozen, is replaced by where the arm was sent last before, so that it brakes and holds there. Grippers
    are let through. What is observed it is told by the `GuardObservationStep` of the pre-processor.

    It counts on every action being executed, one for each observation. LeRobot's synchronous inference does
    that; real-time chunking and the policy server do not, and are refused: there the arm itself is guarded,
    see `filters.guarded`.

    Attributes:
        dt: Control period, s: that of `--fps` of the rollout.
        max_velocity: One for all axes without grippers, or one for each, u/s.
        max_acceleration: Likewise, u/s².
        max_jerk: Likewise, u/s³.
        action_names: Of the A dimensions.
        state_dims: For each of them, which dimension of `observation.state` measures it.
        grippers: Indices of those that are let through.
    """

    dt: float = 1 / 30
    max_velocity: list[float] = field(default_factory=list)
    max_acceleration: list[float] = field(default_factory=list)
    max_jerk: list[float] = field(default_factory=list)
    action_names: list[str] = field(default_factory=list)
    state_dims: list[int] = field(default_factory=list)
    grippers: list[int] = field(default_factory=lambda: [-1])

    def __post_init__(self) -> None:
        """Reject settings that cannot be used, and begin an episode.

        Raises:
            ImportError: If ruckig is missing.
            ValueError: If one cannot.
        """
        require_ruckig()
        if not 0 < self.dt < math.inf:
            raise ValueError(f"`dt` should be a positive control period in s, got {self.dt}.")
        if not self.max_velocity:
            raise ValueError("A motion guard needs limits of the velocity too (`max_velocity`), got none.")
        limits = MotionLimits(self.max_acceleration, self.max_jerk, self.max_velocity)
        if len(self.state_dims) != len(self.action_names):
            raise ValueError(
                f"`state_dims` should name one dimension of the state for each of {len(self.action_names)} "
                f"actions, got {self.state_dims}."
            )
        self._arm = arm_dimensions(len(self.action_names), self.grippers)
        self._limits = limits.each_of([self.action_names[index] for index in self._arm])
        self.counts = GuardCounts()
        weakref.finalize(self, self.counts.log)  # Also at the end of the process.
        self.reset()

    def reset(self) -> None:
        """Begin an episode, after a line about the last one."""
        self.counts.log()
        self.counts.clear()
        self._limiter: MotionLimiter | None = None
        self._state: Tensor | None = None
        self._last: Array | None = None

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """The transition with the action that is safe to execute.

        Raises:
            ValueError: If it is not one action for one observation, or where the arm is is not known.
        """
        action = transition[TransitionKey.ACTION]
        state = None if self.relative_step is None else self.relative_step.get_cached_state()
        if state is None or state is self._state or action.ndim != 2:
            raise ValueError(
                f"The motion guard should get one action for each observation, got {tuple(action.shape)} "
                f"{'after none' if state is None or state is self._state else 'after one'}: it has to know "
                "what is executed. Run the checkpoint with --inference.type=sync; or take the one that it "
                "was exported from, and guard the arm itself (--robot.type=guarded)."
            )
        self._state = state
        blind = isinstance(self.relative_step, GuardObservationStep) and bool(self.relative_step.frozen)
        safe = self.guarded(
            action.detach().cpu().double().numpy(),
            state.detach().cpu().double().numpy()[:, self.state_dims],
            blind,
        )
        changed = transition.copy()
        changed[TransitionKey.ACTION] = torch.as_tensor(safe).to(action)
        return changed

    def guarded(self, commands: Array, measured: Array, blind: bool) -> Array:
        """(B, A) actions that are safe to execute.

        Args:
            commands: (B, A) what the policy wants.
            measured: (B, A) where the robots are.
            blind: Whether the policy does not see what it does.

        Raises:
            ValueError: If where the arm is is not known as it begins, or the shape changes.
        """
        if self._last is None:
            if not np.isfinite(measured).all():
                raise ValueError(
                    f"The motion guard should begin where the arm is, but its state is {measured.tolist()}; "
                    "look after its motors and start again."
                )
            arm = measured[:, self._arm]
            self._last, self._limiter = measured, MotionLimiter(self._rates(len(arm)), self.dt, arm.ravel())
        assert self._limiter is not None
        if commands.shape != self._last.shape:
            raise ValueError(
                f"Actions should have the shape {self._last.shape} of those since the last reset, got "
                f"{commands.shape}."
            )
        finite = np.asarray(np.isfinite(commands).all(axis=1))
        taken = finite & np.full_like(finite, not blind)
        safe = np.where(taken[:, None], commands, self._last)
        wanted = safe[:, self._arm]
        safe[:, self._arm] = self._limiter.follow(wanted.ravel()).reshape(wanted.shape)
        self._last = np.where(taken[:, None], safe, self._last)
        self._count(commands, safe, finite, taken)
        return safe

    def described(self) -> list[str]:
        """A line for each action: its limits, or that it is let through."""
        rates = self._rates(1)
        each = zip(rates.velocity, rates.acceleration, rates.jerk, strict=True)
        limits = dict(zip(self._arm, each, strict=True))
        return [
            f"{name}: {'{:.4g}/s, {:.4g}/s², {:.4g}/s³'.format(*limits[i]) if i in limits else 'let through'}"
            for i, name in enumerate(self.action_names)
        ]

    def _rates(self, n_robots: int) -> Rates:
        """Limits of B·M axes."""
        kept = self._limits
        return Rates(*(np.tile(each, n_robots) for each in (kept.velocity, kept.acceleration, kept.jerk)))

    def _count(self, commands: Array, safe: Array, finite: np.ndarray, taken: np.ndarray) -> None:
        correction = np.where(taken[:, None], np.abs(safe - np.nan_to_num(commands)), 0)
        counts = self.counts
        counts.n_steps += len(commands)
        counts.n_not_finite += int((~finite).sum())
        counts.n_blind += int((finite & ~taken).sum())
        counts.n_limited += int(((correction > 0).any(axis=1) | ~taken).sum())
        row, axis = np.unravel_index(correction.argmax(), correction.shape)
        if correction[row, axis] > counts.largest:
            counts.largest, counts.axis = float(correction[row, axis]), self.action_names[axis]

    def get_config(self) -> dict[str, Any]:
        """The settings, as JSON can hold them."""
        ours = {one.name for one in fields(self)} - {"enabled", "relative_step"}
        return {name: getattr(self, name) for name in sorted(ours)}


def install(
    guard: MotionGuardStep,
    frozen_after: float,
    preprocessor: PolicyProcessorPipeline[Any, Any],
    postprocessor: PolicyProcessorPipeline[Any, Any],
) -> None:
    """Put a guard at the end of a checkpoint's post-processor, in the place of one that is there.

    The pre-processor gets what tells it of the observation.

    Args:
        guard: The guard.
        frozen_after: See `GuardObservationStep`.
        preprocessor: Of the checkpoint.
        postprocessor: Likewise.

    Raises:
        ValueError: If the policy's actions are relative.
    """
    if any(isinstance(one, RelativeActionsProcessorStep) and one.enabled for one in preprocessor.steps):
        raise ValueError(
            "A guard in a checkpoint should get actions that are positions, and these are relative to the "
            "state: LeRobot executes them by real-time chunking alone. Guard the arm itself "
            "(--robot.type=guarded)."
        )
    observed = GuardObservationStep(frozen_after=frozen_after)
    before = [step for step in preprocessor.steps if not isinstance(step, RelativeActionsProcessorStep)]
    raw = [isinstance(step, NormalizerProcessorStep) for step in before]
    before.insert(raw.index(True) if any(raw) else len(before), observed)
    preprocessor.steps, guard.relative_step = before, observed
    postprocessor.steps = [
        *(step for step in postprocessor.steps if not isinstance(step, MotionGuardStep)),
        guard,
    ]
