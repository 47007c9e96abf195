"""An environment that is registered as a user would register one, with faults to choose from."""

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from lerobot_smoothvla.envs.adapters import EnvAdapter, register_env_adapter
from lerobot_smoothvla.episode import Embodiment

FAULTS = ("seed", "history", "success", "position", "horizon")


class SlideEnv(gymnasium.Env):
    """A point on a line that the action pushes; solved where it began beyond 1 m."""

    observation_space = gymnasium.spaces.Dict(
        {
            "pixels": gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8),
            "agent_pos": gymnasium.spaces.Box(-np.inf, np.inf, (1,)),
        }
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.x = 0.0
        self.n_resets = 0
        if fault != "horizon":
            self._max_episode_steps = 20

    def _observation(self) -> dict[str, Any]:
        pixels = np.full((16, 16, 3), int(abs(self.x) * 50) % 256, np.uint8)
        position = {} if self.fault == "position" else {"agent_pos": np.array([self.x])}
        return {"pixels": pixels, **position}

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.n_resets += 1
        super().reset(seed=self.n_resets if self.fault == "seed" else seed)
        self.x = self.np_random.uniform(-1, 1) + (1e-12 * self.x if self.fault == "history" else 0.0)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.x += 0.1 * float(action[0])
        solved = self.x > 1
        info = {} if self.fault == "success" else {"is_success": solved}
        return self._observation(), 0.0, solved, False, info


@EnvConfig.register_subclass("slide")
@dataclass
class SlideEnvConfig(EnvConfig):
    """Its faults are those of `FAULTS`."""

    fault: str = ""
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (1,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (1,)),
            "pixels": PolicyFeature(FeatureType.VISUAL, (16, 16, 3)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            "pixels": "observation.image",
        }
    )

    @property
    def gym_kwargs(self) -> dict:
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict:
        return {"slide": {0: gymnasium.vector.SyncVectorEnv([lambda: SlideEnv(self.fault)] * n_envs)}}


register_env_adapter(
    "slide", EnvAdapter("agent_pos", (0,), control_hz=20, embodiment=Embodiment(grippers=()))
)
