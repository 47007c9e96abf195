"""Robosuite's rendering without what no pixel shows; not one bit of the images changes.

MuJoCo hands every geometry of a scene to OpenGL, whichever way the camera looks, and once more for each
mirror. A software renderer spends its time on their triangles, so what is surely out of sight
is left out.

Dims: N boxes of 8 corners. Units: m, world frame.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Self

import mujoco
import numpy as np
from libero.libero.envs import OffScreenRenderEnv
from numpy.typing import NDArray

Array = NDArray[np.float64]

_GEOM = int(mujoco.mjtObj.mjOBJ_GEOM)
_PLANE, _BOX = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_BOX)
_NOT_DRAWN = int(mujoco.mjtGeom.mjGEOM_LABEL)
"""A type of which only the label is drawn."""
_CORNERS = np.array(list(product((-1.0, 1.0), repeat=3)))
_MARGIN = 1e-3
"""By which boxes are enlarged, m: far more than float32 rounds."""


@dataclass(frozen=True)
class View:
    """The pyramid that a camera sees, cut off near its tip.

    Attributes:
        eye: (3,) its tip.
        axes: (3, 3) rows are unit vectors to the right, up and forward.
        low: (2,) least tangent of the angle to the right, and up.
        high: (2,) greatest.
        near: Distance along the forward axis where it begins.
    """

    eye: Array
    axes: Array
    low: Array
    high: Array
    near: float

    @classmethod
    def of(cls, scene: mujoco.MjvScene, aspect: float) -> Self:
        """That of a scene's camera.

        Args:
            scene: Updated.
            aspect: Width of the image over its height.
        """
        left, right = scene.camera  # Of two eyes; an image of one is from between them.
        eye, forward, up = (
            (np.asarray(getattr(left, name), float) + getattr(right, name)) / 2
            for name in ("pos", "forward", "up")
        )
        half = left.frustum_width or aspect * (left.frustum_top - left.frustum_bottom) / 2
        low = np.array([left.frustum_center - half, left.frustum_bottom]) / left.frustum_near
        high = np.array([left.frustum_center + half, left.frustum_top]) / left.frustum_near
        return cls(eye, np.stack([np.cross(forward, up), up, forward]), low, high, left.frustum_near)

    def may_show(self, corners: Array) -> NDArray[np.bool_]:
        """(N,) false for boxes, by their (N, 8, 3) corners, that are all beyond one side."""
        seen = (corners - self.eye) @ self.axes.T
        across, forward = seen[..., :2], seen[..., 2:]
        beyond = np.concatenate(
            [across < self.low * forward, across > self.high * forward, forward < self.near], axis=-1
        )
        return np.logical_not(beyond.all(axis=1).any(axis=-1))

    def through(self, corners: Array) -> Self:
        """The part of it that passes through a box, by its (8, 3) corners."""
        seen = (corners - self.eye) @ self.axes.T
        if seen[:, 2].min() < self.near:
            return self
        tangents = seen[:, :2] / seen[:, 2:]
        low, high = np.maximum(self.low, tangents.min(axis=0)), np.minimum(self.high, tangents.max(axis=0))
        return replace(self, low=low, high=high)


def render_what_shows(env: OffScreenRenderEnv) -> None:
    """Exchange the rendering of a built environment.

    Args:
        env: Whose images stay what they are.
    """
    context = env.sim._render_context_offscreen
    model, data = env.sim.model._model, env.sim.data._data
    whole = context.render

    def render(width: int, height: int, camera_id: int | None = None, segmentation: bool = False) -> None:
        too_large = width > context.con.offWidth or height > context.con.offHeight  # Robosuite makes room.
        if too_large or segmentation or camera_id in (None, -1):
            whole(width, height, camera_id, segmentation)
            return
        context.cam.type, context.cam.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera_id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, context.vopt, context.pert, context.cam, everything, context.scn)
        _leave_out_what_is_hidden(context.scn, model, data, width / height)
        mujoco.mjr_render(mujoco.MjrRect(0, 0, width, height), context.scn, context.con)

    context.render = render


def _leave_out_what_is_hidden(scene: Any, model: Any, data: Any, aspect: float) -> None:
    """From an updated scene, in its camera's view and in the mirrors that this shows."""
    geoms = [geom for geom in (scene.geoms[i] for i in range(scene.ngeom)) if geom.objtype == _GEOM]
    if any(geom.type == _PLANE and geom.reflectance > 0 for geom in geoms):
        return  # It may show anything.
    bounded = [geom for geom in geoms if geom.type != _PLANE]
    corners = _corners(model, data, np.array([geom.objid for geom in bounded]))
    view = View.of(scene, aspect)
    in_view = view.may_show(corners)
    shown = in_view.copy()
    for index in np.flatnonzero(in_view):
        geom = bounded[index]
        if geom.type == _BOX and geom.reflectance > 0:  # Its upper face is a mirror.
            normal = np.asarray(geom.mat, float)[:, 2]
            over = (corners - geom.pos) @ normal - geom.size[2]
            mirrored = corners - 2 * over[..., None] * normal
            shown |= view.through(corners[index]).may_show(mirrored) & (over > 0).any(axis=1)
    for index in np.flatnonzero(~shown):
        bounded[index].type = _NOT_DRAWN


def _corners(model: Any, data: Any, ids: NDArray[np.int_]) -> Array:
    """(N, 8, 3) of the boxes around geometries, by their N ids."""
    centres, sizes = model.geom_aabb[ids, :3], model.geom_aabb[ids, 3:] + _MARGIN
    local = centres[:, None] + _CORNERS * sizes[:, None]
    return data.geom_xpos[ids][:, None] + local @ data.geom_xmat[ids].reshape(-1, 3, 3).transpose(0, 2, 1)
