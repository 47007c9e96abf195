"""A built MuJoCo scene that can be shifted and restored.

Units: m and rad, but that cameras and lights turn by degrees.
"""

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from lerobot_smoothvla.envs.shift import Shift
from lerobot_smoothvla.episode import Start

_DEGREES = 100.0
"""By which cameras and lights turn at magnitude 1."""
_TRIES = 20
_STEP = 0.005
"""m, in which objects slide."""
_DEEPER = 1e-3
"""m; how much deeper than before a shifted object may press into what it stands on."""


class Scene:
    """A built scene, of which something is shifted.

    - camera: Those fixed to the world (not the one on the hand) are displaced by the magnitude in m, and turn
      by 1 degree for each cm, both in a random direction.
    - light: Red, green and blue of all lights are multiplied by 1 ± the magnitude at most, each by a factor
      of its own (so intensity and colour change), and the lights move around the scene by 1 degree for each
      0.01.
    - arm: Its joints are turned, by the magnitude in rad as root mean square over the joints.
    - placement: Every object that can be moved is displaced by the magnitude in m, in a random horizontal
      direction of its own. Objects that touch one another move together. One that finds no way in 20 tries on
      which it stands on what it stood on, balanced, and touches nothing else, stays.

    Camera and light change only what is seen; after the others the scene should settle.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, arm: list[str]) -> None:
        """Remember what it was like.

        Args:
            model: Of MuJoCo; shifts of camera and light change it.
            data: Of MuJoCo; shifts of arm and placement change it.
            arm: Names of its joints.
        """
        self._model, self._data = model, data
        self._arm = [model.joint(name).id for name in arm]
        views = ("cam_pos", "cam_quat", "light_pos", "light_dir")
        self._views = {name: getattr(model, name) for name in views}
        self._colours = [getattr(model, f"light_{kind}") for kind in ("ambient", "diffuse", "specular")]
        self._colours += [getattr(model.vis.headlight, kind) for kind in ("ambient", "diffuse", "specular")]
        self._original = [(array, array.copy()) for array in (*self._views.values(), *self._colours)]

    def restore(self) -> None:
        """Undo shifts of camera and light; those of arm and placement end with the next reset."""
        for array, original in self._original:
            array[:] = original

    def apply(self, shift: Shift, start: Start) -> bool:
        """Shift the scene of a start that was just reset to.

        Returns:
            Whether something was moved, so that the scene should settle.
        """
        change = {
            "camera": self._shift_cameras,
            "light": self._shift_lights,
            "arm": self._shift_arm,
            "placement": self._shift_objects,
        }[shift.kind]
        change(shift.generator(start), shift.magnitude)
        mujoco.mj_forward(self._model, self._data)
        return shift.kind in ("arm", "placement")

    def _shift_cameras(self, rng: np.random.Generator, magnitude: float) -> None:
        fixed = self._model.cam_bodyid == 0
        self._views["cam_pos"][fixed] += magnitude * _direction(rng, 3)
        turn = _rotation(_direction(rng, 3), magnitude * _DEGREES)
        for index in fixed.nonzero()[0]:
            turned = np.empty(4)
            mujoco.mju_mulQuat(turned, turn, self._views["cam_quat"][index])
            self._views["cam_quat"][index] = turned

    def _shift_lights(self, rng: np.random.Generator, magnitude: float) -> None:
        factors = 1 + magnitude * rng.uniform(-1, 1, 3)
        for colour in self._colours:
            colour *= factors.astype(colour.dtype)
        axis = np.append(_direction(rng, 2), 0.0)
        turn = _rotation(axis, magnitude * _DEGREES)
        for vectors in (self._views["light_pos"], self._views["light_dir"]):
            for vector in vectors:
                turned = np.empty(3)
                mujoco.mju_rotVecQuat(turned, vector, turn)
                vector[:] = turned

    def _shift_arm(self, rng: np.random.Generator, magnitude: float) -> None:
        offsets = magnitude * np.sqrt(len(self._arm)) * _direction(rng, len(self._arm))
        address = self._model.jnt_qposadr[self._arm]
        low, high = np.where(
            self._model.jnt_limited[self._arm], self._model.jnt_range[self._arm].T, [[-np.inf], [np.inf]]
        )
        self._data.qpos[address] = np.clip(self._data.qpos[address] + offsets, low, high)

    def _shift_objects(self, rng: np.random.Generator, magnitude: float) -> None:
        for group in self._groups():
            for _ in range(_TRIES):
                if self._slid(group, magnitude * _direction(rng, 2)):
                    break

    def _slid(self, joints: list[int], displacement: NDArray[np.float64]) -> bool:
        """Whether objects can slide along (x, y), m, on what they stand on; if so, they have.

        In small steps: MuJoCo finds no contact with a thin wall in the middle of an object.
        """
        address = self._model.jnt_qposadr[joints]
        bodies = {int(body) for body in self._model.jnt_bodyid[joints]}
        before, support = self._data.qpos.copy(), self._support(bodies)
        n_steps = int(np.ceil(np.linalg.norm(displacement) / _STEP))
        for share in np.arange(1, n_steps + 1) / n_steps:
            moved = before.copy()
            for axis in range(2):
                moved[address + axis] += share * displacement[axis]
            self._place(moved)
            if not self._support(bodies).is_like(support):
                self._place(before)
                return False
        return True

    def _place(self, positions: NDArray[np.float64]) -> None:
        self._data.qpos[:] = positions
        mujoco.mj_fwdPosition(self._model, self._data)

    def _groups(self) -> list[list[int]]:
        """Free joints of objects, those of objects that touch one another together."""
        joints = (self._model.jnt_type == mujoco.mjtJoint.mjJNT_FREE).nonzero()[0].tolist()
        of_body = {int(self._model.jnt_bodyid[joint]): joint for joint in joints}
        groups = {joint: [joint] for joint in joints}
        for _, first, second in self._contacts():
            if first in of_body and second in of_body:
                one, other = groups[of_body[first]], groups[of_body[second]]
                if one is not other:
                    one += other
                    groups.update(dict.fromkeys(other, one))
        return [group for joint, group in groups.items() if joint == min(group)]

    def _support(self, bodies: set[int]) -> "_Support":
        """How the outside bears objects."""
        contacts = [
            (contact, second if first in bodies else first)
            for contact, first, second in self._contacts()
            if (first in bodies) != (second in bodies)
        ]
        touched = frozenset(body for _, body in contacts)
        depth = max((-float(contact.dist) for contact, _ in contacts), default=0.0)
        points = np.array([contact.pos[:2] for contact, _ in contacts]).reshape(-1, 2)
        weights = self._model.body_subtreemass[list(bodies)]
        centre = weights @ self._data.subtree_com[list(bodies), :2] / weights.sum()
        balanced = all(side.any(axis=0).all() for side in (points < centre, points > centre))
        return _Support(touched, depth, balanced)

    def _contacts(self) -> list[tuple[Any, int, int]]:
        """Each contact with the two whole bodies (an object, the arm, a cupboard) that touch in it."""
        root, body = self._model.body_rootid, self._model.geom_bodyid
        return [(c, int(root[body[c.geom1]]), int(root[body[c.geom2]])) for c in self._data.contact]


@dataclass(frozen=True)
class _Support:
    """What objects touch, how deep they press into it (m), and whether it is on all sides of their centre."""

    touched: frozenset[int]
    depth: float
    balanced: bool

    def is_like(self, before: "_Support") -> bool:
        """Whether they stand as they did."""
        same = self.touched == before.touched and self.balanced >= before.balanced
        return same and self.depth <= before.depth + _DEEPER


def _direction(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """A random unit vector of n dimensions."""
    vector = rng.standard_normal(n)
    return vector / np.linalg.norm(vector)


def _rotation(axis: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """The unit quaternion (w, x, y, z) of a turn."""
    quaternion = np.empty(4)
    mujoco.mju_axisAngle2Quat(quaternion, axis, np.deg2rad(degrees))
    return quaternion
