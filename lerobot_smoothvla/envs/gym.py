"""Any environment of LeRobot that has an adapter, reset by seed and stepped one chunk at a time.

Dims: n ≤ H executed steps of a chunk, A action dimensions, D position axes.
"""

import os
from contextlib import redirect_stdout
from typing import Any

import gymnasium
import numpy as np
import torch
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION
from numpy.typing import NDArray

from lerobot_smoothvla.envs.adapters import env_adapter
from lerobot_smoothvla.envs.chunked import ChunkedEnv, Observation, Picture, to_lerobot
from lerobot_smoothvla.envs.shift import Shift
from lerobot_smoothvla.episode import Start

_PROBE_SEED, _PROBE_STEPS = 1234, 10


class GymChunkedEnv(ChunkedEnv):
    """The environment that an `EnvConfig` of a single task makes.

    Its observations and actions go through LeRobot's renaming and the config's own processors, as in
    `lerobot-eval`. Success and position are read from what `step` returns, never from the simulator after it:
    Meta-World's resets itself as soon as the task is solved.
    """

    def __init__(self, config: EnvConfig, suite: str, task_id: int) -> None:
        """Build the environment and try out whether it is one to learn in.

        Raises:
            ValueError: If the type has no adapter, the horizon is not positive, or what the environment makes
                has no position, no success, or other observations when it is reset by the same seed.
        """
        self._adapter = env_adapter(config)
        self._config = config
        self.suite, self.task_id = suite, task_id
        self.dt = 1 / self._adapter.control_hz
        self.embodiment = self._adapter.embodiment
        if (length := getattr(config, "episode_length", None)) is not None and length < 1:
            raise ValueError(f"`episode_length` should be at least 1 control step, got {length}.")
        self._from_env, self._to_env = config.get_env_processors()
        self._position: NDArray[np.float64] = np.full(len(self._adapter.axes), np.nan)
        self._joints: NDArray[np.float64] | None = None
        self._vector_env = _single(config)
        self._env: gymnasium.Env = self._vector_env.envs[0]
        switch = self._adapter.camera_switch
        self._render = switch(self._env) if switch else lambda on: None
        try:
            self._max_steps = self._horizon()
            self._try_out()
        except ValueError:
            self.close()
            raise

    @property
    def task_description(self) -> str:  # type: ignore[override]
        """What LeRobot's evaluation tells a policy."""
        for name in ("task_description", "task"):
            if self._env.has_wrapper_attr(name):
                return str(self._env.get_wrapper_attr(name))
        return ""

    @property
    def simulator(self) -> Any:
        """LeRobot's environment without Gymnasium's wrappers."""
        return self._env.unwrapped

    @property
    def max_steps(self) -> int:
        """The horizon in control steps: the config's `episode_length`, at most the environment's own."""
        return self._max_steps

    @property
    def position(self) -> NDArray[np.float64]:
        """(D,) position in the last observation, in the embodiment's unit."""
        return self._position

    @property
    def joints(self) -> NDArray[np.float64] | None:
        """(J,) positions of the joints in the last observation, rad, if the adapter says where they are."""
        return self._joints

    def reset_to(self, start: Start, shift: Shift | None = None) -> Observation:
        """Reset by the start's seed.

        Returns:
            The first observation that the policy sees.

        Raises:
            ValueError: If the start belongs to another task or has an initial state, or there is a shift.
        """
        self._require_own(start)
        if shift is not None:
            raise ValueError(f"Only LIBERO's scenes can be shifted, not those of type '{self._config.type}'.")
        if start.init_state != 0:
            raise ValueError(
                f"Environments of type '{self._config.type}' have no fixed initial states: a start of theirs "
                f"should have initial state 0 and differ in its seed, got {start.init_state}."
            )
        self._render(True)
        observation, _ = self._env.reset(seed=start.seed)
        self._look_at(observation)
        self._steps, self._done = 0, False
        return self.to_lerobot(observation)

    def to_lerobot(self, observation: Any) -> Observation:
        """LeRobot's keys and conventions, unbatched: images (3, h, w) uint8, all else float32."""
        return to_lerobot(observation, self._from_env)

    def close(self) -> None:
        """Free the simulator."""
        self._vector_env.close()

    def _advance(self, action: NDArray[np.floating[Any]], render: bool) -> tuple[Any, bool, bool]:
        self._render(render)
        batch = {ACTION: torch.from_numpy(np.array(action)[None])}
        action = self._to_env(batch)[ACTION][0].numpy()
        observation, _, terminated, truncated, info = self._env.step(action)
        self._look_at(observation)
        return observation, bool(info[self._adapter.success_key]), terminated or truncated

    def _picture(self, observation: dict[str, Any]) -> Picture:
        pixels: Any = observation.get("pixels")
        if pixels is None:  # The policy sees none.
            pixels = self._env.render()
        return next(iter(pixels.values())) if isinstance(pixels, dict) else pixels

    def _look_at(self, observation: Any) -> None:
        adapter = self._adapter
        self._position = self._values(observation, adapter.position_key, adapter.axes)
        if adapter.joints is not None:
            joints = self._values(observation, adapter.joints.key, adapter.joints.axes)
            self._joints = np.deg2rad(joints) if adapter.joints.unit == "deg" else joints

    def _values(self, observation: Any, key: str, axes: tuple[int, ...]) -> NDArray[np.float64]:
        values = observation.get(key) if isinstance(observation, dict) else None
        if values is None or len(values) <= max(axes):
            given = sorted(observation) if isinstance(observation, dict) else "a bare array"
            raise ValueError(
                f"The position of environments of type '{self._config.type}' is read from `{key}` of their "
                f"observations, axes {list(axes)}, which this one does not give (it gives {given}); choose "
                "observations with it, e.g. --env.obs_type=pixels_agent_pos."
            )
        return np.asarray(values, dtype=np.float64)[list(axes)]

    def _horizon(self) -> int:
        config, name = self._config, "_max_episode_steps"
        own = self._env.get_wrapper_attr(name) if self._env.has_wrapper_attr(name) else None
        limits = [limit for limit in (getattr(config, "episode_length", None), own) if limit is not None]
        if not limits:
            raise ValueError(
                f"Environments of type '{config.type}' should have a horizon: an `episode_length` in their "
                "config, or a `max_episode_steps` with which Gymnasium makes them; got neither."
            )
        return min(limits)

    def _try_out(self) -> None:
        """Reject an environment without success, or whose starts are not determined by their seed."""
        first, _ = self._env.reset(seed=_PROBE_SEED)
        self._look_at(first)
        first = _copied(first)
        self._env.action_space.seed(_PROBE_SEED)
        self._render(False)
        for _ in range(_PROBE_STEPS):
            _, _, terminated, truncated, info = self._env.step(self._env.action_space.sample())
            if self._adapter.success_key not in info:
                raise ValueError(
                    f"Success of environments of type '{self._config.type}' is read from "
                    f"`{self._adapter.success_key}` of `step`'s info, which holds only {sorted(info)}: "
                    "without it there is nothing to reward; let the environment report it, or name another "
                    "`success_key` in its adapter."
                )
            if terminated or truncated:
                break
        self._render(True)
        again, _ = self._env.reset(seed=_PROBE_SEED)
        if different := sorted(_differences(first, again)):
            raise ValueError(
                f"Environments of type '{self._config.type}' do not reset reproducibly: two resets with seed "
                f"{_PROBE_SEED} gave different {', '.join(different)}. GRPO compares rollouts of one start "
                "with one another, so draw everything random from the generator that `reset(seed=...)` seeds."
            )


def _single(config: EnvConfig) -> Any:
    """The only vector environment of a config, with one environment in it.

    Raises:
        ValueError: If the config makes several.
    """
    # Meta-World's factory prints what it builds, once a worker and task.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        made = config.create_envs(n_envs=1)
    environments = [env for of_suite in made.values() for env in of_suite.values()]
    if len(environments) != 1:
        raise ValueError(
            f"The config of an environment of type '{config.type}' should make one task, got "
            f"{len(environments)}; name a single --env.task."
        )
    return environments[0]


def _copied(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: _copied(value) for key, value in observation.items()}
    return np.array(observation)


def _differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Dotted names of the entries that are not the same bit by bit."""
    if isinstance(first, dict):
        inner = [(key, f"{name}.{key}" if name else key) for key in first]
        return [d for key, full in inner for d in _differences(first[key], second[key], full)]
    return [] if np.array_equal(first, second, equal_nan=True) else [f"`{name}`"]
