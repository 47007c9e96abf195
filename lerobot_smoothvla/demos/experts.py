"""Which environments have a scripted expert."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.envs.configs import MetaworldEnv as MetaworldEnvConfig
from numpy.typing import NDArray

from lerobot_smoothvla.demos.expert import SOLVABLE_TASKS, PickAndPlace, require_solvable
from lerobot_smoothvla.envs.tasks import selected_tasks
from lerobot_smoothvla.episode import Task

Array = NDArray[np.float64]

JERKY_STROKES = 2
"""Of each displacement of LIBERO's expert where it is jerky: three times the jerk in the same time."""


class Expert(Protocol):
    """Acts in one episode; its first three action dimensions are a displacement."""

    @property
    def pace(self) -> float:
        """Speed of the arm that is asked for, 1 being the fastest that an action can ask for."""
        ...

    def act(self) -> Array:
        """(A,) the next action in [-1, 1]."""
        ...


class MetaworldExpert:
    """Meta-World's own policy of the task, which reads the full state; make it after the reset."""

    def __init__(self, env: Any) -> None:
        """Read the state after the reset of a `GymChunkedEnv`."""
        self._lerobot_env = env.simulator
        simulator = self._lerobot_env._env
        # What its reset returned and LeRobot cut off: the present twice, and the goal.
        self._state = np.hstack((simulator._prev_obs, simulator._prev_obs, simulator._get_pos_goal()))
        self._action = np.zeros(4)

    @property
    def pace(self) -> float:
        """Norm of the last displacement, at most 1."""
        return min(float(np.linalg.norm(self._action[:3])), 1.0)

    def act(self) -> Array:
        """(4,) the next action in [-1, 1]."""
        simulator = self._lerobot_env._env
        state = simulator._last_stable_obs if simulator.curr_path_length > 0 else self._state
        self._action = np.clip(self._lerobot_env.expert_policy.get_action(state), -1.0, 1.0)
        return self._action.copy()


def tasks_to_demonstrate(config: EnvConfig) -> list[Task]:
    """The tasks that a config names, or of whole suites of LIBERO those that the expert can do."""
    tasks = selected_tasks(config)
    if not isinstance(config, LiberoEnvConfig) or config.task_ids is not None:
        return tasks
    return [(suite, task_id) for suite, task_id in tasks if task_id in SOLVABLE_TASKS.get(suite, (task_id,))]


def require_expert(
    config: EnvConfig, tasks: Sequence[Task], speed: float, speed_spread: float, jerky_share: float
) -> None:
    """Reject tasks that nobody can demonstrate.

    Raises:
        ValueError: If there are any, or the expert does not move so.
    """
    if isinstance(config, LiberoEnvConfig):
        require_solvable(tasks)
    elif not isinstance(config, MetaworldEnvConfig):
        raise ValueError(
            f"There are scripted experts for environments of type libero and metaworld, none for "
            f"'{config.type}'; record demonstrations with `lerobot-record`, or take a dataset from the Hub."
        )
    elif (speed, speed_spread, jerky_share) != (1.0, 0.0, 0.0):
        raise ValueError(
            f"`speed`, `speed_spread` and `jerky_share` are settings of LIBERO's expert, got {speed}, "
            f"{speed_spread} and {jerky_share}; Meta-World's policies move in their own way: leave them out."
        )


def make_expert(env: Any, config: EnvConfig, speed: float, jerky: bool) -> Expert:
    """The expert of an environment that has just been reset."""
    return (
        PickAndPlace(env, speed, JERKY_STROKES if jerky else 0)
        if isinstance(config, LiberoEnvConfig)
        else MetaworldExpert(env)
    )
