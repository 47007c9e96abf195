"""Which filter a policy acts through: `--filter.type` and the settings of that type."""

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import draccus
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from lerobot_smoothvla.dataset_loading import load_dataset, readable
from lerobot_smoothvla.envs.adapters import commands_of
from lerobot_smoothvla.episode import arm_dimensions
from lerobot_smoothvla.filters.guard import MotionGuardStep
from lerobot_smoothvla.filters.real_time_chunking import RealTimeChunkingSampler
from lerobot_smoothvla.filters.steps import (
    ActionFilterStep,
    ChunkBlendStep,
    ExponentialFilterStep,
    JerkLimitStep,
    MotionLimits,
    require_ruckig,
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
            MotionLimits(self.max_acceleration, self.max_jerk, self.max_velocity)

    def step(self, adapter: PolicyAdapter, env_config: EnvConfig) -> ActionFilterStep:
        """See `ActionFilterConfig.step`."""
        embodiment, dt = commands_of(env_config)
        limits = self.limits(env_config)
        n_axes = len(arm_dimensions(env_config.features[ACTION].shape[0], embodiment.grippers))
        limits.each_of([f"action {axis}" for axis in range(n_axes)])
        return JerkLimitStep(
            grippers=list(embodiment.grippers),
            n_action_steps=adapter.config.n_action_steps,
            dt=dt,
            max_acceleration=limits.acceleration,
            max_jerk=limits.jerk,
            max_velocity=limits.velocity,
            commands=embodiment.commands,
        )

    def limits(self, env_config: EnvConfig) -> MotionLimits:
        """Those given, or those of the demonstrations.

        Raises:
            FileNotFoundError: If there are no demonstrations.
            ValueError: If they are of another control rate.
        """
        if self.demonstrations is None:
            return MotionLimits(self.max_acceleration, self.max_jerk, self.max_velocity)
        embodiment, dt = commands_of(env_config)
        dataset = _dataset(self.demonstrations)
        fps = dataset.meta.fps
        # LIBERO's datasets, ours and the Hub's, say 10 frames a second of what is control steps at 20 Hz.
        if not isinstance(env_config, LiberoEnvConfig) and not math.isclose(fps * dt, 1, rel_tol=0.01):
            raise ValueError(
                f"Demonstrations of {fps} frames a second give no limits for {1 / dt:g} control steps a "
                "second; take some of this environment, or give --filter.max_acceleration and "
                "--filter.max_jerk."
            )
        actions = _actions_of(dataset, embodiment.grippers)
        return MotionLimits.of_demonstrations(actions, dt, embodiment.commands, self.quantile)


_BY_HAND = "--guard.max_velocity=[..] --guard.max_acceleration=[..] --guard.max_jerk=[..]"


@dataclass
class GuardConfig:
    """The motion guard of a checkpoint that drives an arm, none without limits; see `MotionGuardStep`.

    Its limits are given, or what demonstrations kept to. All of it by default: what a person did with this
    arm is no reason to act. Where a recording has glitches, which widen the limits, a quantile such as 0.999
    leaves them out; smoothing is what filters are for, whose default is lower.

    Attributes:
        demonstrations: Root of a LeRobot dataset of the arm whose actions are positions, named `.pos`.
        quantile: The limits are what its actions stay within in this share of the control steps.
        max_velocity: One for all axes without grippers or one for each, in the actions' unit per s.
        max_acceleration: Likewise, per s².
        max_jerk: Likewise, per s³.
        fps: Control rate of the rollout, Hz; None for that of the demonstrations, 30 without.
        grippers: Indices of the actions that are let through; None for those named so, the last where
            actions have no names.
        frozen_after: How long a camera may give the same image before the arm holds, s; 0 for ever, as that
            of a simulator may. LeRobot's cameras give an image for 0.5 s at most.
    """

    demonstrations: Path | None = None
    quantile: float = 1.0
    max_velocity: list[float] = field(default_factory=list)
    max_acceleration: list[float] = field(default_factory=list)
    max_jerk: list[float] = field(default_factory=list)
    fps: float | None = None
    grippers: list[int] | None = None
    frozen_after: float = 0.5

    @property
    def wanted(self) -> bool:
        """Whether anything of it is set."""
        return self != GuardConfig()

    # Not where it is made: LeRobot's parser hides the reason of what fails there, in `--robot.guard.*`.
    def _validate(self) -> None:
        """Reject it before anything is loaded.

        Raises:
            ValueError: If there is not exactly one source of limits, or one is out of its range.
        """
        n_given = sum(map(bool, (self.max_velocity, self.max_acceleration, self.max_jerk)))
        if n_given != (3 if self.demonstrations is None else 0):
            raise ValueError(
                "A guard's limits should be taken of demonstrations (--guard.demonstrations=DATASET_ROOT) or "
                f"given, all three ({_BY_HAND}, in the actions' unit per s, s² and s³); one of the two."
            )
        if not 0 < self.quantile <= 1:
            raise ValueError(f"`guard.quantile` should be in (0, 1], got {self.quantile}.")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"`guard.fps` should be a positive control rate in Hz, got {self.fps}.")
        if not 0 <= self.frozen_after < math.inf:
            raise ValueError(
                f"`guard.frozen_after` should be a time in s, or 0 for none, got {self.frozen_after}."
            )

    def step(self, config: PreTrainedConfig) -> MotionGuardStep:
        """The guard of a checkpoint.

        Args:
            config: Of the checkpoint.

        Raises:
            FileNotFoundError: If there are no demonstrations.
            ImportError: If ruckig is missing.
            ValueError: If it cannot be, or the demonstrations are not of this policy's arm, or not of
                positions.
        """
        self._validate()
        action, state = config.action_feature, config.robot_state_feature
        if action is None or state is None:
            raise ValueError(
                f"A guard should know where the arm is, but the policy '{config.pretrained_path}' takes no "
                "`observation.state`; train one that does."
            )
        n_actions, n_states = action.shape[0], state.shape[0]
        if self.demonstrations is not None:
            features = _dataset(self.demonstrations).meta.features
            names, measured = (list(features.get(key, {}).get("names") or []) for key in (ACTION, OBS_STATE))
            if len(names) != n_actions or len(measured) != n_states:
                raise ValueError(
                    f"The demonstrations '{self.demonstrations}' should have the {n_actions} actions and the "
                    f"state of {n_states} of the policy, got actions {names} and states {measured}; give the "
                    f"limits instead ({_BY_HAND})."
                )
            return self.step_of(names, measured)
        if n_states < n_actions:
            raise ValueError(
                f"The policy's state has {n_states} dimensions, which cannot be the positions of its "
                f"{n_actions} actions; name its dataset (--guard.demonstrations=DATASET_ROOT)."
            )
        names = [str(index) for index in range(n_actions)]
        return self._step(names, list(range(n_actions)), [n_actions - 1])

    def step_of(self, names: list[str], measured: list[str]) -> MotionGuardStep:
        """The guard of an arm whose actions and states have names.

        Args:
            names: Of the actions.
            measured: Of the dimensions of the state.

        Raises:
            FileNotFoundError: If there are no demonstrations.
            ImportError: If ruckig is missing.
            ValueError: If it cannot be, an action is not a measured position, or the demonstrations are of
                another arm.
        """
        self._validate()
        if strange := [name for name in names if not (name.endswith(".pos") and name in measured)]:
            raise ValueError(
                "A guard should have actions that are each the position of a joint that the state has too "
                f"(NAME.pos, as LeRobot's arms record), got {', '.join(strange)} among actions {names} and "
                f"states {measured}; give the limits of a checkpoint instead ({_BY_HAND})."
            )
        grippers = [index for index, name in enumerate(names) if "gripper" in name]
        return self._step(names, [measured.index(name) for name in names], grippers)

    def _step(self, names: list[str], state_dims: list[int], grippers: list[int]) -> MotionGuardStep:
        """The guard with its limits, whatever they come from."""
        require_ruckig()
        fps, grippers = self.fps or 30, grippers if self.grippers is None else self.grippers
        velocity, acceleration, jerk = self.max_velocity, self.max_acceleration, self.max_jerk
        if self.demonstrations is not None:
            dataset = _dataset(self.demonstrations)
            meta = dataset.meta
            if (recorded := list(meta.features[ACTION]["names"] or [])) != names:
                raise ValueError(
                    f"The demonstrations '{self.demonstrations}' should be of this arm's actions {names}, "
                    f"got {recorded}."
                )
            fps = self.fps or meta.fps
            actions = _actions_of(dataset, grippers)
            kept = MotionLimits.of_demonstrations(actions, 1 / meta.fps, "position", self.quantile)
            velocity, acceleration, jerk = kept.velocity, kept.acceleration, kept.jerk
        return MotionGuardStep(
            dt=1 / fps,
            max_velocity=velocity,
            max_acceleration=acceleration,
            max_jerk=jerk,
            action_names=names,
            state_dims=state_dims,
            grippers=grippers,
        )


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


def _actions_of(dataset: LeRobotDataset, grippers: Sequence[int]) -> list[Tensor]:
    """(T, M) actions of each episode of a LeRobot dataset, without grippers.

    Raises:
        ValueError: If it cannot be read.
    """
    with readable(f"in '{dataset.root}'"):
        rows = dataset.hf_dataset.select_columns([ACTION, "episode_index"]).with_format("torch")[:]
        actions, episode = torch.stack(list(rows[ACTION])), torch.as_tensor(rows["episode_index"])
    arm = arm_dimensions(actions.shape[-1], grippers)
    return [actions[episode == index][:, arm] for index in episode.unique()]


def _dataset(root: Path) -> LeRobotDataset:
    """The dataset of a directory, never one of the Hub.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be read.
    """
    if not (root / "meta" / "info.json").is_file():
        raise FileNotFoundError(f"There is no LeRobot dataset '{root}': expected {root}/meta/info.json.")
    return load_dataset(root.resolve().name, root)
