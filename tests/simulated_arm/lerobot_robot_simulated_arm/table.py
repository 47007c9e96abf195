"""The table that robot and environment share: the arm, the cube that it is to touch, and their physics.

Units: joints in degrees and the gripper in percent of its range, as LeRobot's arms have them; lengths in m.
"""

import math
from pathlib import Path

import mujoco
import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CAMERAS = ("front", "wrist")
HOME = np.array([0.0, -45.0, 60.0, 30.0, 0.0, 20.0])
"""Where the arm stands before it is moved."""
TASK = "touch the red cube"
TOUCH = 0.03
"""So near the top of the cube the finger's tip touches it, m."""
_DISTANCE, _BEARING = (0.27, 0.35), math.radians(35)
"""Of the cube, from the arm's foot, m, and to either side."""


class Table:
    """The arm at home and the cube.

    Attributes:
        cube: (3,) the centre of its top, m.
        touched: Whether the arm has touched the cube where it is.
    """

    def __init__(self, image_size: int) -> None:
        self._model = mujoco.MjModel.from_xml_path(str(Path(__file__).parent / "arm.xml"))
        self._data = mujoco.MjData(self._model)
        self._renderer = mujoco.Renderer(self._model, image_size, image_size)
        low, high = self._model.jnt_range[-1]
        self._scale = np.array([math.radians(1)] * 5 + [(high - low) / 100])
        self._zero = np.array([0.0] * 5 + [low])
        self.cube = np.zeros(3)
        self.touched = False

    @property
    def period(self) -> float:
        """Of the physics, s."""
        return self._model.opt.timestep

    @property
    def time(self) -> float:
        """Since the last reset, s."""
        return self._data.time

    @property
    def joints(self) -> np.ndarray:
        """(6,) where they are."""
        return (self._data.qpos - self._zero) / self._scale

    @property
    def tip(self) -> np.ndarray:
        """(3,) of the finger, m."""
        return self._data.site("tip").xpos.copy()

    def reset(self, generator: np.random.Generator) -> None:
        """The arm at home, where it settles under its weight, and the cube anywhere in its reach."""
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = self._zero + HOME * self._scale
        self._data.ctrl[:] = self._data.qpos
        mujoco.mj_step(self._model, self._data, nstep=240)
        self._data.time = 0.0
        self.place_cube(generator)

    def place_cube(self, generator: np.random.Generator) -> None:
        """Put the cube anywhere in reach."""
        distance, bearing = generator.uniform(*_DISTANCE), generator.uniform(-_BEARING, _BEARING)
        foot, half = self._model.body("arm").pos, self._model.geom("cube").size[2]
        cube = [foot[0] + distance * math.cos(bearing), foot[1] + distance * math.sin(bearing), half]
        self._data.mocap_pos[0] = cube
        mujoco.mj_forward(self._model, self._data)
        self.cube = np.add(cube, [0, 0, half])
        self.touched = False

    def command(self, goals: np.ndarray) -> None:
        """Give the (6,) servos their goals."""
        self._data.ctrl[:] = self._zero + goals * self._scale

    def step(self) -> None:
        """One period of the physics."""
        mujoco.mj_step(self._model, self._data)
        self.touched = self.touched or bool(np.linalg.norm(self.tip - self.cube) < TOUCH)

    def images(self) -> dict[str, np.ndarray]:
        """(size, size, 3) uint8 of each camera."""
        images = {}
        for camera in CAMERAS:
            self._renderer.update_scene(self._data, camera=camera)
            images[camera] = self._renderer.render()
        return images

    def reach(self) -> np.ndarray:
        """(6,) joints with which the tip is at the cube: damped least squares, from home."""
        data, jacobian = mujoco.MjData(self._model), np.zeros((3, self._model.nv))
        data.qpos[:] = self._zero + HOME * self._scale
        for _ in range(100):
            mujoco.mj_kinematics(self._model, data)
            mujoco.mj_comPos(self._model, data)
            mujoco.mj_jacSite(self._model, data, jacobian, None, self._model.site("tip").id)
            moving = jacobian[:, :5]
            error = self.cube - data.site("tip").xpos
            data.qpos[:5] += moving.T @ np.linalg.solve(moving @ moving.T + 1e-4 * np.eye(3), 0.5 * error)
            data.qpos[:] = np.clip(data.qpos, *self._model.jnt_range.T)
        return (data.qpos - self._zero) / self._scale

    def close(self) -> None:
        """Free what draws the images."""
        self._renderer.close()
