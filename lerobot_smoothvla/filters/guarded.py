"""`--robot.type=guarded`: any arm of LeRobot's behind the motion guard, whoever commands it.

The robot is the one place that every command passes: of synchronous inference and real-time chunking, of the
policy server's client, which has no processors, of a teleoperator, and LeRobot's return to the initial
position. It is also where every image comes from.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import draccus
import numpy as np
from lerobot.lerobot_types import RobotAction, RobotObservation
from lerobot.robots import Robot, RobotConfig, make_robot_from_config

from lerobot_smoothvla.filters.cameras import FrozenCameras
from lerobot_smoothvla.filters.configuration import GuardConfig


@RobotConfig.register_subclass("guarded")
@dataclass(kw_only=True)
class GuardedConfig(RobotConfig):
    """An arm behind a guard.

    Attributes:
        arm: The settings of the arm, its `type` among them: what `--robot.*` would be without the guard. Not
            a `RobotConfig`: a choice of robots that holds a choice of robots has no end.
        guard: See `GuardConfig`.
    """

    arm: dict[str, Any]
    guard: GuardConfig = field(default_factory=GuardConfig)


class Guarded(Robot):
    """The arm, but for the actions that it is given; see `MotionGuardStep`.

    Where no action comes, as while a policy or its server is late or gone, the arm stays at the last one.
    """

    config_class = GuardedConfig
    name = "guarded"

    def __init__(self, config: GuardedConfig) -> None:
        """Make the arm, not yet connected.

        Raises:
            FileNotFoundError: If there are no demonstrations.
            ImportError: If ruckig is missing.
            ValueError: If the guard cannot be, or does not suit the arm.
        """
        arm = draccus.decode(RobotConfig, config.arm)
        self.arm = make_robot_from_config(arm)
        self.name = self.arm.name  # Recordings and policies go by it.
        super().__init__(arm)
        self.config = config
        self.cameras = getattr(self.arm, "cameras", {})  # The recorder counts them.
        measured = [name for name, kind in self.observation_features.items() if kind is float]
        self.guard = config.guard.step_of(list(self.action_features), measured)
        self._images = [name for name, kind in self.observation_features.items() if isinstance(kind, tuple)]
        self._frozen = FrozenCameras(config.guard.frozen_after)
        self._measured: np.ndarray | None = None
        self._blind = False

    @property
    def observation_features(self) -> dict[str, Any]:
        """The arm's."""
        return self.arm.observation_features

    @property
    def action_features(self) -> dict[str, Any]:
        """The arm's."""
        return self.arm.action_features

    @property
    def is_connected(self) -> bool:
        """Whether the arm is."""
        return self.arm.is_connected

    @property
    def is_calibrated(self) -> bool:
        """Whether the arm is."""
        return self.arm.is_calibrated

    def connect(self, calibrate: bool = True) -> None:
        """Connect the arm."""
        self.arm.connect(calibrate)

    def calibrate(self) -> None:
        """Calibrate the arm."""
        self.arm.calibrate()

    def configure(self) -> None:
        """Configure the arm."""
        self.arm.configure()

    def get_observation(self) -> RobotObservation:
        """The arm's, at which the guard looks."""
        observation = self.arm.get_observation()
        images = {name: observation[name] for name in self._images}
        self._blind = bool(self._frozen.look(images, time.perf_counter()))
        self._measured = np.array([[observation[name] for name in self.action_features]], dtype=np.float64)
        return observation

    def send_action(self, action: RobotAction) -> RobotAction:
        """Give the arm what is safe of an action.

        Raises:
            ValueError: If where the arm is is not known as the guard begins.
        """
        if self._measured is None:
            self.get_observation()
        assert self._measured is not None
        command = np.array([[action[name] for name in self.action_features]], dtype=np.float64)
        safe = self.guard.guarded(command, self._measured, self._blind)[0]
        return self.arm.send_action(dict(zip(self.action_features, safe.tolist(), strict=True)))

    def disconnect(self) -> None:
        """Say what the guard had to do, and disconnect the arm."""
        self.guard.reset()
        self.arm.disconnect()
