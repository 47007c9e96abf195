"""`--env.type=simulated_arm`."""

from dataclasses import dataclass, field
from typing import Any

import gymnasium
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from lerobot_robot_simulated_arm.environment import FPS, SimulatedArmEnv
from lerobot_robot_simulated_arm.table import CAMERAS
from lerobot_smoothvla.envs.adapters import EnvAdapter, Joints, register_env_adapter
from lerobot_smoothvla.episode import Embodiment


@EnvConfig.register_subclass("simulated_arm")
@dataclass
class SimulatedArmEnvConfig(EnvConfig):
    """The simulated arm in simulated time.

    Attributes:
        image_size: Of both cameras, px.
        episode_length: The horizon, control steps.
    """

    fps: int = FPS
    image_size: int = 64
    episode_length: int = 4 * FPS
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        image = PolicyFeature(FeatureType.VISUAL, (self.image_size, self.image_size, 3))
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, (6,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (6,)),
            **{f"pixels/{camera}": image for camera in CAMERAS},
        }
        self.features_map = {
            "action": "action",
            "agent_pos": "observation.state",
            **{f"pixels/{camera}": f"observation.images.{camera}" for camera in CAMERAS},
        }

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "episode_length": self.episode_length}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict:
        environments = [lambda: SimulatedArmEnv(**self.gym_kwargs)] * n_envs
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        return {self.type: {0: gymnasium.vector.SyncVectorEnv(environments, autoreset_mode=mode)}}


register_env_adapter(
    "simulated_arm",
    EnvAdapter(
        "tip_pos",
        axes=(0, 1, 2),
        control_hz=FPS,
        embodiment=Embodiment(grippers=(5,), commands="position"),
        mujoco=True,
        camera_switch=lambda env: env.unwrapped.look,
        joints=Joints("agent_pos", axes=(0, 1, 2, 3, 4), unit="deg"),
    ),
)
