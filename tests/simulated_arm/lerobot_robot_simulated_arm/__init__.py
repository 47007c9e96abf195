"""An SO-101-like follower over MuJoCo, which LeRobot's commands find as any third-party robot."""

from lerobot_robot_simulated_arm.config_simulated_arm import SimulatedArmConfig
from lerobot_robot_simulated_arm.simulated_arm import SimulatedArm

__all__ = ["SimulatedArm", "SimulatedArmConfig"]
