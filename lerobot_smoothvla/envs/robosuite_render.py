"""Robosuite's rendering without what no pixel shows; not one bit of the images changes.

MuJoCo hands every geometry of a scene to OpenGL, whichever way the camera looks, and once more for each
mirror. A software renderer spends its time on their triangles, so what is surely out of sight
is left out.

Dims: N boxes of 8 corners. Units: m, world frame.
"""

from itertools import product
from typing import Any

import mujoco
import numpy as np
from libero.libero.envs import OffScreenRenderEnv
from numpy.typing import NDArray

from lerobot_smoothvla.envs.mesh_thinning import MeshThinner
from lerobot_smoothvla.envs.view import Array, View

_GEOM = int(mujoco.mjtObj.mjOBJ_GEOM)
_PLANE, _BOX = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_BOX)
_NOT_DRAWN = int(mujoco.mjtGeom.mjGEOM_LABEL)
"""A type of which only the label is drawn."""
_CORNERS = np.array(list(product((-1.0, 1.0), repeat=3)))
_MARGIN = 1e-3
"""By which boxes are enlarged, m: far more than float32 rounds."""


def render_what_shows(env: OffScreenRenderEnv) -> None:
    """Exchange the rendering of an environment.

    Args:
        env: Just built, so that its OpenGL context is current; its images stay what they are.
    """
    context = env.sim._render_context_offscreen
    context.render = RenderWhatShows(context, env.sim.model._model, env.sim.data._data)


class RenderWhatShows:
    """The `render` of a robosuite context."""

    def __init__(self, context: Any, model: Any, data: Any) -> None:
        """Take what is robosuite's, and MuJoCo's model and data."""
        self._context, self._model, self._data = context, model, data
        self._robosuites = context.render
        self._thinner = MeshThinner(model, context)

    def whole(self, *arguments: Any, **named: Any) -> None:
        """As robosuite does."""
        self._thinner.restore()
        self._robosuites(*arguments, **named)

    def __call__(
        self, width: int, height: int, camera_id: int | None = None, segmentation: bool = False
    ) -> None:
        """The same, but for the arguments of which nobody makes use here."""
        context, model, data = self._context, self._model, self._data
        too_large = width > context.con.offWidth or height > context.con.offHeight  # Robosuite makes room.
        if too_large or segmentation or camera_id in (None, -1):
            self.whole(width, height, camera_id, segmentation)
            return
        context.cam.type, context.cam.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera_id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, context.vopt, context.pert, context.cam, everything, context.scn)
        seen = _leave_out_what_is_hidden(context.scn, model, data, View.of(context.scn, width, height))
        self._thinner.thin(seen, width * height)
        mujoco.mjr_render(mujoco.MjrRect(0, 0, width, height), context.scn, context.con)


def _leave_out_what_is_hidden(scene: Any, model: Any, data: Any, view: View) -> list[tuple[Any, list[View]]]:
    """From an updated scene, in its camera's view and in the mirrors that this shows.

    Returns:
        The geometries that are left and have bounds, with the views that may show them; none of them if any
        may show anything.
    """
    geoms = [geom for geom in (scene.geoms[i] for i in range(scene.ngeom)) if geom.objtype == _GEOM]
    if any(geom.type == _PLANE and geom.reflectance > 0 for geom in geoms):
        return []
    bounded = [geom for geom in geoms if geom.type != _PLANE]
    corners = _corners(model, data, np.array([geom.objid for geom in bounded]))
    views, shown = [view], [view.may_show(corners)]
    for index in np.flatnonzero(shown[0]):
        geom = bounded[index]
        if geom.type == _BOX and geom.reflectance > 0:  # Its upper face is a mirror.
            normal = np.asarray(geom.mat, float)[:, 2]
            face = geom.pos + geom.size[2] * normal
            mirrored = view.through(corners[index]).mirrored(face, normal)
            views.append(mirrored)
            shown.append(mirrored.may_show(corners) & ((corners - face) @ normal > 0).any(axis=1))
    seen = []
    for geom, by_view in zip(bounded, np.transpose(shown), strict=True):
        if by_view.any():
            seen.append((geom, [one for one, shows in zip(views, by_view, strict=True) if shows]))
        else:
            geom.type = _NOT_DRAWN
    return seen


def _corners(model: Any, data: Any, ids: NDArray[np.int_]) -> Array:
    """(N, 8, 3) of the boxes around geometries, by their N ids."""
    centres, sizes = model.geom_aabb[ids, :3], model.geom_aabb[ids, 3:] + _MARGIN
    local = centres[:, None] + _CORNERS * sizes[:, None]
    return data.geom_xpos[ids][:, None] + local @ data.geom_xmat[ids].reshape(-1, 3, 3).transpose(0, 2, 1)
