"""LIBERO whose bodies fly apart, as a bad contact makes them, in the second chunk of every episode."""

from dataclasses import dataclass
from typing import Any

from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig


@EnvConfig.register_subclass("diverging_libero")
@dataclass
class DivergingLiberoConfig(LiberoEnvConfig):
    """In every worker process that is sent it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

        advance = ChunkedLiberoEnv._advance

        def shaken(env, *arguments, **settings):
            if env._steps > 0:
                env._env.sim.data._data.qvel[:] = 1e12
            return advance(env, *arguments, **settings)

        ChunkedLiberoEnv._advance = shaken
