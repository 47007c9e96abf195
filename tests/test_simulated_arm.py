"""The arm's simulator is the robot in simulated time, and a user's whole path goes through both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm_rollouts import TESTS, arm_checkpoint

from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.envs.tasks import chunked_env
from lerobot_smoothvla.episode import Start

sys.path.append(str(TESTS / "simulated_arm"))

from lerobot_robot_simulated_arm import (  # noqa: E402
    ScriptedHand,
    ScriptedHandConfig,
    SimulatedArm,
    SimulatedArmConfig,
    SimulatedArmEnvConfig,
)
from lerobot_robot_simulated_arm.environment import SimulatedArmEnv  # noqa: E402
from lerobot_robot_simulated_arm.scripted_hand import minimum_jerk  # noqa: E402
from lerobot_robot_simulated_arm.table import HOME  # noqa: E402

REPOSITORY = TESTS.parent


@pytest.fixture
def arm(tmp_path: Path) -> Any:
    made = SimulatedArm(SimulatedArmConfig(log=tmp_path / "arm.npz", calibration_dir=tmp_path, seed=5))
    made.connect()
    yield made
    if made.is_connected:
        made.disconnect()


def settle(arm: Any, goal: np.ndarray) -> None:
    """A second of physics, without waiting for it."""
    arm.table.command(goal)
    for _ in range(round(1 / arm.table.period)):
        arm._step()


def test_the_robot_and_its_simulator_see_the_same_in_the_same_units(arm):
    env = SimulatedArmEnv(arm.config.image_size, episode_length=10)
    simulated, _ = env.reset(seed=arm.config.seed)
    real = arm.get_observation()
    np.testing.assert_allclose(list(real.values())[:6], simulated["agent_pos"], atol=0.1)
    for camera, image in simulated["pixels"].items():
        assert image.std() > 10
        assert np.abs(real[camera].astype(int) - image).mean() < 0.5
    env.close()


def test_whoever_reaches_for_the_cube_touches_it_and_whoever_waits_does_not():
    env = SimulatedArmEnv(64, episode_length=60)
    env.look(False)
    for seed in range(20):
        env.reset(seed=seed)
        goal = env._table.reach()
        outcomes = [env.step(HOME + minimum_jerk(step / 45) * (goal - HOME)) for step in range(60)]
        assert outcomes[-1][4]["is_success"], seed
        env.reset(seed=seed)
        assert not any(env.step(HOME)[4]["is_success"] for _ in range(30)), seed
    env.close()


def test_when_the_arm_comes_home_the_cube_is_put_elsewhere_and_the_log_knows_which_it_touched(arm, tmp_path):
    first = arm.table.cube
    settle(arm, arm.table.reach())
    assert arm.table.touched
    np.testing.assert_array_equal(arm.table.cube, first)
    settle(arm, HOME)
    assert not arm.table.touched and np.linalg.norm(arm.table.cube - first) > 0.001
    second = arm.table.cube
    arm.disconnect()
    with np.load(tmp_path / "arm.npz") as log:
        np.testing.assert_array_equal(log["cubes"], [first, second])
        assert log["touched"].tolist() == [True, False]


def test_the_hand_leads_to_the_cube_by_the_clock_and_back(arm, tmp_path, monkeypatch):
    clock = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: clock)
    config = ScriptedHandConfig(
        calibration_dir=tmp_path, episode_time_s=3, reset_time_s=2, reach_time_s=1.5, tremor_std=0.0
    )
    hand = ScriptedHand(config)
    goals = {}
    for clock in (0.0, 1.5, 3.0, 4.0, 5.1):
        goals[clock] = np.array(list(hand.get_action().values()))
    for at_home in (0.0, 4.0, 5.1):
        np.testing.assert_allclose(goals[at_home], HOME)
    for there in (1.5, 3.0):
        np.testing.assert_allclose(goals[there], arm.table.reach())


def test_degrees_of_the_interface_are_measured_in_rad_beside_the_fingertip_in_metres():
    env = chunked_env(SimulatedArmEnvConfig(), "simulated_arm", 0)
    observation = env.reset_to(Start("simulated_arm", 0, 0, 3))
    state = observation["observation.state"].double().numpy()
    np.testing.assert_allclose(env.joints, np.deg2rad(state[:5]), atol=1e-6)
    outcome = env.step_chunk(np.tile(state, (8, 1)))
    assert outcome.joints is not None and outcome.joints.shape == (8, 5)
    assert outcome.positions.shape == (8, 3) and env.embodiment.unit == "m"
    np.testing.assert_array_equal(outcome.positions[-1], env.simulator._table.tip)
    env.close()


def test_grpo_rewards_the_joints_and_an_evaluation_reports_them_beside_the_fingertip(
    tmp_path, monkeypatch, capsys
):
    policy = arm_checkpoint(tmp_path / "policy")
    env = ["--env.type=simulated_arm", "--env.episode_length=12", f"--policy.path={policy}"]
    run = [f"--output_dir={tmp_path / 'run'}", "--steps=1", "--n_workers=0", "--algorithm.n_groups=1"]
    reward = ["--algorithm.group_size=2", "--algorithm.reward.signal=joint_jerk_rms"]
    monkeypatch.setattr(sys, "argv", ["smoothvla", "grpo", *env, *run, *reward])
    assert main() == 0, capsys.readouterr().err
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert metrics["joint_jerk_rms"] > metrics["jerk_rms"] > 0, "the arm is shorter than a metre"

    held_out = ["--eval.n_episodes=1", "--eval.n_workers=0", f"--output_dir={tmp_path / 'eval'}"]
    monkeypatch.setattr(sys, "argv", ["smoothvla", "eval", *env, *held_out])
    assert main() == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "jerk RMS, m/s³" in printed and "joints' jerk RMS, rad/s³" in printed


@pytest.mark.slow
def test_the_whole_path_from_the_recorder_to_the_table_goes_on_where_it_was(tmp_path):
    sizes = ["--demonstrations=2", "--episode_s=2", "--sft_steps=4", "--sft_batch_size=4", "--rollouts=2"]
    sizes += ["--grpo_steps=1", "--n_groups=1", "--group_size=2", "--eval_episodes=2", "--n_workers=1"]
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "arm_path.py"), f"--output_dir={tmp_path}"]
    for attempt in range(2):
        ran = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
        assert ran.stdout.count("Done before.") == (0 if attempt == 0 else 9)
    table = (tmp_path / "table.md").read_text()
    assert table in ran.stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert [row[1] for row in rows[2:]] == ["2"] * 6
    # What was recorded in real time may be too short to have a jerk; the simulator's never is.
    assert "rad/s³" in rows[0][3] and all(row[3] != "-" for row in rows[5:])
