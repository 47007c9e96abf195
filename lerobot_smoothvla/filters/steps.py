"""Filters of the executed actions, as LeRobot processor steps at the end of a post-processor.

What they smooth is the commanded motion. Where an action is a displacement per control step (LIBERO,
Meta-World) it commands a velocity, so its first and second differences are the commanded acceleration and
jerk; where it is a position (ALOHA, PushT, most real arms), its second and third differences are.

Dims: B batch, H steps a chunk, n ≤ H of them executed, A action dimensions, M ≤ A of them without grippers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import PolicyActionProcessorStep, ProcessorStepRegistry
from torch import Tensor

from lerobot_smoothvla.episode import Commands, arm_dimensions


@dataclass
class ActionFilterStep(PolicyActionProcessorStep, ABC):
    """Changes the actions of an episode, given what was executed since `reset`; grippers stay as they are.

    Takes the action (B, A) of one control step, as `select_action` gives it, or a chunk (B, H, A), of which
    it returns the steps that are executed, (B, n, A).

    Attributes:
        grippers: Indices of the action dimensions that are left alone.
        n_action_steps: Steps n of a chunk that are executed; None for all of them.
    """

    grippers: list[int] = field(default_factory=lambda: [-1])
    n_action_steps: int | None = None

    def __post_init__(self) -> None:
        """Reject settings that cannot be used, and begin an episode.

        Raises:
            ValueError: If one cannot.
        """
        self.reset()

    def action(self, action: Tensor) -> Tensor:
        """The actions to execute.

        Raises:
            ValueError: If they do not fit those since `reset`.
        """
        chunk = action[:, None] if action.ndim == 2 else action
        executed = chunk[:, : self.n_action_steps].clone()
        arm = arm_dimensions(chunk.shape[-1], self.grippers)
        executed[..., arm] = self._filtered(chunk[..., arm], executed.shape[1])
        return executed[:, 0] if action.ndim == 2 else executed

    @abstractmethod
    def reset(self) -> None:
        """Begin an episode."""

    @abstractmethod
    def _filtered(self, chunk: Tensor, n: int) -> Tensor:
        """(B, n, M) of commands (B, H, M), and remember what the next ones need."""

    def get_config(self) -> dict[str, Any]:
        """The settings, as JSON can hold them."""
        return asdict(self)

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """A filter changes no feature."""
        return features


def _require_same_rows(before: int, now: int) -> None:
    if before != now:
        raise ValueError(
            f"The filter has acted on {before} rows since its last `reset` and now gets {now}; reset it "
            "where an episode begins."
        )


@ProcessorStepRegistry.register("smoothvla_exponential_filter")
@dataclass
class ExponentialFilterStep(ActionFilterStep):
    """Exponential smoothing, a_t = α·u_t + (1 − α)·a_{t−1}: a low-pass filter of first order.

    Its time constant is −dt / ln(1 − α): 0.07 s for α = 0.5 at LIBERO's 20 Hz. Before the first command
    displacements are 0, positions already there.

    Attributes:
        alpha: Weight α of the new command, in (0, 1]; 1 changes nothing.
        commands: What the actions are.
    """

    alpha: float = 0.5
    commands: Commands = "displacement"

    def __post_init__(self) -> None:
        """As in `ActionFilterStep`."""
        if not 0 < self.alpha <= 1:
            raise ValueError(
                f"`alpha` should be in (0, 1], got {self.alpha}; lower is smoother, and lags more."
            )
        super().__post_init__()

    def reset(self) -> None:
        """Begin an episode."""
        self._last: Tensor | None = None

    def _filtered(self, chunk: Tensor, n: int) -> Tensor:
        last = self._last
        if last is None:
            last = torch.zeros_like(chunk[:, 0]) if self.commands == "displacement" else chunk[:, 0]
        _require_same_rows(len(last), len(chunk))
        smoothed = []
        for command in chunk[:, :n].unbind(1):
            last = self.alpha * command + (1 - self.alpha) * last
            smoothed.append(last)
        self._last = last
        return torch.stack(smoothed, dim=1)


LARGEST_LIMIT = 1e9
"""Beyond it, what follows from a limit is lost in rounding, or not a number."""


@dataclass(frozen=True)
class MotionLimits:
    """Greatest magnitudes of the commanded motion, one for each of M axes or one for all of them.

    u is the unit of what is commanded. Of displacements it is that of the velocity which an action of 1 asks
    for: in LIBERO 1 m/s for a translation (0.05 m in 0.05 s), so that the limits are in m/s² and m/s³, and
    10 rad/s for a rotation (0.5 rad in 0.05 s). Of positions u is the action's unit per s (rad/s, px/s).

    Attributes:
        acceleration: u/s.
        jerk: u/s².
        velocity: u; used, and needed, for positions only.

    Raises:
        ValueError: If a limit is not positive, or so large that it limits nothing.
    """

    acceleration: list[float]
    jerk: list[float]
    velocity: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Reject limits under which nothing moves."""
        for one in fields(self):
            values = getattr(self, one.name)
            in_range = all(0 < value <= LARGEST_LIMIT for value in values)
            if not in_range or (not values and one.name != "velocity"):
                raise ValueError(
                    f"Limits of the {one.name} should be positive, up to {LARGEST_LIMIT:g}, one for all axes "
                    f"or one for each, got {list(values)}."
                )

    def each_of(self, axes: Sequence[str]) -> "MotionLimits":
        """With one of each kind for each of the named axes.

        Raises:
            ValueError: If there are neither as many nor one for all.
        """
        for kind, values in asdict(self).items():
            if len(values) not in (0, 1, len(axes)):
                raise ValueError(
                    f"`max_{kind}` should hold one limit for all axes or one for each of "
                    f"{', '.join(axes)}, got {list(values)}."
                )
        each = {k: v * len(axes) if len(v) == 1 else v for k, v in asdict(self).items()}
        return MotionLimits(**each)

    @classmethod
    def of_demonstrations(
        cls, episodes: Iterable[Tensor], dt: float, commands: Commands, quantile: float
    ) -> "MotionLimits":
        """What demonstrations keep to in a share `quantile` of their control steps, axis by axis.

        Args:
            episodes: (T, M) actions of each, without grippers.
            dt: Control period, s.
            commands: What the actions are.
            quantile: In (0, 1].

        Raises:
            ValueError: If no episode is long enough, or an axis never moves so.
        """
        first = 1 if commands == "displacement" else 2
        chosen = [actions.double() for actions in episodes if len(actions) > first + 1]
        if not chosen:
            raise ValueError(f"The demonstrations should have episodes of more than {first + 1} steps.")

        def limit(order: int) -> list[float]:
            rates = torch.cat([actions.diff(n=order, dim=0) for actions in chosen]).abs() / dt**order
            return torch.quantile(rates, quantile, dim=0).tolist()

        return cls(limit(first), limit(first + 1), limit(1) if commands == "position" else [])


@ProcessorStepRegistry.register("smoothvla_jerk_limit")
@dataclass
class JerkLimitStep(ActionFilterStep):
    """Follows the commands as fast as limits of acceleration and jerk allow: an online trajectory by Ruckig.

    Displacements go through Ruckig's velocity interface, from rest; positions through its position interface,
    from the first command on, each as a place to stop at. Every axis for itself. Berscheid and Kröger,
    "Jerk-limited real-time trajectory generation with arbitrary target states", RSS 2021 (arXiv 2105.04830).
    Needs the package `ruckig`.

    Attributes:
        dt: Control period, s.
        max_acceleration: See `MotionLimits`.
        max_jerk: See `MotionLimits`.
        max_velocity: See `MotionLimits`.
        commands: What the actions are.
    """

    dt: float = 0.05
    max_acceleration: list[float] = field(default_factory=list)
    max_jerk: list[float] = field(default_factory=list)
    max_velocity: list[float] = field(default_factory=list)
    commands: Commands = "displacement"

    def __post_init__(self) -> None:
        """As in `ActionFilterStep`."""
        require_ruckig()
        if not 0 < self.dt < math.inf:
            raise ValueError(f"`dt` should be a positive control period in s, got {self.dt}.")
        self._limits = MotionLimits(self.max_acceleration, self.max_jerk, self.max_velocity)
        if self.commands == "position" and not self.max_velocity:
            raise ValueError("Commands that are positions need limits of the velocity too, got none.")
        super().__post_init__()

    def reset(self) -> None:
        """Begin an episode."""
        self._motions: list[_Motion] | None = None

    def _filtered(self, chunk: Tensor, n: int) -> Tensor:
        if self._motions is None:
            self._motions = [_Motion.at_rest(row[0].tolist()) for row in chunk]
            self._of_axes = self._limits.each_of([f"action {axis}" for axis in range(chunk.shape[-1])])
        _require_same_rows(len(self._motions), len(chunk))
        limited = torch.empty_like(chunk[:, :n])
        for step, row in ((step, row) for step in range(n) for row in range(len(chunk))):
            motion = self._follow(self._motions[row], chunk[row, step].tolist())
            self._motions[row] = motion
            followed = motion.velocity if self.commands == "displacement" else motion.position
            limited[row, step] = torch.tensor(followed, dtype=chunk.dtype)
        return limited

    def _follow(self, motion: "_Motion", command: list[float]) -> "_Motion":
        """One control step towards a command of M axes."""
        import ruckig

        n_axes = len(command)
        given = ruckig.InputParameter(n_axes)
        given.synchronization = ruckig.Synchronization.No
        given.current_position = motion.position
        given.current_velocity = motion.velocity
        given.current_acceleration = motion.acceleration
        given.max_acceleration, given.max_jerk = self._of_axes.acceleration, self._of_axes.jerk
        if self.commands == "displacement":
            given.control_interface = ruckig.ControlInterface.Velocity
            given.target_velocity = command
        else:
            given.max_velocity = self._of_axes.velocity
            given.target_position = command
        then = ruckig.OutputParameter(n_axes)
        result = ruckig.Ruckig(n_axes, self.dt).update(given, then)
        if result not in (ruckig.Result.Working, ruckig.Result.Finished):
            raise ValueError(f"Ruckig finds no motion ({result}) towards the command {command}.")
        return _Motion(then.new_position, then.new_velocity, then.new_acceleration)


@dataclass(frozen=True)
class _Motion:
    """Position, velocity and acceleration of M axes, in u·s, u and u/s."""

    position: list[float]
    velocity: list[float]
    acceleration: list[float]

    @classmethod
    def at_rest(cls, position: list[float]) -> "_Motion":
        return cls(position, [0.0] * len(position), [0.0] * len(position))


def require_ruckig() -> None:
    """Make sure that `ruckig` is there.

    Raises:
        ImportError: If it is not.
    """
    try:
        import ruckig  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Limiting the jerk needs the package 'ruckig', which is not installed; try "
            "`pip install 'lerobot_policy_smoothvla[filters]'`."
        ) from error


@ProcessorStepRegistry.register("smoothvla_chunk_blend")
@dataclass
class ChunkBlendStep(ActionFilterStep):
    """Blends each chunk linearly into what the one before it had planned for the same control steps.

    Of m blended steps, step h (from 0) is (w·new + (1 − w)·old), w = (h + 1) / (m + 1).

    Attributes:
        n_blend: m at most; None for all executed steps. The old chunk's rest may hold fewer.
    """

    n_blend: int | None = None

    def __post_init__(self) -> None:
        """As in `ActionFilterStep`."""
        if self.n_blend is not None and not 1 <= self.n_blend <= (self.n_action_steps or self.n_blend):
            raise ValueError(
                f"`n_blend` should be in [1, {self.n_action_steps}], the executed steps of a chunk, got "
                f"{self.n_blend}."
            )
        super().__post_init__()

    def reset(self) -> None:
        """Begin an episode."""
        self._rest: Tensor | None = None

    def _filtered(self, chunk: Tensor, n: int) -> Tensor:
        if chunk.shape[1] <= n:
            raise ValueError(
                f"Blending needs chunks longer than the {n} steps that are executed, got {chunk.shape[1]}; "
                "execute fewer (--policy.n_action_steps). Actions one by one cannot be blended."
            )
        rest, blended = self._rest, chunk[:, :n].clone()
        self._rest = chunk[:, n:]
        if rest is not None:
            _require_same_rows(len(rest), len(chunk))
            m = min(self.n_blend or n, rest.shape[1])
            new = torch.arange(1, m + 1, dtype=chunk.dtype)[:, None] / (m + 1)
            blended[:, :m] = new * blended[:, :m] + (1 - new) * rest[:, :m]
        return blended
