"""An arm behind the guard is the arm to whoever looks at it, and is given what is safe."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm_rollouts import FPS, TESTS, A, J, V
from lerobot.robots import make_robot_from_config

sys.path.append(str(TESTS / "simulated_arm"))

import lerobot_robot_simulated_arm  # noqa: E402, F401

from lerobot_smoothvla.filters.configuration import GuardConfig  # noqa: E402
from lerobot_smoothvla.filters.guarded import Guarded, GuardedConfig  # noqa: E402

LIMITS = {"max_velocity": [V], "max_acceleration": [A], "max_jerk": [J], "fps": FPS}
FIRST = J / FPS**3 / 6
"""What an allowed jerk for one control period moves a joint at rest."""


def make(scratch: Path, guard: dict[str, Any], **arm: Any) -> Guarded:
    """As LeRobot's commands do."""
    settings = {
        "type": "simulated_arm",
        "log": str(scratch / "arm.npz"),
        "calibration_dir": str(scratch),
        **arm,
    }
    made = make_robot_from_config(GuardedConfig(arm=settings, guard=GuardConfig(**guard)))
    assert isinstance(made, Guarded)
    return made


@pytest.fixture
def guarded(tmp_path: Path) -> Any:
    made = make(tmp_path, LIMITS)
    made.connect()
    yield made
    if made.is_connected:
        made.disconnect()


def test_it_looks_as_the_arm_does(guarded: Guarded, tmp_path: Path):
    arm = guarded.arm
    assert (guarded.name, guarded.robot_type, guarded.calibration_dir) == (
        "simulated_arm",
        arm.name,
        tmp_path,
    )
    assert guarded.observation_features == arm.observation_features
    assert guarded.action_features == arm.action_features
    assert list(guarded.cameras) == ["front", "wrist"]
    assert guarded.get_observation().keys() == arm.observation_features.keys()


def test_the_arm_is_given_what_is_safe_from_where_it_is(guarded: Guarded):
    start = np.array(list(guarded.get_observation().values())[:6])
    sent = guarded.send_action(dict.fromkeys(guarded.action_features, 90.0))
    moved = np.array(list(sent.values())) - start
    assert moved[:5] == pytest.approx([FIRST] * 5, rel=1e-4)
    assert sent["gripper.pos"] == 90
    sent = guarded.send_action(dict.fromkeys(guarded.action_features, float("nan")))
    assert np.isfinite(list(sent.values())).all()


def test_an_action_before_any_observation_begins_where_the_arm_is(guarded: Guarded):
    sent = guarded.send_action(dict.fromkeys(guarded.action_features, 90.0))
    assert sent["elbow_flex.pos"] == pytest.approx(60, abs=2), "home"


@pytest.mark.parametrize(
    ("guard", "arm", "message"),
    [
        (
            {},
            {},
            r"A guard's limits should be .* \(--guard.demonstrations=DATASET_ROOT\) or given, all three",
        ),
        (
            {**LIMITS, "max_jerk": [1.0, 2.0]},
            {},
            "`max_jerk` should hold one limit .* each of shoulder_pan.pos",
        ),
        ({"demonstrations": Path("no/where")}, {}, "There is no LeRobot dataset 'no/where'"),
        (LIMITS, {"type": "no_arm"}, "no_arm"),
    ],
)
def test_what_cannot_be_guarded_is_refused_before_the_arm_is_connected(
    guard: dict[str, Any], arm: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(Exception, match=message):
        make(tmp_path, guard, **arm)


def test_demonstrations_of_another_arm_are_refused(tiny_dataset: Path, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"should be of this arm's actions \['shoulder_pan.pos', .* got \[\]"
    ):
        make(tmp_path, {"demonstrations": tiny_dataset})
