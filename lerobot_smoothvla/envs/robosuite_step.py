"""Robosuite's control step without what it computes more than once; not one bit of the physics changes.

A control step is 25 substeps of the physics, with robosuite's Python before each.
"""

from typing import Any

import mujoco
import numpy as np
from libero.libero.envs import OffScreenRenderEnv
from numpy.typing import NDArray
from robosuite.controllers.base_controller import Controller
from robosuite.robots.single_arm import SingleArm


def quicken(env: OffScreenRenderEnv) -> None:
    """Exchange, of a built environment, what costs time and changes nothing.

    Args:
        env: Whose `step` is exchanged; resets and set states keep what they do.
    """
    _share_forward_pass(env)
    _look_up_once(env.env)


def _share_forward_pass(env: OffScreenRenderEnv) -> None:
    """Let each physics substep compute what depends on positions and velocities once instead of three times.

    Robosuite calls `sim.forward`, its controller calls it again, and `sim.step` begins with a third pass,
    while nothing but `ctrl` changes in between. The stages from actuation on do run three times as before:
    the constraint solver starts from its last solution, so a pass left out would change the last bits.
    """
    sim, step = env.sim, env.step
    model, data = sim.model._model, sim.data._data

    def step_sharing(action: Any) -> Any:
        current = False

        def forward() -> None:
            nonlocal current
            if current:
                mujoco.mj_forwardSkip(model, data, mujoco.mjtStage.mjSTAGE_VEL, 0)
            else:
                mujoco.mj_forward(model, data)
            current = True

        def substep() -> None:
            nonlocal current
            mujoco.mj_step2(model, data)
            current = False

        sim.forward, sim.step = forward, substep
        try:
            return step(action)
        finally:
            del sim.forward, sim.step

    env.step = step_sharing


def _measure_once(controller: Controller) -> None:
    """Let a controller's update compute the hand's Jacobian once instead of twice for each half of it."""
    sim = controller.sim
    model, data = sim.model._model, sim.data._data
    site, joints = sim.model.site_name2id(controller.eef_name), controller.qvel_index
    positions = controller.qpos_index
    mass = np.empty((model.nv, model.nv))

    def update(force: bool = False) -> None:
        if not (controller.new_update or force):
            return
        sim.forward()
        translation, rotation = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        mujoco.mj_jacSite(model, data, translation, rotation, site)
        mujoco.mj_fullM(model, mass, data.qM)
        controller.ee_pos = np.array(data.site_xpos[site])
        controller.ee_ori_mat = np.array(data.site_xmat[site].reshape(3, 3))
        controller.ee_pos_vel = np.dot(translation, data.qvel)
        controller.ee_ori_vel = np.dot(rotation, data.qvel)
        controller.joint_pos = np.array(data.qpos[positions])
        controller.joint_vel = np.array(data.qvel[joints])
        controller.J_pos, controller.J_ori = translation[:, joints], rotation[:, joints]
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        controller.mass_matrix = mass[joints, :][:, joints]
        controller.new_update = False

    controller.update = update


def _look_up_once(simulator: Any) -> None:
    """Let the substeps after an action's first one run the controllers alone.

    Robosuite looks up sizes, limits and names of actuators in each of them, which stay as they are.
    """
    before = simulator._pre_action
    arms = [_Arm(robot) for robot in simulator.robots]

    def pre_action(action: NDArray[np.floating[Any]], policy_step: bool = False) -> None:
        if policy_step:
            for arm in arms:
                arm.begin()
            before(action, policy_step)
            return
        first = 0
        for arm in arms:
            arm.control(action[first : first + arm.n_actions])
            first += arm.n_actions

    simulator._pre_action = pre_action


class _Arm:
    """What `SingleArm.control` does in a substep without a new action."""

    def __init__(self, robot: SingleArm) -> None:
        self._robot = robot
        self._controller: Controller | None = None
        self._data = robot.sim.data._data
        self.n_actions = robot.action_dim
        self._n_arm = robot.controller.control_dim
        self._low, self._high = robot.torque_limits
        model = robot.sim.model
        self._fingers = [model.actuator_name2id(name) for name in robot.gripper.actuators]
        low, high = model.actuator_ctrlrange[self._fingers].T
        self._bias, self._weight = 0.5 * (high + low), 0.5 * (high - low)

    def begin(self) -> None:
        """Take the robot's controller, which is another one after each reset."""
        if self._robot.controller is not self._controller:
            self._controller = self._robot.controller
            _measure_once(self._controller)

    def control(self, action: NDArray[np.floating[Any]]) -> None:
        robot = self._robot
        robot.torques = np.clip(robot.controller.run_controller(), self._low, self._high)
        closing = robot.gripper.format_action(action[self._n_arm :])
        self._data.ctrl[self._fingers] = self._bias + self._weight * closing
        self._data.ctrl[robot._ref_joint_actuator_indexes] = robot.torques
