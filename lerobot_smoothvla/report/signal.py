"""Which numbers of a dataset are a position, and in which unit: told by its features' names, or asked for.

Units: `norm` is LeRobot's −100 to 100 over each joint's calibrated range; `unit` is any of `UNITS`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from torch import Tensor

from lerobot_smoothvla.demos.labels import LIBERO_LABELS, METAWORLD_LABELS
from lerobot_smoothvla.smoothness import JOINT_MOVING_SPEED, MOVING_SPEED

_MOVING_SPEED = {"m": MOVING_SPEED, "rad": JOINT_MOVING_SPEED, "norm": 1.0, "px": 10.0}
"""Each unit of measurement, and above which speed a position in it counts as moving, unit/s."""
UNITS = ("m", "rad", "deg", "norm", "px")
"""Of the values in a dataset; what is in degrees is measured in rad."""

_LIBERO_HZ = LiberoEnvConfig.fps
_XYZ = (("x", "y", "z"), ("ee.x", "ee.y", "ee.z"))
_ROBOTS_IN_METRES = (LIBERO_LABELS.robot_type, METAWORLD_LABELS.robot_type)
_ROBOTS_IN_DEGREES = ("openarm_follower", "bi_openarm_follower")
_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
"""Of LeRobot's SO, Koch and LeKiwi arms, also where the names have no `.pos` yet."""


@dataclass
class PositionConfig:
    """Where a dataset has positions; what is None is told by the names of its features.

    Attributes:
        key: Feature, e.g. `observation.state`.
        dims: Its dimensions, without grippers, whose openings are no position of the arm.
        unit: `m`, `rad`, `deg`, `px`, or `norm` for LeRobot's −100 to 100 over each joint's range.
    """

    key: str | None = None
    dims: list[int] | None = None
    unit: str | None = None

    def __post_init__(self) -> None:
        """Reject a unit that is none.

        Raises:
            ValueError: If it is unknown.
        """
        if self.unit is not None and self.unit not in UNITS:
            raise ValueError(f"`position.unit` should be one of {', '.join(UNITS)}, got '{self.unit}'.")


@dataclass(frozen=True)
class Signal:
    """A position in a dataset.

    Attributes:
        key: Feature.
        dims: Its D dimensions.
        names: Theirs.
        unit: That they are measured in: `rad` also where the values are degrees.
        scale: Of the values, to get that unit.
    """

    key: str
    dims: tuple[int, ...]
    names: tuple[str, ...]
    unit: str
    scale: float = 1.0

    @classmethod
    def of(cls, key: str, dims: tuple[int, ...], names: tuple[str, ...], unit: str) -> Self:
        """The signal of values in one of `UNITS`."""
        if unit == "deg":
            return cls(key, dims, names, "rad", math.radians(1))
        return cls(key, dims, names, unit)

    @property
    def moving_speed(self) -> float:
        """Speed above which it counts as moving, unit/s."""
        return _MOVING_SPEED[self.unit]


def flat_names(feature: Mapping[str, Any]) -> list[str]:
    """A feature's names, one a dimension, however it groups them; the index where it has none."""
    names = feature.get("names") or []
    if isinstance(names, Mapping):
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    n_dims = math.prod(feature["shape"])
    names = [str(name) for name in names]
    return names if len(names) == n_dims else [str(index) for index in range(n_dims)]


def find_key(
    features: Mapping[str, Mapping[str, Any]], config: PositionConfig
) -> tuple[str, tuple[int, ...]]:
    """The feature and dimensions that hold a position.

    Raises:
        ValueError: If the names do not tell, or what is asked for is not there; the message lists what is.
    """
    vectors = {
        key: flat_names(feature)
        for key, feature in features.items()
        if len(feature["shape"]) == 1 and feature["dtype"].startswith("float") and key != "timestamp"
    }
    listed = "; ".join(f"{key}: {', '.join(names)}" for key, names in vectors.items())
    if config.key is not None and config.key not in vectors:
        raise ValueError(f"There is no vector '{config.key}' in the dataset, which has {listed}.")
    # What was measured comes before what was commanded.
    keys = [config.key] if config.key else sorted(vectors, key=lambda key: key.startswith("action"))
    if config.dims is not None:
        key, n_dims = keys[0], len(vectors[keys[0]])
        if not config.dims or not all(0 <= dim < n_dims for dim in config.dims):
            raise ValueError(
                f"`position.dims` should be some of 0 to {n_dims - 1} of '{key}', got {config.dims}."
            )
        return key, tuple(config.dims)
    for key in keys:
        if dims := _position_dims(vectors[key]):
            return key, dims
    raise ValueError(
        f"The names of the dataset's features do not tell which are a position: {listed}. Pass "
        "--position.key=..., --position.dims=[...] and --position.unit=m|rad|deg|norm|px."
    )


def find_unit(
    key: str, names: Sequence[str], robot_type: str | None, values: Tensor, config: PositionConfig
) -> str:
    """The unit of a position, as asked for or as its names, robot and values prove it.

    LeRobot's arms record degrees or −100 to 100 (`use_degrees` of the robot; by default degrees for SO arms
    since github.com/huggingface/lerobot/pull/2968), and no dataset says which. The normalised values are
    bounded (`MotorsBus._normalize`), so one beyond ±100 is in degrees.

    Args:
        key: Feature that it is in.
        names: (D,) of the dimensions.
        robot_type: Of the dataset.
        values: (N, D) all positions.
        config: What was asked for.

    Raises:
        ValueError: If nothing proves a unit; the message says what to pass.
    """
    if config.unit is not None:
        return config.unit
    last = {name.rpartition(".")[2] for name in names}
    in_metres = robot_type in _ROBOTS_IN_METRES and not key.startswith("action")  # Those are displacements.
    if last == {"x", "y", "z"} and (names[0].startswith("ee.") or in_metres):
        return "m"
    if all(_is_joint(name) for name in names):
        if robot_type in _ROBOTS_IN_DEGREES or bool((values.abs() > 100.001).any()):
            return "deg"
        raise ValueError(
            f"Joints of '{robot_type}' may be in degrees or in LeRobot's normalised -100 to 100, and no "
            "value beyond 100 tells: pass --position.unit=deg if the robot had `use_degrees` (the default of "
            "SO arms since February 2026), else --position.unit=norm."
        )
    raise ValueError(
        f"The unit of {', '.join(names)} in '{key}' of '{robot_type}' is not known; pass "
        "--position.unit=m|rad|deg|norm|px if they are positions."
    )


def control_rate(
    features: Mapping[str, Mapping[str, Any]], robot_type: str | None, fps: float
) -> tuple[float, str | None]:
    """Frames a second of the robot's time, and why that is not what the dataset says, where it is not.

    Args:
        features: Of the dataset.
        robot_type: Of the dataset.
        fps: That it says.
    """
    state = features.get("observation.state")
    is_libero = state is not None and tuple(flat_names(state)) == LIBERO_LABELS.state
    if is_libero and robot_type == LIBERO_LABELS.robot_type and fps == LIBERO_LABELS.fps:
        return _LIBERO_HZ, (
            f"The dataset says {fps:g} frames a second, as LIBERO's on the Hub do, but its frames are "
            f"control steps at {_LIBERO_HZ} Hz, which is what was reckoned with: --fps={fps:g} makes jerk "
            f"{(_LIBERO_HZ / fps) ** 3:g} times smaller."
        )
    return fps, None


def _position_dims(names: Sequence[str]) -> tuple[int, ...]:
    """x, y and z of an end effector, else the joints of an arm, else nothing."""
    for xyz in _XYZ:
        if set(xyz) <= set(names):
            return tuple(names.index(name) for name in xyz)
    return tuple(index for index, name in enumerate(names) if _is_joint(name))


def _is_joint(name: str) -> bool:
    known = name.endswith(".pos") or any(joint in name for joint in _JOINTS)
    return known and "gripper" not in name and not name.endswith((".vel", ".torque", ".effort"))


def as_positions(column: Any, dims: Sequence[int]) -> Tensor:
    """(N, D) float64 positions of the (N, S) values of a feature."""
    return torch.as_tensor(column, dtype=torch.float64)[:, list(dims)]
