"""What the rollouts need of an environment: an explicit start, steps by whole action chunks, and a position.

Dims: H steps a chunk, n ≤ H of them executed, A action dimensions, D position axes, J joints.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lerobot.envs.utils import preprocess_observation
from lerobot.utils.constants import OBS_IMAGE, OBS_STR
from numpy.typing import NDArray
from torch import Tensor

from lerobot_smoothvla.envs.shift import Shift
from lerobot_smoothvla.episode import Embodiment, Start

Observation = dict[str, Tensor]
"""What a policy sees, keyed as LeRobot does, unbatched: images (3, h, w) uint8, all else float32."""
Picture = NDArray[np.uint8]
"""(h, w, 3) a frame of a video."""


class DivergedError(FloatingPointError):
    """The simulation diverged; nothing that it says counts.

    Attributes:
        actions: (t, A) of the episode so far, the last chunk whole; None where nobody has kept them.
    """

    actions: Tensor | None = None


@dataclass(frozen=True)
class ChunkOutcome:
    """What happened while a chunk ran.

    Attributes:
        positions: (n, D) positions after each executed step, in the embodiment's unit.
        joints: (n, J) positions of the arm's joints then, rad; None where not given beside `positions`.
        frames: What the policy sees next: the observations of the last control steps, oldest first; none once
            the episode is over.
        success: Whether the task is solved.
        done: Success, or the horizon reached.
    """

    positions: NDArray[np.float64]
    joints: NDArray[np.float64] | None
    frames: tuple[Observation, ...]
    success: bool
    done: bool

    @property
    def observation(self) -> Observation | None:
        """The last of the frames."""
        return self.frames[-1] if self.frames else None

    @property
    def n_steps(self) -> int:
        """Control steps executed, at most the chunk's length."""
        return len(self.positions)


class ChunkedEnv(ABC):
    """One task of an environment.

    Attributes:
        suite: Of the task, as in a `Start`.
        task_id: In its suite.
        task_description: The task string that the policy reads.
        dt: Control period, s.
        embodiment: What positions and actions mean.
    """

    suite: str
    task_id: int
    task_description: str
    dt: float
    embodiment: Embodiment
    _steps = 0
    _done = True

    @property
    @abstractmethod
    def max_steps(self) -> int:
        """The horizon in control steps."""

    @property
    @abstractmethod
    def position(self) -> NDArray[np.float64]:
        """(D,) position at the end of the last control step, in the embodiment's unit."""

    @property
    def joints(self) -> NDArray[np.float64] | None:
        """(J,) positions of the arm's joints then, rad; None where they are not given beside `position`."""
        return None

    @abstractmethod
    def reset_to(self, start: Start, shift: Shift | None = None) -> Observation:
        """Begin at a start, which is the same bit by bit whatever was run before.

        Args:
            start: Of this task.
            shift: What of the scene is not as the start says, until the next reset.

        Returns:
            The first observation that the policy sees.

        Raises:
            ValueError: If the start belongs to another task, its initial state does not exist, or the scene
                cannot be shifted.
        """

    @abstractmethod
    def to_lerobot(self, observation: Any) -> Observation:
        """A raw observation in LeRobot's keys and conventions."""

    @abstractmethod
    def close(self) -> None:
        """Free the simulator."""

    @abstractmethod
    def _advance(self, action: NDArray[np.floating[Any]], render: bool) -> tuple[Any, bool, bool]:
        """One control step: the raw observation, whether the task is solved, and whether all is over."""

    @abstractmethod
    def _picture(self, observation: Any) -> Picture:
        """What the first camera saw."""

    def step_chunk(
        self,
        actions: NDArray[np.floating[Any]],
        on_frame: Callable[[Picture], None] | None = None,
        n_frames: int = 1,
    ) -> ChunkOutcome:
        """Run the steps of a chunk until it ends, the task is solved, or the horizon is reached.

        Args:
            actions: (n, A) actions of the environment.
            on_frame: Called with the first camera's picture after every step, which is then rendered.
            n_frames: How many of the last control steps the policy sees.

        Raises:
            RuntimeError: If the episode is over.
            DivergedError: If the simulation diverged; the episode is then over.
        """
        if self._done:
            raise RuntimeError("The episode is over: call `reset_to` before stepping again.")
        positions, joints, frames = [], [], []
        last = min(len(actions), self.max_steps - self._steps)
        success = over = False
        for index, action in enumerate(actions[:last]):
            looks = index >= last - n_frames
            observation, success, over = self._advance(action, render=on_frame is not None or looks)
            positions.append(self.position)
            if (measured := self.joints) is not None:
                joints.append(measured)
            if looks:
                frames.append(observation)
            if on_frame is not None:
                on_frame(self._picture(observation))
            if success or over:
                break
        if not np.isfinite(positions).all() or self._diverged():
            self._done = True
            raise DivergedError(
                f"The simulation of {self.suite} task {self.task_id} diverged after {self._steps} steps."
            )
        self._steps += len(positions)
        self._done = success or over or self._steps >= self.max_steps
        seen = () if self._done else tuple(self.to_lerobot(frame) for frame in frames)
        return ChunkOutcome(
            np.stack(positions), np.stack(joints) if joints else None, seen, bool(success), bool(self._done)
        )

    def _diverged(self) -> bool:
        """Whether the simulator itself says that its state became useless."""
        return False

    def _require_own(self, start: Start) -> None:
        """Reject a start of another task.

        Raises:
            ValueError: If it is one.
        """
        if start.task != (self.suite, self.task_id):
            raise ValueError(
                f"The start should belong to {self.suite} task {self.task_id}, "
                f"got {start.suite} task {start.task_id}."
            )


def to_lerobot(
    observation: dict[str, Any], processor: Callable[[dict[str, Any]], dict[str, Any]]
) -> Observation:
    """A raw observation of one environment as LeRobot's evaluation gives it to a policy.

    Args:
        observation: What the environment's `step` returns.
        processor: The environment's own, which sees the batched observation after LeRobot's renaming.
    """
    batch = processor(preprocess_observation(_batched(observation)))
    return {
        key: (value[0] * 255).round().to(torch.uint8) if key.startswith(OBS_IMAGE) else value[0]
        for key, value in batch.items()
        if key.startswith(OBS_STR)  # A pipeline adds what a transition has beside.
    }


def _batched(observation: Any) -> Any:
    """Add the leading dimension that a vector environment would add."""
    if isinstance(observation, dict):
        return {key: _batched(value) for key, value in observation.items()}
    return np.asarray(observation)[None]
