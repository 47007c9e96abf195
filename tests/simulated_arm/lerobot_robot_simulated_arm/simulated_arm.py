"""The arm: physics goes on in real time, whatever the control loop does meanwhile."""

import time
from functools import cached_property
from typing import Any, ClassVar, Optional

import numpy as np
from lerobot.robots import Robot
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected

from lerobot_robot_simulated_arm.config_simulated_arm import SimulatedArmConfig
from lerobot_robot_simulated_arm.table import CAMERAS, HOME, JOINTS, Table

AT_HOME, AWAY = 6.0, 20.0
"""How far from home, in degrees, it is home, and has left."""
REST_S = 0.5
"""How long it is at home before the cube is put elsewhere: not where it only comes past."""


class SimulatedArm(Robot):
    """Six position servos and two cameras, at a table with a cube.

    Whenever the arm rests at home again, as between a recorder's episodes, somebody puts the cube elsewhere.

    On disconnection it goes on for a second, then writes `goals` (T, 6) with their `goal_times`, what the
    joints did, `positions` (N, 6) at the `period` of the physics, and where the `cubes` (K, 3) were, m, with
    whether each was `touched` (K,).

    Attributes:
        connected: The one in this process.
    """

    config_class = SimulatedArmConfig
    name = "simulated_arm"
    connected: ClassVar[Optional["SimulatedArm"]] = None

    def __init__(self, config: SimulatedArmConfig) -> None:
        super().__init__(config)
        self.config = config
        self.cameras = dict.fromkeys(CAMERAS)  # The recorder counts them.
        self.table: Table | None = None
        self._generator = np.random.default_rng(config.seed)
        self._noise = np.random.default_rng(config.seed).spawn(1)[0]
        self._images: dict[str, np.ndarray] = {}
        self._goals: list[np.ndarray] = []
        self._goal_times: list[float] = []
        self._positions: list[np.ndarray] = []
        self._cubes: list[tuple[np.ndarray, bool]] = []
        self._away = False
        self._rested = 0.0
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
        return self.table is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        self.table = Table(self.config.image_size)
        self.table.reset(self._generator)
        SimulatedArm.connected = self
        self._start = time.perf_counter()

    def _advance(self) -> float:
        """Physics up to now; the time on its clock, s."""
        now = time.perf_counter() - self._start
        while self.table.time + self.table.period <= now:
            self._step()
        return now

    def _step(self) -> None:
        self.table.step()
        measured = self.table.joints
        self._positions.append(measured)
        distance = np.abs(measured - HOME)[:5].max()
        self._away = self._away or distance > AWAY
        self._rested = self._rested + self.table.period if distance < AT_HOME else 0.0
        if self._away and self._rested > REST_S:
            self._cubes.append((self.table.cube, self.table.touched))
            self.table.place_cube(self._generator)
            self._away = False

    @check_if_not_connected
    def get_observation(self) -> dict[str, Any]:
        self._n_observations += 1
        if self._n_observations == self.config.n_observations:
            raise KeyboardInterrupt
        n_late = self._n_observations - self.config.fault_after
        lasts = 0 < n_late <= (self.config.fault_for or n_late)
        fault = self.config.fault if lasts else ""
        self._lost = self._lost or fault == "lost"
        if self._lost:
            raise ConnectionError("Failed to sync read 'Present_Position': There is no status packet!")
        if fault == "stale":
            raise TimeoutError("front latest frame is too old: 501.2 ms (max allowed: 500 ms).")
        self._advance()
        measured = self.table.joints
        if fault == "no_position":
            measured = np.full_like(measured, np.nan)
        if fault != "frozen":
            self._images = {camera: self._noisy(image) for camera, image in self.table.images().items()}
        return {**dict(zip(self.action_features, measured.tolist(), strict=True)), **self._images}

    def _noisy(self, image: np.ndarray) -> np.ndarray:
        noise = self._noise.normal(0, self.config.noise_std, image.shape)
        return (image + noise).round().clip(0, 255).astype(np.uint8)

    @check_if_not_connected
    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        if self._lost:
            raise ConnectionError("Failed to sync write 'Goal_Position': There is no status packet!")
        self._goal_times.append(self._advance())
        goal = np.array([action[name] for name in self.action_features])
        self._goals.append(goal)
        if np.isfinite(goal).all():  # A motor's register holds no NaN.
            self.table.command(goal)
        return action

    @check_if_not_connected
    def disconnect(self) -> None:
        for _ in range(round(1 / self.table.period)):
            self._step()
        cubes, touched = zip(*self._cubes, (self.table.cube, self.table.touched), strict=True)
        np.savez(
            self.config.log,
            goals=np.array(self._goals).reshape(-1, len(JOINTS)),
            goal_times=self._goal_times,
            positions=self._positions,
            period=self.table.period,
            cubes=cubes,
            touched=touched,
        )
        self.table.close()
        self.table = SimulatedArm.connected = None
