"""Which filter a policy acts through: `--filter.type` and the settings of that type."""

from abc import ABC
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import draccus
import torch
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION
from torch import Tensor

from lerobot_smoothvla.dataset_loading import load_dataset, readable
from lerobot_smoothvla.envs.adapters import commands_of
from lerobot_smoothvla.episode import Embodiment, arm_dimensions
from lerobot_smoothvla.filters.real_time_chunking import RealTimeChunkingSampler
from lerobot_smoothvla.filters.steps import (
    ActionFilterStep,
    ChunkBlendStep,
    ExponentialFilterStep,
    JerkLimitStep,
    MotionLimits,
)
from lerobot_smoothvla.flow.adapters.base import FlowAdapter, PolicyAdapter
from lerobot_smoothvla.flow.sampling import DeployedSampler


@dataclass
class ActionFilterConfig(draccus.ChoiceRegistry, ABC):
    """A filter and its settings."""

    @property
    def type(self) -> str:
        """Its name in `--filter.type`."""
        return str(self.get_choice_name(self.__class__))

    def step(self, adapter: PolicyAdapter, env_config: EnvConfig) -> ActionFilterStep | None:
        """What comes after the policy's post-processor, or None.

        Args:
            adapter: Of the policy.
            env_config: Where it acts.

        Raises:
            ImportError: If a package is missing.
            ValueError: If the filter does not suit the policy or the environment.
        """
        return None

    def sampler(self, adapter: PolicyAdapter) -> DeployedSampler | RealTimeChunkingSampler:
        """How chunks are drawn.

        Raises:
            ValueError: If the filter does not suit the policy.
        """
        return DeployedSampler()

    def to_json(self) -> dict[str, Any]:
        """`type` and settings."""
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return {"type": self.type, **settings}


@ActionFilterConfig.register_subclass("none")
@dataclass
class NoFilterConfig(ActionFilterConfig):
    """The policy as it is."""


@ActionFilterConfig.register_subclass("exponential")
@dataclass
class ExponentialFilterConfig(ActionFilterConfig):
    """Exponential smoothing; see `ExponentialFilterStep`.

    Attributes:
        alpha: Weight of the new command, in (0, 1].
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        """Reject it before anything starts."""
        ExponentialFilterStep(alpha=self.alpha)

    def step(self, adapter: PolicyAdapter, env_config: EnvConfig) -> ActionFilterStep:
        """See `ActionFilterConfig.step`."""
        embodiment, _ = commands_of(env_config)
        return ExponentialFilterStep(
            grippers=list(embodiment.grippers),
            n_action_steps=adapter.config.n_action_steps,
            alpha=self.alpha,
            commands=embodiment.commands,
        )


@ActionFilterConfig.register_subclass("jerk_limited")
@dataclass
class JerkLimitConfig(ActionFilterConfig):
    """A jerk-limited online trajectory; see `JerkLimitStep`. Its limits are given, or demonstrations'.

    Attributes:
        max_acceleration: One for all axes or one for each; units as in `MotionLimits` (LIBERO: m/s²).
        max_jerk: Likewise (LIBERO: m/s³).
        max_velocity: Likewise, where actions are positions (rad/s, px/s).
        demonstrations: Root of a LeRobot dataset of the environment's actions at its control rate.
        quantile: The limits are what its actions stay within in this share of the control steps.
    """

    max_acceleration: list[float] = field(default_factory=list)
    max_jerk: list[float] = field(default_factory=list)
    max_velocity: list[float] = field(default_factory=list)
    demonstrations: Path | None = None
    quantile: float = 0.95

    def __post_init__(self) -> None:
        """Reject it before anything starts.

        Raises:
            ValueError: If there is not exactly one source of limits, or one is out of its range.
        """
        given = [limits for limits in (self.max_acceleration, self.max_jerk, self.max_velocity) if limits]
        if bool(given) == (self.demonstrations is not None):
            raise ValueError(
                "Limits should be given (--filter.max_acceleration=[4] --filter.max_jerk=[80], in m/s² and "
                "m/s³ for LIBERO) or taken of demonstrations (--filter.demonstrations=DATASET_ROOT), one of "
                "the two."
            )
        if not 0 < self.quantile <= 1:
            raise ValueError(f"`quantile` should be in (0, 1], got {self.quantile}.")
        if given:
            MotionLimits(tuple(self.max_acceleration), tuple(self.max_jerk), tuple(self.max_velocity))

    def step(self, adapter: PolicyAdapter, env_config: EnvConfig) -> ActionFilterStep:
        """See `ActionFilterConfig.step`."""
        embodiment, dt = commands_of(env_config)
        limits = self.limits(env_config)
        return JerkLimitStep(
            grippers=list(embodiment.grippers),
            n_action_steps=adapter.config.n_action_steps,
            dt=dt,
            max_acceleration=list(limits.acceleration),
            max_jerk=list(limits.jerk),
            max_velocity=list(limits.velocity),
            commands=embodiment.commands,
        )

    def limits(self, env_config: EnvConfig) -> MotionLimits:
        """Those given, or those of the demonstrations.

        Raises:
            FileNotFoundError: If there are no demonstrations.
        """
        if self.demonstrations is None:
            return MotionLimits(tuple(self.max_acceleration), tuple(self.max_jerk), tuple(self.max_velocity))
        embodiment, dt = commands_of(env_config)
        actions = _actions_of(self.demonstrations, embodiment)
        return MotionLimits.of_demonstrations(actions, dt, embodiment.commands, self.quantile)


@ActionFilterConfig.register_subclass("blend")
@dataclass
class ChunkBlendConfig(ActionFilterConfig):
    """Chunks blended linearly at the seam; see `ChunkBlendStep`.

    Attributes:
        n_blend: Control steps over which they are; None for all that are executed of a chunk.
    """

    n_blend: int | None = None

    def step(self, adapter: PolicyAdapter, env_config: EnvConfig) -> ActionFilterStep:
        """See `ActionFilterConfig.step`."""
        embodiment, _ = commands_of(env_config)
        return ChunkBlendStep(
            grippers=list(embodiment.grippers), n_action_steps=_executed(adapter), n_blend=self.n_blend
        )


@ActionFilterConfig.register_subclass("rtc")
@dataclass
class RealTimeChunkingConfig(ActionFilterConfig):
    """Real-time chunking, for flow policies; see `RealTimeChunkingSampler`.

    Attributes:
        max_guidance_weight: Upper bound of the pull towards the chunk before; None for the policy's number of
            Euler steps.
    """

    max_guidance_weight: float | None = None

    def __post_init__(self) -> None:
        """Reject it before anything starts.

        Raises:
            ValueError: If the weight is not positive.
        """
        if self.max_guidance_weight is not None and self.max_guidance_weight <= 0:
            raise ValueError(
                f"`max_guidance_weight` should be positive, got {self.max_guidance_weight}; "
                "--filter.type=none is without guidance."
            )

    def sampler(self, adapter: PolicyAdapter) -> RealTimeChunkingSampler:
        """See `ActionFilterConfig.sampler`."""
        policy_type = adapter.config.type
        if not isinstance(adapter, FlowAdapter):
            raise ValueError(
                f"Real-time chunking guides the velocity of a flow, which policies of type '{policy_type}' "
                "do not have; use another filter, e.g. --filter.type=blend."
            )
        if getattr(adapter.config, "use_relative_actions", False):
            raise ValueError(
                "Chunks of relative actions count from different states, so that one cannot be pulled "
                "towards another as they are; use another filter, e.g. --filter.type=blend."
            )
        return RealTimeChunkingSampler(_executed(adapter), self.max_guidance_weight)


def _executed(adapter: PolicyAdapter) -> int:
    """How many steps of a chunk are executed, if some are left over."""
    n, chunk_size = adapter.config.n_action_steps, adapter.chunk_size - adapter.first_step
    if n >= chunk_size:
        raise ValueError(
            f"Chunks can be joined only where they overlap, but all {chunk_size} steps of each are executed; "
            "execute fewer (--policy.n_action_steps)."
        )
    return int(n)


def _actions_of(root: Path, embodiment: Embodiment) -> list[Tensor]:
    """(T, M) actions of each episode of a LeRobot dataset, without grippers.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be read.
    """
    if not (root / "meta" / "info.json").is_file():
        raise FileNotFoundError(f"There is no LeRobot dataset '{root}': expected {root}/meta/info.json.")
    dataset = load_dataset(root.name, root)
    with readable(f"in '{root}'"):
        rows = dataset.hf_dataset.select_columns([ACTION, "episode_index"]).with_format("torch")[:]
        actions, episode = torch.stack(list(rows[ACTION])), torch.as_tensor(rows["episode_index"])
    arm = arm_dimensions(actions.shape[-1], embodiment.grippers)
    return [actions[episode == index][:, arm] for index in episode.unique()]
