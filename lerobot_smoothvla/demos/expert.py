"""A scripted pick-and-place expert that reads the simulator and moves along minimum-jerk segments.

The reference is a sum of minimum-jerk displacements that may overlap in time, which rounds the via points
(Flash & Henis, J. Cogn. Neurosci. 3(3), 1991). Feedback and feed-forward turn it into actions.
Dims: N segments, B boxes, action (7,) = displacement, rotation vector, gripper. Units: SI, world frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from lerobot_smoothvla.episode import Task

if TYPE_CHECKING:  # it loads MuJoCo
    from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

Array = NDArray[np.float64]

SOLVABLE_TASKS: dict[str, tuple[int, ...]] = {
    "libero_object": tuple(range(10)),
    "libero_spatial": (0, 1, 2, 3, 5, 6, 7, 8, 9),
}
"""Task ids by suite; docs/performance.md has how many of 20 initial states of each it solves."""

OPEN, CLOSED = -1.0, 1.0
"""Gripper actions."""
POINTING_DOWN = Rotation.from_quat([1.0, 0.0, 0.0, 0.0])
"""The hand straight down; its fingers then open along the world's y axis."""
FINGER_SPAN = 0.07
"""Widest object taken between the fingers, m: they open to 0.08 m. A wider one is held by its rim."""
RIM = 0.005
"""How far inside an object's outline its rim is held, m."""
FINGER_DEPTH = 0.03
"""How far the finger pads reach below an object's top, m."""
SHALLOWER = 0.005
"""How much less they may reach below a rim, m."""
PAD_HEIGHT = 0.008
"""Least height of the grasp over what the object stands on, m: half of the finger pads' height."""
GRIPPER = ((np.array([0.04, 0.11]), 0.03), (np.array([0.02, 0.055]), -0.006))
"""Outline of the open gripper around the grasp, hand and fingers: half widths along x and y, underside, m."""
CLEARANCE = 0.02
"""What a carried object passes over its target with, m."""
LEAST_LIFT = 0.1
"""How far an item is lifted at least, m: one held by its rim hangs down on the other side."""
GRIP_TIME = 0.35
"""What the fingers need to close or open, s, whatever the speed of the arm."""
FIRM_GRIP_TIME = 0.7
"""What they need before the arm may start abruptly, s: it would pull itself off a rim."""
MEAN_SPEED = 0.16
"""Of one segment, m/s. A minimum-jerk peak is 1.875 times that, about the 0.31 m/s that action 1.0 drives."""
POSITION_SCALE = 0.05
"""What action 1.0 asks of LIBERO's OSC_POSE controller, m."""
ROTATION_SCALE = 0.5
"""The same for a rotation, rad."""


@dataclass(frozen=True)
class Segment:
    """One displacement, x(t) = d s(τ), τ = (t − start) / duration.

    Of minimum jerk, s(τ) = 10τ³ − 15τ⁴ + 6τ⁵ (Flash & Hogan, J. Neurosci. 5(7), 1985), or at constant
    speed, s(τ) = τ.

    Attributes:
        displacement: (3,) d, m.
        start: s.
        duration: s.
        eased: Whether it is of minimum jerk.
    """

    displacement: Array
    start: float
    duration: float
    eased: bool = True

    @property
    def end(self) -> float:
        """When it has arrived, s."""
        return self.start + self.duration

    def at(self, time: float) -> tuple[Array, Array]:
        """(3,) displacement, m, and (3,) velocity, m/s, at `time` in s; it rests before and after."""
        tau = min(max((time - self.start) / self.duration, 0.0), 1.0)
        if not self.eased:
            return tau * self.displacement, (0.0 < tau < 1.0) / self.duration * self.displacement
        travelled = tau**3 * (10.0 - 15.0 * tau + 6.0 * tau**2)
        rate = 30.0 * (tau * (1.0 - tau)) ** 2 / self.duration
        return travelled * self.displacement, rate * self.displacement

    def strokes(self, number: int) -> "tuple[Segment, ...]":
        """The same displacement in the same time by strokes, each followed by a rest half as long."""
        time = self.duration / number
        return tuple(
            Segment(self.displacement / number, self.start + index * time, time / 1.5, eased=False)
            for index in range(number)
        )


@dataclass(frozen=True)
class Plan:
    """A whole pick and place.

    Attributes:
        origin: (3,) where the gripper is at time 0, m.
        segments: Their displacements add up.
        close_at: When the gripper closes, s.
        open_at: When it opens again, s.
    """

    origin: Array
    segments: tuple[Segment, ...]
    close_at: float
    open_at: float

    def reference(self, time: float) -> tuple[Array, Array]:
        """(3,) position, m, and (3,) velocity, m/s, that the gripper should have at `time` in s."""
        displacements, velocities = zip(*(segment.at(time) for segment in self.segments), strict=True)
        return self.origin + sum(displacements), np.sum(velocities, axis=0)

    def gripper(self, time: float) -> float:
        """The gripper action at `time` in s."""
        return CLOSED if self.close_at <= time < self.open_at else OPEN


@dataclass(frozen=True)
class Extent:
    """Axis-aligned outline of an object.

    Attributes:
        low: (3,) m.
        high: (3,) m.
    """

    low: Array
    high: Array

    def grasps(self) -> list[Array]:
        """(3,) points where the fingers may close, m, the best first.

        Around the middle, or off the middle along the item, which the fingers leave free; around one of two
        rims, deep or, over a low neighbour, shallow, if the item is too wide for them.
        """
        x, y, _ = (self.low + self.high) / 2
        z = max(self.high[2] - FINGER_DEPTH, self.low[2] + PAD_HEIGHT)
        if self.high[1] - self.low[1] > FINGER_SPAN:
            rims = (self.high[1] - RIM, self.low[1] + RIM)
            return [np.array([x, rim, height]) for rim in rims for height in (z, z + SHALLOWER)]
        reach = max((self.high[0] - self.low[0]) / 2 - PAD_HEIGHT, 0.0)
        slides = [slide for slide in (0.0, 0.01, -0.01, 0.02, -0.02, 0.03, -0.03) if abs(slide) <= reach]
        return [np.array([x + slide, y, z]) for slide in slides]

    def blocks(self, grasp: Array) -> bool:
        """Whether the open gripper would touch this object on its way down to a grasp of another one."""
        for half_width, bottom in GRIPPER:
            apart = np.abs(grasp[:2] - (self.low + self.high)[:2] / 2) - (self.high - self.low)[:2] / 2
            if np.all(apart < half_width) and self.high[2] > grasp[2] + bottom:
                return True
        return False


def plan(
    origin: Array,
    item: Extent,
    grasp: Array,
    shift: Array,
    release_height: float,
    rim: float,
    speed: float,
    strokes: int = 0,
) -> Plan:
    """Above the item, down, close, lift, over the target, down, open, up.

    Args:
        origin: (3,) where the gripper is, m.
        item: What is moved.
        grasp: (3,) where the fingers close on it, m.
        shift: (2,) horizontal displacement that brings it to its target, m.
        release_height: Of the item's underside when the gripper opens, m.
        rim: Highest point of the target, m.
        speed: Factor on `MEAN_SPEED`.
        strokes: 0 for minimum-jerk segments that overlap, which rounds the via points. Else each is made of
            so many strokes at constant speed with rests between, in the same time: the submovements of an
            unpractised operator.

    Raises:
        ValueError: If `speed` is not positive.
    """
    if speed <= 0:
        raise ValueError(f"`speed` should be a positive factor, got {speed}.")
    above = np.array([*grasp[:2], max(item.high[2] + 0.06, grasp[2] + 0.08)])
    lift = max(rim + CLEARANCE - item.low[2], LEAST_LIFT)
    lower = release_height - item.low[2] - lift

    def segment(displacement: Sequence[float] | Array, start: float, after: Segment | None = None) -> Segment:
        vector = np.asarray(displacement, dtype=np.float64)
        duration = max(float(np.linalg.norm(vector)) / MEAN_SPEED, 0.4) / speed
        overlap = 0.5 * min(after.duration, duration) if after else 0.0
        return Segment(vector, start - overlap, duration)

    grip_time = FIRM_GRIP_TIME if strokes else GRIP_TIME
    approach = segment(above - origin, 0.0)
    descent = segment(grasp - above, approach.end, after=approach)
    close_at = descent.end + 0.1 / speed
    ascent = segment([0.0, 0.0, lift], close_at + grip_time)
    transfer = segment([*shift, 0.0], ascent.end, after=ascent)
    lowering = segment([0.0, 0.0, lower], transfer.end, after=transfer)
    open_at = lowering.end + 0.1 / speed
    retreat = segment([0.0, 0.0, 0.08], open_at + grip_time)
    segments: tuple[Segment, ...] = (approach, descent, ascent, transfer, lowering, retreat)
    if strokes:
        segments = tuple(stroke for whole in segments for stroke in whole.strokes(strokes))
    return Plan(origin, segments, close_at, open_at)


class PickAndPlace:
    """The expert for one episode; make it after the environment's reset."""

    def __init__(self, env: "ChunkedLiberoEnv", speed: float = 1.0, strokes: int = 0) -> None:
        """Read the scene and plan.

        Args:
            env: Reset, of one of `SOLVABLE_TASKS`.
            speed: Factor on the speed of all motion.
            strokes: As in `plan`.
        """
        self._env = env
        self._simulation = env._env.env
        controller = self._simulation.robots[0].controller
        # A displacement d held as the action makes the critically damped controller drift at d kp / kd.
        self._lag = float(controller.kd[0] / controller.kp[0])
        self._time = 0.0
        self._plan = self._make_plan(speed, strokes)

    @property
    def pace(self) -> float:
        """Speed of the reference, 1 being the fastest that an action can ask for."""
        _, velocity = self._plan.reference(self._time)
        return min(float(np.linalg.norm(velocity)) * self._lag / POSITION_SCALE, 1.0)

    def act(self) -> Array:
        """(7,) the next action in [-1, 1]: feedback on the tracking error, feed-forward on the speed."""
        self._time += self._env.dt
        position, velocity = self._plan.reference(self._time)
        hand = Rotation.from_matrix(self._simulation.sim.data.get_body_xmat("robot0_right_hand"))
        displacement = position - self._env.position + self._lag * velocity
        # Half of the error, as the hand turns in the controller's own time and would overshoot.
        rotation = 0.5 * (POINTING_DOWN * hand.inv()).as_rotvec()
        action = [*displacement / POSITION_SCALE, *rotation / ROTATION_SCALE, self._plan.gripper(self._time)]
        return np.clip(action, -1.0, 1.0)

    def _make_plan(self, speed: float, strokes: int) -> Plan:
        simulation = self._simulation
        ((_, item_name, target_name),) = simulation.parsed_problem["goal_state"]
        item = self._extent(item_name)
        at = self._position(item_name)
        if target_name in simulation.object_sites_dict:  # a region of a container, e.g. of the basket
            container = self._extent(simulation.object_sites_dict[target_name].parent_name)
            target = simulation.sim.data.get_site_xpos(target_name)
            release_height = container.high[2] - 0.03
        else:
            container = self._extent(target_name)
            target = self._position(target_name)
            release_height = container.high[2]
        others = [
            self._extent(name)
            for name in (*simulation.objects_dict, *simulation.fixtures_dict)
            if name != item_name
        ]
        grasp = min(item.grasps(), key=lambda grasp: sum(other.blocks(grasp) for other in others))
        return plan(
            self._env.position,
            item,
            grasp,
            target[:2] - at[:2],
            release_height,
            container.high[2],
            speed,
            strokes,
        )

    def _position(self, name: str) -> Array:
        return np.array(self._simulation.sim.data.body_xpos[self._simulation.obj_body_id[name]])

    def _extent(self, name: str) -> Extent:
        """Outline of an object's collision boxes."""
        model, data = self._simulation.sim.model, self._simulation.sim.data
        root = model.body_rootid[self._simulation.obj_body_id[name]]
        solid = (model.body_rootid[model.geom_bodyid] == root) & (model.geom_contype != 0)
        centres = data.geom_xpos[solid]
        halves = np.einsum(
            "bij,bj->bi", np.abs(data.geom_xmat[solid].reshape(-1, 3, 3)), model.geom_size[solid]
        )
        return Extent((centres - halves).min(axis=0), (centres + halves).max(axis=0))


def require_solvable(tasks: Sequence[Task]) -> None:
    """Reject tasks that the expert cannot do.

    Raises:
        ValueError: If there are any; the message names those that it can.
    """
    if unsolvable := [task for task in tasks if task[1] not in SOLVABLE_TASKS.get(task[0], ())]:
        listed = ", ".join(f"{suite} task {task_id}" for suite, task_id in unsolvable)
        able = "; ".join(f"{suite} {', '.join(map(str, ids))}" for suite, ids in SOLVABLE_TASKS.items())
        raise ValueError(f"The scripted expert cannot do {listed}. It can do: {able} (--env.task_ids).")
