"""The arm: physics goes on in real time, whatever the control loop does meanwhile."""

import math
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from lerobot.robots import Robot
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected

from lerobot_robot_simulated_arm.config_simulated_arm import SimulatedArmConfig

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CAMERAS = ("front", "wrist")
HOME = (0.0, -45.0, 60.0, 30.0, 0.0, 20.0)
"""Where it stands when it is connected: degrees; the gripper in percent of its range, as LeRobot's arms."""


class SimulatedArm(Robot):
    """Six position servos and two cameras.

    On disconnection it goes on for a second, then writes `goals` (T, 6) with their `goal_times`, and what
    the joints did, `positions` (N, 6) at the `period` of the physics.
    """

    config_class = SimulatedArmConfig
    name = "simulated_arm"

    def __init__(self, config: SimulatedArmConfig) -> None:
        super().__init__(config)
        self.config = config
        self._model = mujoco.MjModel.from_xml_path(str(Path(__file__).parent / "arm.xml"))
        self._data = mujoco.MjData(self._model)
        low, high = self._model.jnt_range[-1]
        self._scale = np.array([math.radians(1)] * 5 + [(high - low) / 100])
        self._zero = np.array([0.0] * 5 + [low])
        self._renderer: mujoco.Renderer | None = None
        self._images: dict[str, np.ndarray] = {}
        self._goals: list[np.ndarray] = []
        self._goal_times: list[float] = []
        self._positions: list[np.ndarray] = []
        self._n_observations = 0
        self._lost = False

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        size = self.config.image_size
        return {**self.action_features, **dict.fromkeys(CAMERAS, (size, size, 3))}

    @cached_property
    def action_features(self) -> dict[str, type]:
        return {f"{joint}.pos": float for joint in JOINTS}

    @property
    def is_connected(self) -> bool:
        return self._renderer is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        self._data.qpos[:] = self._zero + np.array(HOME) * self._scale
        self._data.ctrl[:] = self._data.qpos
        mujoco.mj_step(self._model, self._data, nstep=200)  # It settles under its weight.
        self._data.time = 0.0
        self._renderer = mujoco.Renderer(self._model, self.config.image_size, self.config.image_size)
        self._start = time.perf_counter()

    def _advance(self) -> float:
        """Physics up to now; the time on its clock, s."""
        now = time.perf_counter() - self._start
        while self._data.time + self._model.opt.timestep <= now:
            self._step()
        return now

    def _step(self) -> None:
        mujoco.mj_step(self._model, self._data)
        self._positions.append(self._measured())

    def _measured(self) -> np.ndarray:
        return (self._data.qpos - self._zero) / self._scale

    @check_if_not_connected
    def get_observation(self) -> dict[str, Any]:
        self._n_observations += 1
        if self._n_observations == self.config.n_observations:
            raise KeyboardInterrupt
        n_late = self._n_observations - self.config.fault_after
        fault = self.config.fault if n_late > 0 else ""
        self._lost = self._lost or fault == "lost"
        if self._lost:
            raise ConnectionError("Failed to sync read 'Present_Position': There is no status packet!")
        if fault == "stale":
            raise TimeoutError("front latest frame is too old: 501.2 ms (max allowed: 500 ms).")
        self._advance()
        measured = self._measured()
        if fault == "no_position" and n_late <= 30:
            measured = np.full_like(measured, np.nan)
        if fault != "frozen":
            assert self._renderer is not None
            for camera in CAMERAS:
                self._renderer.update_scene(self._data, camera=camera)
                self._images[camera] = self._renderer.render()
        return {**dict(zip(self.action_features, measured.tolist(), strict=True)), **self._images}

    @check_if_not_connected
    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        if self._lost:
            raise ConnectionError("Failed to sync write 'Goal_Position': There is no status packet!")
        self._goal_times.append(self._advance())
        goal = np.array([action[name] for name in self.action_features])
        self._goals.append(goal)
        if np.isfinite(goal).all():  # A motor's register holds no NaN.
            self._data.ctrl[:] = self._zero + goal * self._scale
        return action

    @check_if_not_connected
    def disconnect(self) -> None:
        for _ in range(round(1 / self._model.opt.timestep)):
            self._step()
        self._renderer.close()
        self._renderer = None
        np.savez(
            self.config.log,
            goals=np.array(self._goals).reshape(-1, len(JOINTS)),
            goal_times=self._goal_times,
            positions=self._positions,
            period=self._model.opt.timestep,
        )
