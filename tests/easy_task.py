"""A task of real LIBERO that a policy with random weights solves now and then: to move the gripper.

It never picks anything up, so that nothing would be learned and a kill could not be told from none.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig


@EnvConfig.register_subclass("easy_libero")
@dataclass
class EasyLiberoConfig(LiberoEnvConfig):
    """LIBERO, with that task in every worker process that is sent it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        set_an_easy_task()


def set_an_easy_task(distance: float = 0.12) -> None:
    """In this process; the gripper has to move by `distance`, m."""
    from lerobot.envs.libero import LiberoEnv

    from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

    reset_to = ChunkedLiberoEnv.reset_to

    def reset_and_look(env, start, shift=None):
        observation = reset_to(env, start, shift)
        env.home = env.position
        return observation

    def step(env, action):
        observation, reward, _, truncated, info = LiberoEnv.step(env, action)
        solved = bool(np.linalg.norm(env.position - env.home) > distance)
        return observation, reward, solved, truncated, info

    ChunkedLiberoEnv.reset_to, ChunkedLiberoEnv.step = reset_and_look, step
