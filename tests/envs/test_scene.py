"""Shifts of a small MuJoCo scene; `test_shift.py` has LIBERO's."""

import mujoco
import numpy as np
import pytest

from lerobot_smoothvla.envs.scene import Scene
from lerobot_smoothvla.envs.shift import MAGNITUDES, Shift
from lerobot_smoothvla.episode import Start

START = Start("libero_object", 0, 3, 7)
STARTS = [Start("libero_object", 0, state, 1000 + state) for state in range(30)]
XML = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <light name="sun" pos="1 0 3" dir="0 -0.6 -0.8" diffuse=".6 .6 .6"/>
    <camera name="world" pos="1 0 1" euler="0 .7 1.6"/>
    <body name="table"><geom type="box" size=".2 .2 .1"/></body>
    <body name="arm" pos="0 -.5 .5">
      <joint name="shoulder" axis="0 0 1" range="-.01 3" limited="true"/>
      <joint name="elbow" pos="0 0 .2" axis="1 0 0"/>
      <geom type="capsule" size=".02 .1"/>
      <camera name="hand"/>
    </body>
    <body name="tray" pos="0 0 .11"><freejoint/><geom type="box" size=".04 .04 .01"/></body>
    <body name="cup" pos="0 0 .14"><freejoint/><geom type="box" size=".02 .02 .02"/></body>
    <body name="edge" pos=".18 0 .12"><freejoint/><geom type="box" size=".02 .02 .02"/></body>
    <body name="penned" pos="0 .12 .12"><freejoint/><geom type="box" size=".02 .02 .02"/></body>
    <body name="pen">
      <geom type="box" pos=".03 .12 .12" size=".005 .04 .02"/>
      <geom type="box" pos="-.03 .12 .12" size=".005 .04 .02"/>
      <geom type="box" pos="0 .15 .12" size=".04 .005 .02"/>
      <geom type="box" pos="0 .09 .12" size=".04 .005 .02"/>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(XML)


@pytest.fixture
def data(model: mujoco.MjModel) -> mujoco.MjData:
    """Settled, so that things touch what they stand on."""
    data = mujoco.MjData(model)
    for _ in range(200):
        mujoco.mj_step(model, data)
    return data


@pytest.fixture
def scene(model: mujoco.MjModel, data: mujoco.MjData) -> Scene:
    return Scene(model, data, ["shoulder", "elbow"])


def shift(kind: str, magnitude: float | None = None) -> Shift:
    made = Shift.of(kind, magnitude)
    assert made is not None
    return made


def displacements(model: mujoco.MjModel, data: mujoco.MjData, before: np.ndarray) -> dict[str, np.ndarray]:
    """In x, y and z, of each object."""
    names = ("tray", "cup", "edge", "penned")
    addresses = [model.jnt_qposadr[model.body(name).jntadr[0]] for name in names]
    return {n: data.qpos[a : a + 3] - before[a : a + 3] for n, a in zip(names, addresses, strict=True)}


def turned_by(first: np.ndarray, second: np.ndarray) -> float:
    """Degrees between two unit quaternions."""
    return 2 * np.rad2deg(np.arccos(min(1.0, abs(first @ second))))


def test_a_camera_of_the_world_moves_and_turns_and_the_hands_does_not(model, data, scene):
    before = {
        name: (model.camera(name).pos.copy(), model.camera(name).quat.copy()) for name in ("world", "hand")
    }
    physics = data.qpos.copy()
    assert not scene.apply(shift("camera", 0.08), START)
    position, quaternion = before["world"]
    assert np.linalg.norm(model.camera("world").pos - position) == pytest.approx(0.08)
    assert turned_by(model.camera("world").quat, quaternion) == pytest.approx(8.0)
    for now, then in zip((model.camera("hand").pos, model.camera("hand").quat), before["hand"], strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(data.qpos, physics)


def test_light_changes_in_colour_and_direction(model, data, scene):
    diffuse, direction, position = (x.copy() for x in (model.light_diffuse, model.light_dir, model.light_pos))
    headlight, physics = model.vis.headlight.diffuse.copy(), data.qpos.copy()
    assert not scene.apply(shift("light", 0.2), START)
    factors = model.light_diffuse[0] / diffuse[0]
    assert (np.abs(factors - 1) <= 0.2).all() and len(set(factors.round(4))) == 3
    np.testing.assert_allclose(model.vis.headlight.diffuse / headlight, factors, rtol=1e-5)
    for now, then in ((model.light_dir[0], direction[0]), (model.light_pos[0], position[0])):
        assert np.linalg.norm(now) == pytest.approx(np.linalg.norm(then))
    assert 0 < np.rad2deg(np.arccos(model.light_dir[0] @ direction[0])) <= 20.0 + 1e-6
    np.testing.assert_array_equal(data.qpos, physics)


def test_a_restored_scene_has_its_bits_back(model, data, scene):
    fields = (
        "cam_pos",
        "cam_quat",
        "light_pos",
        "light_dir",
        "light_ambient",
        "light_diffuse",
        "light_specular",
    )
    before = {name: getattr(model, name).copy() for name in fields}
    headlight = model.vis.headlight.ambient.copy()
    for kind in ("camera", "light"):
        scene.apply(shift(kind), START)
    assert all((getattr(model, name) != before[name]).any() for name in ("cam_pos", "light_diffuse"))
    scene.restore()
    for name in fields:
        np.testing.assert_array_equal(getattr(model, name), before[name])
    np.testing.assert_array_equal(model.vis.headlight.ambient, headlight)


def test_the_arms_joints_turn_by_the_magnitude_within_their_ranges(model, data, scene):
    before = data.qpos.copy()
    address = [model.joint(name).qposadr[0] for name in ("shoulder", "elbow")]
    clipped = 0
    for start in STARTS:
        data.qpos[:] = before
        assert scene.apply(shift("arm", 0.2), start)
        offsets = data.qpos[address] - before[address]
        assert data.qpos[address[0]] >= -0.01
        if data.qpos[address[0]] > -0.01:
            assert np.sqrt(np.mean(offsets**2)) == pytest.approx(0.2)
        else:
            clipped += 1
        others = np.delete(data.qpos - before, address)
        np.testing.assert_array_equal(others, np.zeros_like(others))
    assert 0 < clipped < len(STARTS)


def test_objects_move_on_what_they_stand_on(model, data, scene):
    before = data.qpos.copy()
    directions = set()
    for start in STARTS:
        data.qpos[:] = before
        mujoco.mj_forward(model, data)
        assert scene.apply(shift("placement", 0.04), start)
        moved = displacements(model, data, before)
        assert np.linalg.norm(moved["tray"]) == pytest.approx(0.04)
        assert all(moved[name][2] == 0 for name in moved)
        np.testing.assert_array_equal(moved["cup"], moved["tray"]), "what stands on it goes along"
        assert not moved["penned"].any(), "there is no other place in the pen"
        directions.add(round(float(np.arctan2(moved["tray"][1], moved["tray"][0])), 6))
        for _ in range(200):
            mujoco.mj_step(model, data)
        settled = displacements(model, data, before)
        assert all(abs(settled[name][2]) < 2e-3 for name in settled), "nothing falls off the table"
    assert len(directions) == len(STARTS)


def test_the_direction_depends_on_kind_and_start_and_not_on_the_magnitude(model, data, scene):
    position = model.camera("world").pos.copy()

    def direction(magnitude: float, start: Start) -> np.ndarray:
        scene.restore()
        scene.apply(shift("camera", magnitude), start)
        return (model.camera("world").pos - position) / magnitude

    np.testing.assert_allclose(direction(0.01, START), direction(0.1, START))
    assert np.abs(direction(0.1, START) - direction(0.1, STARTS[0])).max() > 0.05
    np.testing.assert_array_equal(direction(0.1, START), direction(0.1, START))
    draws = [shift(kind).generator(START).random() for kind in MAGNITUDES]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize(
    ("kind", "magnitude", "message"),
    [
        ("cameras", 0.1, "should be one of none, camera, light, arm, placement, got 'cameras'"),
        ("camera", 0.0, "above 0 and at most inf m, got 0.0"),
        ("light", 1.5, "at most 1.0 share, got 1.5"),
        ("arm", -0.1, "got -0.1"),
        ("placement", float("nan"), "got nan"),
    ],
)
def test_a_shift_that_cannot_be_is_refused(kind, magnitude, message):
    with pytest.raises(ValueError, match=message):
        Shift.of(kind, magnitude)


def test_without_a_shift_there_is_none():
    assert Shift.of("none") is None
    assert {kind: shift(kind).magnitude for kind in MAGNITUDES} == {k: m for k, (m, _) in MAGNITUDES.items()}
