"""What is left out of a rendering is what no pixel shows."""

import numpy as np
import pytest
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.episode import Start


@pytest.fixture(params=["libero_spatial", "libero_object"])
def env(request):
    """The stove of libero_spatial is a mirror; libero_object has none."""
    from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

    config = LiberoEnvConfig(task=request.param, observation_height=96, observation_width=128)
    env = ChunkedLiberoEnv(config, request.param, 0)
    try:
        env.reset_to(Start(request.param, 0, 0, 0))
        yield env
    finally:
        env.close()


def test_images_keep_every_bit_and_much_is_left_out(env, monkeypatch):
    from lerobot_smoothvla.envs.mesh_thinning import MeshThinner
    from lerobot_smoothvla.envs.robosuite_render import _NOT_DRAWN, RenderWhatShows

    context = env._env.sim._render_context_offscreen
    render, model = context.render, env._env.sim.model._model
    assert isinstance(render, RenderWhatShows)
    left_out, drawn, upload = [], [], MeshThinner._upload

    def counting_upload(thinner, meshes):
        drawn.append(sum(model.mesh_facenum[mesh] for mesh in meshes))
        upload(thinner, meshes)

    monkeypatch.setattr(MeshThinner, "_upload", counting_upload)
    generator = np.random.default_rng(0)
    before = [getattr(model, name).copy() for name in dir(model) if name.startswith("mesh_")]
    for size in ((128, 96), (64, 64), (600, 400), (64, 64)):
        env.step_chunk(np.tile(generator.uniform(-1, 1, 7), (8, 1)))
        env._enter_gl_context()
        for camera in ("agentview", "robot0_eye_in_hand"):
            images = []
            for way in (render.whole, render):
                context.render = way
                images.append(env._env.sim.render(camera_name=camera, width=size[0], height=size[1]))
            np.testing.assert_array_equal(*images)
            types = [context.scn.geoms[index].type for index in range(context.scn.ngeom)]
            left_out.append(types.count(_NOT_DRAWN) / len(types))
            if size == (64, 64):
                assert 0 < drawn[-1] < 40_000
            if size == (600, 400):  # So many samples that meshes are drawn as they are.
                assert drawn[-1] == 0
    assert min(left_out) > 0.05 and max(left_out) > 0.5
    after = [getattr(model, name) for name in dir(model) if name.startswith("mesh_")]
    assert all(np.array_equal(was, now) for was, now in zip(before, after, strict=True))


def test_an_image_may_be_larger_than_the_context_was_made_for(env):
    env._enter_gl_context()
    sizes = (64, 700, 64, 700)
    images = [env._env.sim.render(camera_name="agentview", width=size, height=size) for size in sizes]
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(images[1], images[3])
    assert images[1][600:].std() > 10  # All of it shows something.
