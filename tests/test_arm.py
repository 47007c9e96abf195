"""LeRobot's own command drives a simulated arm with a checkpoint of ours, with and without the motion guard.

The arm moves on in real time, and on a busy machine control steps come late. What is held here does not
depend on how late; that is measured by `benchmarks/arm.py`.
"""

from pathlib import Path

import numpy as np
import pytest
from arm_rollouts import FPS, GUARD, A, J, V, arm_checkpoint, roll_out
from lerobot.utils.constants import ACTION

from lerobot_smoothvla.cli.main import main

RTC = ("--inference.type=rtc", "--inference.rtc.execution_horizon=8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arm_checkpoint(tmp_path_factory.mktemp("arm") / "policy")


@pytest.fixture(scope="module")
def guarded(plain: Path) -> Path:
    path = plain.parent / "guarded"
    with pytest.MonkeyPatch.context() as patch:
        flags = [f"--policy.path={plain}", f"--output_dir={path}", *GUARD, f"--guard.fps={FPS}"]
        patch.setattr("sys.argv", ["smoothvla", "export", *flags])
        assert main() == 0
    return path


@pytest.mark.slow
def test_a_policy_drives_the_arm_for_thirty_seconds_within_the_limits(guarded: Path, tmp_path: Path):
    run = roll_out(guarded, tmp_path, 30 * FPS)
    assert run.code == 0, run.said
    assert len(run.goals) == 30 * FPS
    assert run.goal_times[-1] - run.goal_times[0] > 29.9
    assert np.median(np.diff(run.goal_times)) > 0.98 / FPS, "no faster than the control period"
    assert run.within_limits()
    limited, steps, not_finite, blind = run.guard_counts()
    assert steps == len(run.goals) and 0 < limited <= steps and not_finite == blind == 0


def test_without_a_guard_the_same_policy_jumps(plain: Path, guarded: Path, tmp_path: Path):
    (tmp_path / "plain").mkdir()
    run = roll_out(plain, tmp_path / "plain", 120)
    assert run.code == 0, run.said
    for rate, limit in zip(run.rates(), (V, A, J), strict=True):
        assert rate > 2 * limit
    assert run.measured_jerk() > 2 * roll_out(guarded, tmp_path, 120).measured_jerk()


@pytest.mark.slow
def test_real_time_chunking_drives_a_guarded_arm_for_thirty_seconds_within_the_limits(
    plain: Path, tmp_path: Path
):
    run = roll_out(plain, tmp_path, 30 * FPS, *RTC, guarded_arm=True)
    assert run.code == 0, run.said
    assert run.goal_times[-1] - run.goal_times[0] > 29
    assert run.within_limits()
    limited, steps, not_finite, blind = run.guard_counts()
    assert steps == len(run.goals) and limited > 0 and not_finite == blind == 0
    assert run.late_share() < 0.1, "on an idle machine"


def test_a_guard_refuses_real_time_chunking_before_the_arm_moves(guarded: Path, tmp_path: Path):
    run = roll_out(guarded, tmp_path, 60, *RTC)
    assert "The motion guard should get one action for each observation" in run.said
    assert len(run.goals) == 0


# --- faults


def test_a_policy_slower_than_the_control_period_does_not_make_the_arm_jump(guarded: Path, tmp_path: Path):
    run = roll_out(guarded, tmp_path, 40, "--policy.num_steps=100")
    assert run.code == 0, run.said
    assert np.diff(run.goal_times).max() > 2 / FPS, "it is slower"
    assert run.within_limits()


@pytest.mark.parametrize(
    ("guarded_arm", "flags"),
    [
        pytest.param(False, (), id="checkpoint"),
        pytest.param(True, (), id="arm"),
        # At 10 Hz: a chunk that takes longer than its 16 steps, at 30 Hz half a second, is thrown away.
        pytest.param(True, (*RTC, "--fps=10"), id="rtc", marks=pytest.mark.slow),
    ],
)
def test_the_arm_holds_while_a_camera_is_frozen_and_goes_on_after(
    guarded_arm: bool, flags: tuple[str, ...], plain: Path, guarded: Path, tmp_path: Path
):
    fault = ("--robot.fault=frozen", "--robot.fault_for=50")
    checkpoint = plain if guarded_arm else guarded
    run = roll_out(checkpoint, tmp_path, 100, *fault, *flags, guarded_arm=guarded_arm)
    assert run.code == 0, run.said
    assert run.within_limits()
    *_, blind = run.guard_counts()
    assert 0 < blind < 50
    assert "front, " in run.said and "wrist gave the same image for 0.5 s; the arm holds" in run.said
    assert "every camera gives new images; the arm goes on" in run.said
    still = (np.diff(run.goals, axis=0) == 0).all(axis=1)
    assert still.any() and not still[-10:].all()


@pytest.mark.parametrize(
    ("fault", "message"), [("stale", "front latest frame is too old"), ("lost", "There is no status packet!")]
)
def test_a_camera_that_is_missing_or_a_lost_connection_stops_the_arm(
    fault: str, message: str, guarded: Path, tmp_path: Path
):
    run = roll_out(guarded, tmp_path, 90, f"--robot.fault={fault}")
    assert run.code != 0 and message in run.said
    assert len(run.goals) == 29, "one for each observation of the loop before the fault"
    assert run.within_limits()
    assert run.holds_still_at_the_end()


def test_without_a_guard_actions_that_are_not_finite_reach_the_motors(plain: Path, tmp_path: Path):
    run = roll_out(plain, tmp_path, 60, "--robot.fault=no_position", "--robot.fault_for=30")
    assert np.isnan(run.goals).any(), f"{ACTION} of NaN in the state"


def test_the_arm_holds_while_actions_are_not_finite_and_goes_on_after(guarded: Path, tmp_path: Path):
    run = roll_out(guarded, tmp_path, 120, "--robot.fault=no_position", "--robot.fault_for=30")
    assert run.code == 0, run.said
    assert np.isfinite(run.goals).all()
    assert run.within_limits()
    *_, not_finite, _ = run.guard_counts()
    assert 8 <= not_finite <= 40
    still = (np.diff(run.goals, axis=0) == 0).all(axis=1)
    assert still[30:70].any(), "it holds"
