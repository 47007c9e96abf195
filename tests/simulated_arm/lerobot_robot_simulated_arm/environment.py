"""The same table as a Gymnasium environment: time goes on by control steps, not by the clock."""

from typing import Any

import gymnasium
import numpy as np

from lerobot_robot_simulated_arm.table import CAMERAS, TASK, Table

FPS = 30


class SimulatedArmEnv(gymnasium.Env):
    """Solved as soon as the cube is touched.

    Observations: `agent_pos` (6,) as the robot's, `tip_pos` (3,) m, `pixels` of both cameras. Actions: (6,)
    as the robot's.
    """

    task_description = TASK

    def __init__(self, image_size: int, episode_length: int) -> None:
        self._table = Table(image_size)
        self._n_substeps = round(1 / FPS / self._table.period)
        self._max_episode_steps = episode_length
        self._n_steps = 0
        self._blank = {camera: np.zeros((image_size, image_size, 3), np.uint8) for camera in CAMERAS}
        self._looks = True
        image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "agent_pos": gymnasium.spaces.Box(-np.inf, np.inf, (6,)),
                "tip_pos": gymnasium.spaces.Box(-np.inf, np.inf, (3,)),
                "pixels": gymnasium.spaces.Dict(dict.fromkeys(CAMERAS, image)),
            }
        )
        self.action_space = gymnasium.spaces.Box(-100, 100, (6,), np.float32)

    def look(self, on: bool) -> None:
        """Whether images are rendered, or are blank."""
        self._looks = on

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._table.reset(self.np_random)
        self._n_steps = 0
        return self._observation(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self._table.command(np.asarray(action, np.float64))
        for _ in range(self._n_substeps):
            self._table.step()
        self._n_steps += 1
        solved = self._table.touched
        over = self._n_steps >= self._max_episode_steps
        return self._observation(), float(solved), solved, over, {"is_success": solved}

    def render(self) -> np.ndarray:
        return self._table.images()[CAMERAS[0]]

    def close(self) -> None:
        self._table.close()

    def _observation(self) -> dict[str, Any]:
        pixels = self._table.images() if self._looks else self._blank
        return {"agent_pos": self._table.joints, "tip_pos": self._table.tip, "pixels": pixels}
