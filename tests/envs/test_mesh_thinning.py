"""Triangles that touch no sample, against every sample and every triangle."""

import numpy as np
import pytest

from lerobot_smoothvla.envs.mesh_thinning import _find_touching

SAMPLES = np.array([(0.375, 0.125), (0.875, 0.375), (0.125, 0.625), (0.625, 0.875)])
PIXELS = 16


def triangles(n: int, size: float) -> np.ndarray:
    """(n, 3, 3) about `size` pixels large, some of them beside the image or behind the eye."""
    generator = np.random.default_rng(0)
    where = generator.uniform(-0.2, 1.2, (n, 1, 2)) + generator.normal(0, size / PIXELS, (n, 3, 2))
    depth = generator.uniform(-0.2, 3, (n, 1, 1)) + generator.normal(0, 0.01, (n, 3, 1))
    return np.concatenate([where * depth, depth], axis=2).astype(np.float32)


def covered(corners: np.ndarray, facing: float, low: float, high: float) -> np.ndarray:
    """(n,) whether a triangle that is all before the eye faces it and has a sample within."""
    pixels = corners[..., :2] / corners[..., 2:] * PIXELS
    grid = np.stack(np.meshgrid(np.arange(PIXELS), np.arange(PIXELS)), -1).reshape(-1, 1, 2)
    points = (grid + SAMPLES).reshape(-1, 2)
    points = points[((points >= low) & (points <= high)).all(1)]
    within = np.ones((len(pixels), len(points)), bool)
    for k in range(3):
        a, b = pixels[:, k, None], pixels[:, (k + 1) % 3, None]
        edge, to = b - a, points - a
        within &= facing * (edge[..., 0] * to[..., 1] - edge[..., 1] * to[..., 0]) >= 0
    return within.any(1) & (corners[..., 2] > 0.1).all(1)


def mark(touches: np.ndarray, corners: np.ndarray, facing: float = 1.0, window=(0.0, PIXELS)) -> None:
    """In an image whose lower left is straight ahead, a tangent of 1 wide and high."""
    faces = np.arange(3 * len(corners), dtype=np.int32).reshape(-1, 3)
    pose, image = (np.eye(3), np.zeros(3), 0.1), (np.zeros(2), np.full(2, 1 / PIXELS))
    limits = [np.full(2, float(limit)) for limit in window]
    _find_touching(corners.reshape(-1, 3), faces, *pose, *image, *limits, facing, SAMPLES, touches)


@pytest.mark.parametrize("facing", [1.0, -1.0])
@pytest.mark.parametrize("size", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("window", [(0.0, PIXELS), (3.0, 9.0)])
def test_no_triangle_is_left_out_that_a_sample_sees(facing, size, window):
    corners = triangles(4000, size)
    touches = np.zeros(len(corners), np.bool_)
    mark(touches, corners, facing, window)
    needed = covered(corners.astype(np.float64), facing, *window)
    assert needed.any() and touches[needed].all()
    across_the_tip = (corners[..., 2] <= 0.1).any(1) & (corners[..., 2] > 0.1).any(1)
    assert touches[across_the_tip].all()
    assert not touches[(corners[..., 2] <= 0.1).all(1)].any()
    assert touches.mean() < 0.5  # Half of them look away.


def test_of_tiny_triangles_few_more_are_drawn_than_samples_see():
    corners = triangles(20_000, 0.05)
    touches = np.zeros(len(corners), np.bool_)
    mark(touches, corners)
    assert touches.sum() < 0.05 * len(corners)


def test_what_is_marked_stays_so():
    corners, touches = triangles(100, 0.05), np.ones(100, np.bool_)
    mark(touches, corners)
    assert touches.all()
