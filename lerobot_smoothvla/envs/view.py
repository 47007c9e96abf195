"""What a camera sees of a scene, also by way of a mirror.

Dims: N boxes of 8 corners. Units: m, world frame.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """A pyramid, cut off near its tip, and the image that is made of it.

    Attributes:
        eye: (3,) its tip.
        axes: (3, 3) rows are unit vectors to the right, up and forward; right-handed in a mirror only.
        low: (2,) least tangent of the angle to the right, and up.
        high: (2,) greatest.
        near: Distance along the forward axis where it begins.
        corner: (2,) tangents at the image's lower left.
        pixel: (2,) tangents that a pixel spans.
    """

    eye: Array
    axes: Array
    low: Array
    high: Array
    near: float
    corner: Array
    pixel: Array

    @classmethod
    def of(cls, scene: mujoco.MjvScene, width: int, height: int) -> Self:
        """That of a scene's camera.

        Args:
            scene: Updated.
            width: Of the image, in pixels.
            height: The same.
        """
        left, right = scene.camera  # Of two eyes; an image of one is from between them.
        eye, forward, up = (
            (np.asarray(getattr(left, name), float) + getattr(right, name)) / 2
            for name in ("pos", "forward", "up")
        )
        half = left.frustum_width or width / height * (left.frustum_top - left.frustum_bottom) / 2
        low = np.array([left.frustum_center - half, left.frustum_bottom]) / left.frustum_near
        high = np.array([left.frustum_center + half, left.frustum_top]) / left.frustum_near
        axes = np.stack([np.cross(forward, up), up, forward])
        return cls(eye, axes, low, high, left.frustum_near, low, (high - low) / (width, height))

    @cached_property
    def facing(self) -> float:
        """Sign of the area that a triangle has in the image if it faces the eye; negative in a mirror."""
        return float(-np.linalg.det(self.axes))

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

    def mirrored(self, point: Array, normal: Array) -> Self:
        """What it shows by way of a mirror.

        Args:
            point: (3,) of the mirror's plane.
            normal: (3,) of length 1.
        """
        eye = self.eye - 2 * (self.eye - point) @ normal * normal
        return replace(self, eye=eye, axes=self.axes - 2 * np.outer(self.axes @ normal, normal))
