"""What is left out of a rendering is what no pixel shows."""

from types import SimpleNamespace

import numpy as np
import pytest
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.episode import Start

AHEAD = np.array([0.0, 0.0, -1.0])


def a_view(aspect: float = 2.0):
    """From the origin along −z, 45° to each side and half as much, as a tangent, up and down."""
    from lerobot_smoothvla.envs.robosuite_render import View

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
    return View.of(SimpleNamespace(camera=(eye, eye)), aspect)


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


# The stove of libero_spatial is a mirror; libero_object has none.
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object"])
def test_images_keep_every_bit_and_much_is_left_out(suite):
    from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv
    from lerobot_smoothvla.envs.robosuite_render import _NOT_DRAWN

    env = ChunkedLiberoEnv(
        LiberoEnvConfig(task=suite, observation_height=96, observation_width=128), suite, 0
    )
    generator, shares = np.random.default_rng(0), []
    try:
        env.reset_to(Start(suite, 0, 0, 0))
        context = env._env.sim._render_context_offscreen
        ours, whole = context.render, type(context).render.__get__(context)
        assert ours != whole
        for _ in range(4):
            env.step_chunk(np.tile(generator.uniform(-1, 1, 7), (8, 1)))
            env._enter_gl_context()
            for camera in ("agentview", "robot0_eye_in_hand"):
                images = []
                for render in (whole, ours):
                    context.render = render
                    images.append(env._env.sim.render(camera_name=camera, width=128, height=96))
                np.testing.assert_array_equal(*images)
                types = [context.scn.geoms[index].type for index in range(context.scn.ngeom)]
                shares.append(types.count(_NOT_DRAWN) / len(types))
    finally:
        env.close()
    assert min(shares) > 0.05 and max(shares) > 0.5


def test_an_image_may_be_larger_than_the_context_was_made_for():
    from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

    config = LiberoEnvConfig(task="libero_object", observation_height=64, observation_width=64)
    env = ChunkedLiberoEnv(config, "libero_object", 0)
    try:
        env.reset_to(Start("libero_object", 0, 0, 0))
        env._enter_gl_context()
        images = [env._env.sim.render(camera_name="agentview", width=700, height=700) for _ in range(2)]
    finally:
        env.close()
    np.testing.assert_array_equal(*images)
    assert images[0][600:].std() > 10  # All of it shows something.
