"""What a camera's view takes in."""

from types import SimpleNamespace

import numpy as np
import pytest

from lerobot_smoothvla.envs.view import View

AHEAD = np.array([0.0, 0.0, -1.0])


def a_view():
    """From the origin along −z, 45° to each side and half as much, as a tangent, up and down."""
    eye = SimpleNamespace(
        pos=np.zeros(3),
        forward=AHEAD,
        up=np.array([0.0, 1.0, 0.0]),
        frustum_near=0.1,
        frustum_bottom=-0.05,
        frustum_top=0.05,
        frustum_center=0.0,
        frustum_width=0.0,
    )
    return View.of(SimpleNamespace(camera=(eye, eye)), 200, 100)


def a_box(centre, half=0.1):
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    return np.asarray(centre) + half * corners


@pytest.mark.parametrize(
    ("centre", "shown"),
    [
        ([0, 0, -2], True),
        ([0, 0, 2], False),  # behind
        ([0, 0, 0], True),  # around the eye
        ([1.9, 0, -2], True),
        ([2.3, 0, -2], False),  # to the right
        ([-2.3, 0, -2], False),
        ([0, 1.1, -2], True),  # its lower part
        ([0, 1.3, -2], False),
        ([0, -1.3, -2], False),
    ],
)
def test_a_box_is_left_out_where_all_of_it_is_beyond_one_side(centre, shown):
    assert a_view().may_show(a_box(centre)[None]).tolist() == [shown]


def test_through_a_window_less_is_seen_and_all_of_it_where_the_window_is_around_the_eye():
    view = a_view()
    boxes = np.stack([a_box([0.5, 0, -4]), a_box([1.5, 0, -4])])
    assert view.may_show(boxes).tolist() == [True, True]
    assert view.through(a_box([0.2, 0, -2])).may_show(boxes).tolist() == [True, False]
    assert view.through(a_box([0, 0, 0])).may_show(boxes).tolist() == [True, True]


def test_an_image_has_square_pixels_from_its_lower_left_on():
    view = a_view()
    np.testing.assert_allclose(view.corner, [-1, -0.5])
    np.testing.assert_allclose(view.pixel, [0.01, 0.01])


def test_a_mirror_shows_what_would_be_seen_if_the_world_were_mirrored():
    view, point, normal = a_view(), np.array([0.0, -0.6, 0.0]), np.array([0.0, 1.0, 0.0])
    mirrored = view.mirrored(point, normal)
    boxes = np.stack([a_box([0.3, y, -2]) for y in (-3.0, -1.2, 0.0, 0.5, 2.0)])
    twins = boxes - 2 * ((boxes - point) @ normal)[..., None] * normal
    assert mirrored.may_show(boxes).tolist() == view.may_show(twins).tolist()
    assert not (mirrored.may_show(boxes) == view.may_show(boxes)).all()
    assert np.linalg.det(mirrored.axes) == pytest.approx(-np.linalg.det(view.axes))
