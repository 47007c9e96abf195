"""A person who sees the cube and leads the arm to it, with an unsteady hand."""

import time
from functools import cached_property
from typing import Any

import numpy as np
from lerobot.teleoperators import Teleoperator

from lerobot_robot_simulated_arm.config_scripted_hand import ScriptedHandConfig
from lerobot_robot_simulated_arm.simulated_arm import SimulatedArm
from lerobot_robot_simulated_arm.table import HOME, JOINTS


class ScriptedHand(Teleoperator):
    """Leads from home to the cube and stays there until the episode is over, then leads home.

    It looks at the clock, not at the number of its actions: a recorder that is late does not change the path.
    """

    config_class = ScriptedHandConfig
    name = "scripted_hand"

    def __init__(self, config: ScriptedHandConfig) -> None:
        super().__init__(config)
        self.config = config
        self._generator = np.random.default_rng(config.seed)
        self._connected = False
        self._began = -np.inf
        self._target = HOME

    @cached_property
    def action_features(self) -> dict[str, type]:
        return {f"{joint}.pos": float for joint in JOINTS}

    @property
    def feedback_features(self) -> dict[str, type]:
        return {}

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass

    def get_action(self) -> dict[str, float]:
        config, now = self.config, time.perf_counter()
        if now - self._began > config.episode_time_s + config.reset_time_s:
            assert SimulatedArm.connected is not None and SimulatedArm.connected.table is not None
            self._began = now
            self._target = SimulatedArm.connected.table.reach()
        elapsed = now - self._began
        there = minimum_jerk(elapsed / config.reach_time_s)
        back = minimum_jerk((elapsed - config.episode_time_s) / config.return_time_s)
        goal = HOME + there * (1 - back) * (self._target - HOME)
        goal[:5] += config.tremor_std * self._generator.standard_normal(5)
        return dict(zip(self.action_features, goal.tolist(), strict=True))

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        pass

    def disconnect(self) -> None:
        self._connected = False


def minimum_jerk(progress: float) -> float:
    """Share of the way (Flash & Hogan, J. Neurosci. 5(7), 1985), by the share of the time."""
    u = min(max(progress, 0.0), 1.0)
    return 10 * u**3 - 15 * u**4 + 6 * u**5
