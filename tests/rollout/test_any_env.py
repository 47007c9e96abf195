"""GRPO, evaluation and worker processes run in PushT and ALOHA as they do in LIBERO."""

import json
import sys

import pytest
import torch
from builders import tiny_smoothvla_in
from lerobot.envs.configs import PushtEnv

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.rollout.engine import RolloutRequest
from lerobot_smoothvla.rollout.local import make_engine

UNITS = {"pusht": "px", "aloha": "rad"}
HORIZON = 12


@pytest.mark.parametrize("env_type", UNITS)
def test_grpo_and_evaluation_run_by_their_commands(env_type, tmp_path, monkeypatch, capsys):
    policy = tiny_smoothvla_in(env_type, tmp_path / "policy")
    monkeypatch.setattr("lerobot_smoothvla.cli.main.prepare_libero", lambda **_: pytest.fail("LIBERO starts"))
    env = [f"env={env_type}", f"--env.episode_length={HORIZON}", f"--policy.path={policy}"]
    settings = ["--steps=1", "--n_workers=0", "--algorithm.n_groups=1", "--algorithm.group_size=2"]
    run = [f"--output_dir={tmp_path / 'run'}", *settings]
    monkeypatch.setattr(sys, "argv", ["smoothvla", "grpo", *env, *run])
    assert main() == 0, capsys.readouterr().err
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["episode_steps"] == HORIZON and json.loads(line)["jerk_rms"] > 0

    held_out = ["--eval.n_episodes=2", "--eval.n_workers=0", "--eval.n_videos=1"]
    monkeypatch.setattr(
        sys, "argv", ["smoothvla", "eval", *env, *held_out, f"--output_dir={tmp_path / 'eval'}"]
    )
    assert main() == 0, capsys.readouterr().err
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())["policy"]
    assert [episode["seed"] for episode in info["per_episode"]] == [1000, 1001]
    unit = UNITS[env_type]
    assert info["unit"] == unit and f"jerk RMS, {unit}/s³" in capsys.readouterr().out
    (video,) = (tmp_path / "eval").rglob("*.mp4")
    assert video.name == "init_0_seed_1000.mp4" and video.stat().st_size > 0


def test_a_process_gives_the_episode_of_the_serial_worker_bit_by_bit(tmp_path):
    env = PushtEnv(episode_length=HORIZON)
    actor = load_actor(load_actor_config(tiny_smoothvla_in("pusht", tmp_path), env_config=env))
    request = RolloutRequest(Start("pusht", 0, 0, 5), 1, DeployedSampler())
    episodes = []
    for n_workers in (0, 1):
        engine = make_engine(env, actor, n_workers)
        episodes += engine.run([request])
        engine.close()
    first, second = episodes
    assert first.positions.shape == (HORIZON + 1, 2) and first.embodiment.unit == "px"
    assert first.embodiment == second.embodiment
    for name in ("positions", "actions", "chunks"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert torch.equal(first.observations["observation.image"], second.observations["observation.image"])
    assert first.observations["observation.image"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env.obs_type=pixels"], "The position of environments of type 'pusht' is read from `agent_pos`"),
        (["--env.episode_length=0"], "`episode_length` should be at least 1 control step, got 0"),
    ],
)
@pytest.mark.parametrize("command", ["grpo", "eval"])
def test_an_environment_that_cannot_be_learnt_in_is_one_paragraph(
    command, arguments, message, tmp_path, monkeypatch, capsys
):
    policy = tiny_smoothvla_in("pusht", tmp_path / "policy")
    output = tmp_path / "output"
    flags = ["env=pusht", f"--policy.path={policy}", f"--output_dir={output}", *arguments]
    monkeypatch.setattr(sys, "argv", ["smoothvla", command, *flags])
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"smoothvla {command}: error: ") and message in error
    assert not output.exists()
