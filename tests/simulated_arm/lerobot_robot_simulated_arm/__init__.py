"""An SO-101-like follower over MuJoCo, which LeRobot's commands find as any third-party robot.

Beside it, `scripted_hand` teleoperates it, and `--env.type=simulated_arm` is its simulator for GRPO.
"""

from lerobot_robot_simulated_arm.config_environment import SimulatedArmEnvConfig
from lerobot_robot_simulated_arm.config_scripted_hand import ScriptedHandConfig
from lerobot_robot_simulated_arm.config_simulated_arm import SimulatedArmConfig
from lerobot_robot_simulated_arm.scripted_hand import ScriptedHand
from lerobot_robot_simulated_arm.simulated_arm import SimulatedArm

__all__ = [
    "ScriptedHand",
    "ScriptedHandConfig",
    "SimulatedArm",
    "SimulatedArmConfig",
    "SimulatedArmEnvConfig",
]
