"""A built MuJoCo scene that can be shifted and restored.

Units: m and rad, but that cameras and lights turn by degrees.
"""

import mujoco
import numpy as np
from numpy.typing import NDArray

from lerobot_smoothvla.envs.shift import Shift
from lerobot_smoothvla.episode import Start

DEGREES_PER_METRE = 100.0
"""A displaced camera turns by a degree for each centimetre."""
LIGHT_DEGREES = 60.0
"""By which a light moves around the scene at magnitude 1."""
_TRIES = 20
_DEEPER = 1e-3
"""m; how much deeper than before a shifted object may press into what it stands on."""


class Scene:
    """A built scene, of which something is shifted.

    - camera: Those fixed to the world (not the one on the hand) are displaced by the magnitude in m, and turn
      by 1 degree for each cm, both in a random direction.
    - light: Red, green and blue of all lights are multiplied by 1 ± the magnitude at most, each by a factor
      of its own (so intensity and colour change), and the lights move around the scene by 60 degrees times
      it.
    - arm: Its joints are turned, by the magnitude in rad as root mean square over the joints.
    - placement: Every object that can be moved is displaced by the magnitude in m, in a random horizontal
      direction of its own. Objects that touch one another move together. One that finds no place in 20 tries
      where it stands on what it stood on, and touches nothing else, stays.

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
        turn = _rotation(_direction(rng, 3), magnitude * DEGREES_PER_METRE)
        for index in fixed.nonzero()[0]:
            turned = np.empty(4)
            mujoco.mju_mulQuat(turned, turn, self._views["cam_quat"][index])
            self._views["cam_quat"][index] = turned

    def _shift_lights(self, rng: np.random.Generator, magnitude: float) -> None:
        factors = 1 + magnitude * rng.uniform(-1, 1, 3)
        for colour in self._colours:
            colour *= factors.astype(colour.dtype)
        axis = np.append(_direction(rng, 2), 0.0)
        turn = _rotation(axis, magnitude * LIGHT_DEGREES)
        for vectors in (self._views["light_pos"], self._views["light_dir"]):
            for vector in vectors:
                turned = np.empty(3)
                mujoco.mju_rotVecQuat(turned, vector, turn)
                vector[:] = turned

    def _shift_arm(self, rng: np.random.Generator, magnitude: float) -> None:
        offsets = magnitude * np.sqrt(len(self._arm)) * _direction(rng, len(self._arm))
        address = self._model.jnt_qposadr[self._arm]
        low, high = self._model.jnt_range[self._arm].T
        self._data.qpos[address] = np.clip(self._data.qpos[address] + offsets, low, high)

    def _shift_objects(self, rng: np.random.Generator, magnitude: float) -> None:
        for group in self._groups():
            address = np.array([self._model.jnt_qposadr[joint] for joint in group])
            bodies = {int(self._model.jnt_bodyid[joint]) for joint in group}
            before, support = self._data.qpos.copy(), self._support(bodies)
            for _ in range(_TRIES):
                x, y = magnitude * _direction(rng, 2)
                self._data.qpos[address] += x
                self._data.qpos[address + 1] += y
                mujoco.mj_fwdPosition(self._model, self._data)
                now = self._support(bodies)
                if now[0] == support[0] and now[1] < support[1] + _DEEPER:
                    break
                self._data.qpos[:] = before
                mujoco.mj_fwdPosition(self._model, self._data)

    def _groups(self) -> list[list[int]]:
        """Free joints of objects, those of objects that touch one another together."""
        joints = (self._model.jnt_type == mujoco.mjtJoint.mjJNT_FREE).nonzero()[0].tolist()
        of_body = {int(self._model.jnt_bodyid[joint]): joint for joint in joints}
        groups = {joint: [joint] for joint in joints}
        for first, second, _ in self._contacts():
            if first in of_body and second in of_body:
                one, other = groups[of_body[first]], groups[of_body[second]]
                if one is not other:
                    one += other
                    groups.update(dict.fromkeys(other, one))
        return [group for joint, group in groups.items() if joint == min(group)]

    def _support(self, bodies: set[int]) -> tuple[set[int], float]:
        """What bodies touch beside one another, and how deep they press into it, m."""
        outside = [
            (second if first in bodies else first, depth)
            for first, second, depth in self._contacts()
            if (first in bodies) != (second in bodies)
        ]
        return {body for body, _ in outside}, max((depth for _, depth in outside), default=0.0)

    def _contacts(self) -> list[tuple[int, int, float]]:
        """The two whole bodies (an object, the arm, a cupboard) of each contact, and how deep it is, m."""
        root, body = self._model.body_rootid, self._model.geom_bodyid
        return [
            (int(root[body[contact.geom1]]), int(root[body[contact.geom2]]), -float(contact.dist))
            for contact in self._data.contact
        ]


def _direction(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """A random unit vector of n dimensions."""
    vector = rng.standard_normal(n)
    return vector / np.linalg.norm(vector)


def _rotation(axis: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """The unit quaternion (w, x, y, z) of a turn."""
    quaternion = np.empty(4)
    mujoco.mju_axisAngle2Quat(quaternion, axis, np.deg2rad(degrees))
    return quaternion
