"""Scores of small datasets that are made here, whose smoothness is known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_smoothvla.report.score import (
    Recording,
    ScoreConfig,
    ScoreDatasetConfig,
    score_dataset,
    worst_moments,
)
from lerobot_smoothvla.report.score_page import score_sentences, write_score
from lerobot_smoothvla.report.signal import PositionConfig, find_key, find_unit
from lerobot_smoothvla.smoothness import measure

LIBERO = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper", "gripper")
SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SO101_NAMES = [f"{name}.pos" for name in SO101]
FRAMES = 60


def dataset(
    root: Path, names, paths, fps: int = 20, robot_type: str | None = "panda", tasks=("a task",)
) -> Path:
    """A dataset with an episode for each (T + 1, D) of `paths`, the first D dimensions of its state."""
    names = {"motors": list(names)} if names is not None else None
    n_dims = len(names["motors"]) if names else 8
    state = {"dtype": "float32", "shape": (n_dims,), "names": names}
    made = LeRobotDataset.create(
        "local/made",
        fps,
        root=root,
        features={"observation.state": state},
        robot_type=robot_type,
        use_videos=False,
    )
    for index, path in enumerate(paths):
        for row in path:
            frame = np.zeros(n_dims, np.float32)
            frame[: len(row)] = row
            made.add_frame({"observation.state": frame, "task": tasks[index % len(tasks)]})
        made.save_episode()
    made.finalize()
    return root


def sine(amplitude: float, frequency: float, dt: float = 0.05) -> np.ndarray:
    """(T + 1, 3) positions on a line that go up and down: their jerk is A·ω³·|cos ωt|."""
    time = np.arange(FRAMES)[:, None] * dt
    return amplitude * np.sin(2 * math.pi * frequency * time) * np.array([[1.0, 0.0, 0.0]])


def scored(root: Path, **settings):
    return score_dataset(ScoreConfig(ScoreDatasetConfig("local/made", root), **settings))


@pytest.fixture(scope="module")
def libero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of two tasks at 20 frames a second, the second with twice the amplitude."""
    root = tmp_path_factory.mktemp("datasets") / "libero"
    return dataset(root, LIBERO, [sine(0.1, 0.5), sine(0.2, 0.5)], tasks=("<script>a</script>", "b"))


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SO-101 whose joints stay within ±100, in a unit that only its owner knows."""
    root = tmp_path_factory.mktemp("datasets") / "arm"
    return dataset(root, SO101_NAMES, [sine(50.0, 0.5)], fps=30, robot_type="so101_follower")


def test_the_measures_are_those_of_an_evaluation(libero):
    score = scored(libero)
    expected = measure(torch.tensor(sine(0.1, 0.5).astype(np.float32)), 0.05, torch.tensor([FRAMES - 1]))
    for name, value in score.recordings[0].terms.items():
        assert value == pytest.approx(expected[name], rel=1e-6), name


def test_jerk_is_that_of_the_closed_form(libero):
    # A sine's third derivative, averaged over whole periods; differences at 20 Hz are 1 % off.
    expected = 0.1 * (2 * math.pi * 0.5) ** 3 / math.sqrt(2)
    assert scored(libero).recordings[0].terms["jerk_rms"] == pytest.approx(expected, rel=0.05)


def test_twice_as_large_has_twice_the_jerk_and_the_same_ldlj(libero):
    small, large = scored(libero).recordings
    assert large.terms["jerk_rms"] == pytest.approx(2 * small.terms["jerk_rms"], rel=1e-4)
    assert large.terms["ldlj"] == pytest.approx(small.terms["ldlj"], abs=1e-3)


def test_liberos_positions_are_recognised_in_metres(libero):
    signal = scored(libero).signal
    assert (signal.key, signal.dims, signal.names, signal.unit) == (
        "observation.state",
        (0, 1, 2),
        ("x", "y", "z"),
        "m",
    )


def test_the_hubs_label_of_10_frames_is_known_to_be_wrong_and_said_so(tmp_path):
    root = dataset(tmp_path / "data", LIBERO, [sine(0.1, 0.5)], fps=10)
    score = scored(root)
    assert score.fps == 20 and any("makes jerk 8 times smaller" in note for note in score.notes)
    believed = scored(root, fps=10.0)
    assert believed.fps == 10 and not believed.notes
    fast, slow = (one.recordings[0].positions for one in (score, believed))
    assert fast.equal(slow)
    assert score.moments[0].jerk == pytest.approx(8 * believed.moments[0].jerk)


def test_another_robot_is_believed_its_frame_rate(tmp_path):
    root = dataset(tmp_path / "data", LIBERO, [sine(0.1, 0.5)], fps=10, robot_type="mine")
    score = scored(root, position=PositionConfig(unit="m"))
    assert score.fps == 10 and not score.notes


def test_joints_are_recognised_without_the_gripper_and_their_unit_has_to_be_said(arm):
    with pytest.raises(ValueError, match="--position.unit=deg if the robot had `use_degrees`.*=norm"):
        scored(arm)
    score = scored(arm, position=PositionConfig(unit="deg"))
    assert score.signal.names == tuple(SO101_NAMES[:5])
    assert any("rad/s³" in sentence for sentence in score_sentences(score))


def test_degrees_are_measured_in_rad(arm):
    degrees, believed = (scored(arm, position=PositionConfig(unit=unit)) for unit in ("deg", "rad"))
    assert degrees.signal.unit == "rad"
    jerk, too_much = (one.recordings[0].terms["jerk_rms"] for one in (degrees, believed))
    assert jerk == pytest.approx(math.radians(too_much))
    # Drawn at 20 Hz and recorded at 30.
    assert jerk == pytest.approx(math.radians(50) * (1.5 * math.pi) ** 3 / math.sqrt(2), rel=0.1)


def test_a_joint_beyond_100_is_in_degrees(tmp_path):
    root = dataset(tmp_path / "data", SO101_NAMES, [sine(101.0, 0.5)], fps=30, robot_type="so101_follower")
    signal = scored(root).signal
    assert signal.unit == "rad" and signal.scale == math.radians(1)


@pytest.mark.parametrize(
    ("names", "robot_type", "value", "unit"),
    [
        (("ee.x", "ee.y", "ee.z"), "so101_follower", 0.1, "m"),
        (("x", "y", "z"), "sawyer", 0.1, "m"),
        (("shoulder.pos",), "openarm_follower", 1.0, "deg"),
    ],
)
def test_a_unit_is_known_where_lerobot_fixes_it(names, robot_type, value, unit):
    assert (
        find_unit(
            "observation.state", names, robot_type, torch.full((2, len(names)), value), PositionConfig()
        )
        == unit
    )


def test_coordinates_of_an_unknown_robot_have_no_unit():
    with pytest.raises(
        ValueError, match=r"unit of x, y, z in '.*' of 'mine' is not known; pass --position.unit"
    ):
        find_unit("observation.state", ("x", "y", "z"), "mine", torch.zeros(2, 3), PositionConfig())


def test_displacements_are_no_positions():
    """LIBERO's and Meta-World's actions have the names of positions."""
    with pytest.raises(ValueError, match=r"unit of x, y, z in 'action' of 'panda' .* if they are positions"):
        find_unit("action", ("x", "y", "z"), "panda", torch.zeros(2, 3), PositionConfig())


def test_measured_positions_come_before_commanded_ones():
    feature = {"dtype": "float32", "shape": (6,), "names": SO101_NAMES}
    key, dims = find_key({"action": feature, "observation.state": feature}, PositionConfig())
    assert (key, dims) == ("observation.state", (0, 1, 2, 3, 4))
    key, _ = find_key({"action": feature, "observation.state": feature}, PositionConfig(key="action"))
    assert key == "action"


def test_names_that_tell_nothing_are_listed_with_what_to_pass(tmp_path):
    root = dataset(tmp_path / "data", None, [sine(0.1, 0.5)])
    with pytest.raises(ValueError, match=r"observation.state: 0, 1, .*--position.dims=\[...\]"):
        scored(root)
    chosen = PositionConfig("observation.state", [0, 2], "m")
    assert scored(root, position=chosen).recordings[0].terms["jerk_rms"] > 0


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (
            PositionConfig("observation.stat", [0], "m"),
            "no vector 'observation.stat'.*observation.state: x, y",
        ),
        (PositionConfig("observation.state", [8], "m"), r"some of 0 to 7 of 'observation.state', got \[8\]"),
        (PositionConfig("observation.state", [], "m"), r"got \[\]"),
    ],
)
def test_a_position_that_is_not_there_is_named(libero, position, message):
    with pytest.raises(ValueError, match=message):
        scored(libero, position=position)


def test_a_unit_that_is_none_is_refused():
    with pytest.raises(ValueError, match="one of m, rad, deg, norm, px, got 'inch'"):
        PositionConfig(unit="inch")


def test_a_dataset_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(OSError, match="There is no dataset in '.*nowhere'.*--dataset.root"):
        scored(tmp_path / "nowhere")


def test_no_dataset_at_all_is_refused():
    with pytest.raises(ValueError, match="--dataset.repo_id=USER/NAME or --dataset.root=DIR"):
        ScoreConfig()


def test_a_jolt_is_the_worst_moment():
    jolted = np.zeros((FRAMES, 3))
    jolted[40:, 0] = 0.01
    recordings = [recording(0, sine(0.1, 0.5)), recording(1, jolted)]
    [worst] = worst_moments(recordings, 0.05, 1)
    assert worst.episode == 1 and worst.first_frame < 40 <= worst.last_frame
    # A step of height h has jerks h, -2h and h over dt³.
    assert worst.jerk == pytest.approx(2 * 0.01 / 0.05**3)
    assert worst.time == pytest.approx((worst.first_frame + 1.5) * 0.05)


def test_the_worst_moments_of_an_episode_are_apart():
    positions = np.random.default_rng(0).normal(size=(FRAMES, 3))
    moments = worst_moments([recording(0, positions)], 0.05, 4)
    times = sorted(moment.time for moment in moments)
    assert len(times) == 4 and min(np.diff(times)) >= 0.5 - 1e-9
    assert [m.jerk for m in moments] == sorted((m.jerk for m in moments), reverse=True)


def test_an_arm_that_never_moves_has_no_worst_moment():
    assert not worst_moments([recording(0, np.zeros((FRAMES, 3)))], 0.05, 3)


def recording(index: int, positions: np.ndarray) -> Recording:
    return Recording(index, "a task", torch.tensor(positions), {})


def test_an_episode_of_three_frames_is_counted_but_has_no_jerk(tmp_path):
    root = dataset(tmp_path / "data", LIBERO, [sine(0.1, 0.5), sine(0.1, 0.5)[:3]])
    score = scored(root)
    assert len(score.recordings) == 2 and math.isnan(score.recordings[1].terms["jerk_rms"])
    assert any("Episodes 1 have fewer than 4 frames" in note for note in score.notes)
    page = write_score(score, tmp_path / "out")
    rows = json.loads(page.with_name("score.json").read_text())["per_episode"]
    assert rows[1]["jerk_rms"] is None and rows[1]["n_frames"] == 3


def test_page_and_json_have_what_was_measured(libero, tmp_path):
    score = scored(libero)
    for _ in range(2):  # over the earlier ones
        page = write_score(score, tmp_path / "out")
    info = json.loads((tmp_path / "out/score.json").read_text())
    assert info["position"]["unit"] == "m" and info["fps"] == 20
    jerks = [row["jerk_rms"] for row in info["per_episode"]]
    assert jerks == [r.terms["jerk_rms"] for r in score.recordings]
    assert info["overall"]["jerk_rms"]["estimate"] == pytest.approx(sum(jerks) / 2)
    text = page.read_text()
    assert (
        "2 episodes, 120 frames at 20 frames a second. Position: x, y, z of observation.state, in m." in text
    )
    assert "<script>a" not in text and "&lt;script&gt;a&lt;/script&gt;" in text
