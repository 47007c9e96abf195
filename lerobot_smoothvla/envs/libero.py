"""LIBERO that renders only when the policy looks.

`ChunkedLiberoEnv` is LeRobot's own `LiberoEnv` with three additions: an explicit start, stepping by whole
action chunks, and cameras that rest in between.

Dims: H steps a chunk, n ≤ H of them executed, A = 7 action dimensions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.envs.libero import LiberoEnv, _get_suite, get_libero_dummy_action
from lerobot.envs.utils import parse_camera_names
from lerobot.processor.env_processor import LiberoProcessorStep
from libero.libero.envs import OffScreenRenderEnv
from numpy.typing import NDArray
from robosuite.utils.observables import sensor

from lerobot_smoothvla.envs.chunked import ChunkedEnv, Observation, Picture, to_lerobot
from lerobot_smoothvla.envs.init_states import arrays_only
from lerobot_smoothvla.envs.robosuite_render import render_what_shows
from lerobot_smoothvla.envs.robosuite_step import quicken
from lerobot_smoothvla.envs.scene import Scene
from lerobot_smoothvla.envs.shift import Shift
from lerobot_smoothvla.episode import Embodiment, Start

_STATE_OBSERVABLES = tuple(
    f"robot0_{name}"
    for name in ("eef_pos", "eef_quat", "gripper_qpos", "gripper_qvel", "joint_pos", "joint_vel")
)
"""What LeRobot reads of the simulator beside the cameras."""

_DIVERGED = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


class ChunkedLiberoEnv(LiberoEnv, ChunkedEnv):
    """LeRobot's LIBERO environment, reset to an explicit `Start` and stepped one chunk at a time.

    Rendering is skipped by exchanging the camera sensors, not by disabling their observables: an observable
    keeps its own sampling clock, and a paused clock would sample at another physics substep afterwards. So
    the frames that the policy sees are bit-identical to those of an environment that renders every step.
    """

    num_steps_wait: int

    def __init__(self, config: LiberoEnvConfig, suite: str, task_id: int) -> None:
        """Prepare task `task_id` of `suite`; the simulator itself is built on the first reset.

        Raises:
            ValueError: If the suite or the task does not exist, its initial states are not LIBERO's, or the
                horizon is not positive.
        """
        task_suite = _get_suite(suite)
        if not 0 <= task_id < len(task_suite.tasks):
            raise ValueError(
                f"Task id should be in [0, {len(task_suite.tasks) - 1}] for suite '{suite}', got {task_id}."
            )
        if config.episode_length is not None and config.episode_length < 1:
            raise ValueError(
                f"`episode_length` should be at least 1 control step, got {config.episode_length}."
            )
        options = {k: v for k, v in config.gym_kwargs.items() if k not in ("task_ids", "hard_reset")}
        with arrays_only(f"{suite} task {task_id}"):
            super().__init__(
                task_suite=task_suite,
                task_id=task_id,
                task_suite_name=suite,
                episode_length=config.episode_length,
                camera_name=parse_camera_names(config.camera_name),
                camera_name_mapping=config.camera_name_mapping,
                control_mode=config.control_mode,
                is_libero_plus=config.is_libero_plus,
                hard_reset=False,
                **options,
            )
        self.suite = suite
        self.dt = 1.0 / self.control_freq
        self.embodiment = Embodiment()
        self._camera_sensors: dict[str, Callable[..., Any]] = {}
        self._rendering = True
        self._to_lerobot = LiberoProcessorStep()
        blank = np.zeros((self.observation_height, self.observation_width, 3), np.uint8)
        self._closed_eye = sensor(modality="image")(lambda obs_cache: blank)

    @property
    def n_init_states(self) -> int:
        """Fixed initial states that LIBERO ships for this task."""
        return len(self._init_states)

    @property
    def max_steps(self) -> int:
        """The horizon in control steps: the config's `episode_length`, else the suite's own."""
        return self._max_episode_steps

    @property
    def position(self) -> NDArray[np.float64]:
        """(3,) end-effector position, m, read from the simulator at the end of the last control step."""
        robot = self._env.robots[0]
        return np.array(self._env.sim.data.site_xpos[robot.eef_site_id])

    @property
    def joints(self) -> NDArray[np.float64]:
        """(7,) positions of the arm's joints then, rad."""
        return np.array(self._env.robots[0]._joint_positions)

    @property
    def rendering(self) -> bool:
        """Whether the cameras are rendered in the coming control steps."""
        return self._rendering

    @rendering.setter
    def rendering(self, on: bool) -> None:
        self._ensure_env()
        observables = self._env.env._observables
        for name in self.camera_name:
            # Not `set_sensor`: that takes a trial reading, which would render.
            observables[name]._sensor = self._camera_sensors[name] if on else self._closed_eye
        if on:
            self._enter_gl_context()
        self._rendering = on

    def _ensure_env(self) -> None:
        """Build the simulator on first use, without what costs time and changes nothing."""
        if self._env is not None:
            return
        super()._ensure_env()
        simulator: OffScreenRenderEnv = self._env
        observables = simulator.env._observables
        for name in observables.keys() - {*_STATE_OBSERVABLES, *self.camera_name}:
            del observables[name]
        self._camera_sensors = {name: observables[name]._sensor for name in self.camera_name}
        quicken(simulator)
        render_what_shows(simulator)
        arm = [joint for robot in simulator.robots for joint in robot.robot_joints]
        self._scene = Scene(simulator.sim.model._model, simulator.sim.data._data, arm)

    def close(self) -> None:
        """Free the simulator, and its OpenGL objects in their own context, not another simulator's."""
        if self._env is not None:
            self._enter_gl_context()
        LiberoEnv.close(self)

    def _enter_gl_context(self) -> None:
        """Robosuite renders and frees in whichever context is current: that of the simulator built last."""
        self._env.sim._render_context_offscreen.gl_ctx.make_current()

    @contextmanager
    def _delta_control(self) -> Iterator[None]:
        """The settle action is a zero *displacement*; in absolute mode it would be a target."""
        controllers = [robot.controller for robot in self._env.robots]
        modes = [controller.use_delta for controller in controllers]
        for controller in controllers:
            controller.use_delta = True
        try:
            yield
        finally:
            for controller, mode in zip(controllers, modes, strict=True):
                controller.use_delta = mode

    def reset_to(self, start: Start, shift: Shift | None = None) -> Observation:
        """Soft reset to a start, rendering nothing but the last settle step; with a shift see `Scene`.

        Returns:
            The first observation that the policy sees.

        Raises:
            ValueError: If the start belongs to another task, or its initial state does not exist.
        """
        self._require_own(start)
        if not 0 <= start.init_state < self.n_init_states:
            raise ValueError(
                f"Initial state should be in [0, {self.n_init_states - 1}] for {self.suite} task "
                f"{self.task_id}, got {start.init_state}."
            )
        self.rendering = False
        self._scene.restore()
        for robot in self._env.robots:
            # A soft reset keeps the gripper's smoothed command: the start would depend on the last episode.
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        self.init_state_id = start.init_state
        settle, self.num_steps_wait = self.num_steps_wait, self.num_steps_wait - 1
        try:
            self.reset(seed=start.seed)
        finally:
            self.num_steps_wait = settle
        with self._delta_control():
            if shift is not None and self._scene.apply(shift, start):
                self._settle(shift, settle)
            self.rendering = True
            raw_obs, _, _, _ = self._env.step(get_libero_dummy_action())
        self.rendering = False
        self._steps, self._done = 0, False
        return self.to_lerobot(self._format_raw_obs(raw_obs))

    def _settle(self, shift: Shift, n_steps: int) -> None:
        """Let a scene come to rest that was moved."""
        if shift.kind == "arm":
            for robot in self._env.robots:
                # The posture that the controller keeps while it holds the hand.
                robot.controller.update_initial_joints(robot._joint_positions)
        for _ in range(n_steps):
            self._env.step(get_libero_dummy_action())

    def _advance(self, action: NDArray[np.floating[Any]], render: bool) -> tuple[dict[str, Any], bool, bool]:
        self.rendering = render
        observation, _, success, _, _ = self.step(action)
        return observation, success, False

    def _diverged(self) -> bool:
        """MuJoCo counts it, and goes on from its initial state; a reset sets the counts to 0."""
        warnings = self._env.sim.data._data.warning
        return any(warnings[kind].number > 0 for kind in _DIVERGED)

    def _picture(self, observation: dict[str, Any]) -> Picture:
        """LIBERO's images are upside down."""
        return observation["pixels"][next(iter(self.camera_name_mapping.values()))][::-1, ::-1]

    def to_lerobot(self, observation: dict[str, Any]) -> Observation:
        """LeRobot's keys and conventions, unbatched: images (3, h, w) uint8, state (8,) float32."""
        return to_lerobot(observation, self._to_lerobot.observation)
