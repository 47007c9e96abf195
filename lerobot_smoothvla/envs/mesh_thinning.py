"""Meshes without the triangles that touch no sample of any pixel; not one bit of the images changes.

LIBERO's scenes have 0.3 million triangles, and an image of 64 px has 16 thousand samples: hardly a triangle
in twenty can colour one. A software renderer spends its time on the others. So each triangle is tested here
against the places at which that renderer samples a pixel, and what is left is what it gets.

Dims: V vertices and F triangles of a mesh, S samples of a pixel.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mujoco
import numba
import numpy as np
from numpy.typing import NDArray
from OpenGL import GL

from lerobot_smoothvla.envs.view import Array, View

_MESH = int(mujoco.mjtGeom.mjGEOM_MESH)
_OF_FACES = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord")
_MARGIN = 1 / 64
"""Of a pixel: renderers round vertices to 1/256 of it."""
_SMALL = 9
"""Pixels that a triangle may reach into to be tested; larger ones are drawn."""
_SAMPLES_A_TRIANGLE = 0.75
"""Of an image: where there are more, so many triangles are drawn that testing them all gains nothing."""


class MeshThinner:
    """Gives the renderer of each mesh what some view may show of it."""

    def __init__(self, model: Any, context: Any) -> None:
        """Ask the renderer where it samples.

        Args:
            model: MuJoCo's, whose meshes are drawn.
            context: Robosuite's for rendering, which is current; it may exchange MuJoCo's later.
        """
        self._model, self._context = model, context
        self._thinned: set[int] = set()
        self._on_cpu = b"llvmpipe" in GL.glGetString(GL.GL_RENDERER)
        places = []
        if self._on_cpu:
            GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, context.con.offFBO)
            n = context.con.offSamples
            places = [GL.glGetMultisamplefv(GL.GL_SAMPLE_POSITION, index) for index in range(n)]
        self._samples = np.array(places or [(0.5, 0.5)], np.float64)

    def thin(self, seen: Iterable[tuple[Any, Sequence[View]]], n_pixels: int) -> None:
        """Before an image is made; where that would not make it faster, meshes are whole.

        Args:
            seen: Geometries of an updated scene, each with the views that may show it.
            n_pixels: Of the image.
        """
        if not self._on_cpu:
            return
        shown = [
            (geom, geom.dataid // 2, views)
            for geom, views in seen
            if geom.type == _MESH and geom.dataid % 2 == 0  # An odd one is the mesh's hull.
        ]
        n_passes = max((len(views) for _, _, views in shown), default=0)  # MuJoCo's; each draws everything.
        n_triangles = n_passes * sum(self._model.mesh_facenum[mesh] for _, mesh, _ in shown)
        if n_pixels * len(self._samples) > _SAMPLES_A_TRIANGLE * n_triangles:
            self.restore()
            return
        touches: dict[int, NDArray[np.bool_]] = {}
        for geom, mesh, views in shown:
            of_mesh = touches.setdefault(mesh, np.zeros(self._model.mesh_facenum[mesh], np.bool_))
            for view in views:
                self._find_touching(geom, mesh, view, of_mesh)
        with self._reduced(touches):
            self._upload(touches)
        self._thinned |= touches.keys()

    def restore(self) -> None:
        """All of every mesh, for images that are made without `thin`."""
        self._upload(self._thinned)
        self._thinned.clear()

    def _find_touching(self, geom: Any, mesh: int, view: View, touches: NDArray[np.bool_]) -> None:
        first, n = self._model.mesh_vertadr[mesh], self._model.mesh_vertnum[mesh]
        _find_touching(
            self._model.mesh_vert[first : first + n],
            self._model.mesh_face[self._faces(mesh)],
            view.axes @ np.asarray(geom.mat, np.float64),
            view.axes @ (np.asarray(geom.pos, np.float64) - view.eye),
            view.near,
            view.corner,
            view.pixel,
            (view.low - view.corner) / view.pixel,
            (view.high - view.corner) / view.pixel,
            view.facing,
            self._samples,
            touches,
        )

    def _faces(self, mesh: int) -> slice:
        first = self._model.mesh_faceadr[mesh]
        return slice(first, first + self._model.mesh_facenum[mesh])

    @contextmanager
    def _reduced(self, touches: Mapping[int, NDArray[np.bool_]]) -> Iterator[None]:
        """The model without other triangles than those, and without hulls, which are as they were."""
        model, hulls = self._model, self._model.mesh_graphadr.copy()
        replaced = []
        try:
            model.mesh_graphadr[:] = -1
            for mesh, of_mesh in touches.items():
                which = np.flatnonzero(of_mesh)
                for of in _OF_FACES:
                    faces = getattr(model, of)[self._faces(mesh)]
                    first = faces[: len(which)]
                    replaced.append((first, first.copy()))
                    first[:] = faces[which]
                model.mesh_facenum[mesh] = len(which)
            yield
        finally:
            for first, as_it_was in replaced:
                first[:] = as_it_was
            for mesh, of_mesh in touches.items():
                model.mesh_facenum[mesh] = len(of_mesh)
            model.mesh_graphadr[:] = hulls

    def _upload(self, meshes: Iterable[int]) -> None:
        for mesh in meshes:
            mujoco.mjr_uploadMesh(self._model, self._context.con, mesh)


@numba.njit(cache=True)
def _find_touching(
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    rotation: Array,
    translation: Array,
    near: float,
    corner: Array,
    pixel: Array,
    low: Array,
    high: Array,
    facing: float,
    samples: Array,
    touches: NDArray[np.bool_],
) -> None:
    """Mark the triangles that face a view and may touch a sample of it.

    Args:
        vertices: (V, 3) m.
        faces: (F, 3) of them.
        rotation: (3, 3) from the mesh's frame to the view's: right, up, forward.
        translation: (3,) m.
        near: Distance where the view begins, m.
        corner: (2,) lower left of the image, as tangents.
        pixel: (2,) tangents that a pixel spans.
        low: (2,) where the view begins in the image, in pixels.
        high: (2,) where it ends.
        facing: Sign of the area of what faces the view; negative in a mirror.
        samples: (S, 2) in [0, 1), places in a pixel.
        touches: (F,) to mark; what is marked stays so.
    """
    x, y, z = np.empty(len(vertices)), np.empty(len(vertices)), np.empty(len(vertices))
    for v in range(len(vertices)):
        p, q, r = vertices[v, 0], vertices[v, 1], vertices[v, 2]
        right = rotation[0, 0] * p + rotation[0, 1] * q + rotation[0, 2] * r + translation[0]
        up = rotation[1, 0] * p + rotation[1, 1] * q + rotation[1, 2] * r + translation[1]
        z[v] = rotation[2, 0] * p + rotation[2, 1] * q + rotation[2, 2] * r + translation[2]
        if z[v] > near:
            x[v] = (right / z[v] - corner[0]) / pixel[0]
            y[v] = (up / z[v] - corner[1]) / pixel[1]
    for f in range(len(faces)):
        if touches[f]:
            continue
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        n_before = (z[a] <= near) + (z[b] <= near) + (z[c] <= near)
        if n_before:
            touches[f] = n_before < 3
            continue
        ax, ay, bx, by, cx, cy = x[a], y[a], x[b], y[b], x[c], y[c]
        left, right = min(ax, bx, cx) - _MARGIN, max(ax, bx, cx) + _MARGIN
        bottom, top = min(ay, by, cy) - _MARGIN, max(ay, by, cy) + _MARGIN
        if right < low[0] or left > high[0] or top < low[1] or bottom > high[1]:
            continue
        # What rounding its vertices may add to an area that two of its edges span.
        slack = 2 * _MARGIN * (right - left + top - bottom)
        if _area(ax, ay, bx, by, cx, cy) * facing < -slack:
            continue
        first_x, first_y = np.floor(left), np.floor(bottom)
        n_x, n_y = int(np.floor(right) - first_x) + 1, int(np.floor(top) - first_y) + 1
        if n_x * n_y > _SMALL:
            touches[f] = True
            continue
        for i in range(n_x * n_y):
            for s in range(len(samples)):
                sx, sy = first_x + i % n_x + samples[s, 0], first_y + i // n_x + samples[s, 1]
                if (
                    left <= sx <= right
                    and bottom <= sy <= top
                    and _area(ax, ay, bx, by, sx, sy) * facing >= -slack
                    and _area(bx, by, cx, cy, sx, sy) * facing >= -slack
                    and _area(cx, cy, ax, ay, sx, sy) * facing >= -slack
                ):
                    touches[f] = True


@numba.njit(cache=True)
def _area(ax: float, ay: float, bx: float, by: float, cx: float, cy: float) -> float:
    """Twice that of a triangle, positive where its corners turn to the left."""
    return (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
