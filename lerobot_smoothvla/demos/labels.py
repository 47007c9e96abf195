"""What the demonstrations of scripted experts are called, as the Hub's datasets of these environments are."""

from dataclasses import dataclass

from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig


@dataclass(frozen=True)
class Labels:
    """How the dataset names what it holds.

    Attributes:
        fps: Frames a second.
        robot_type: Of the arm.
        state: Names of the state's dimensions.
        action: Names of the action's.
    """

    fps: int
    robot_type: str
    state: tuple[str, ...]
    action: tuple[str, ...]


_LIBERO_MOTORS = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper")
# The label of the Hub's LIBERO datasets, although a frame is one control step and those come at 20 Hz.
LIBERO_LABELS = Labels(10, "panda", (*_LIBERO_MOTORS, "gripper"), _LIBERO_MOTORS)
METAWORLD_LABELS = Labels(80, "sawyer", ("x", "y", "z", "gripper"), ("x", "y", "z", "gripper"))


def labels(config: EnvConfig) -> Labels:
    """Of an environment that has an expert."""
    return LIBERO_LABELS if isinstance(config, LiberoEnvConfig) else METAWORLD_LABELS
