"""GRPO runs by the real command on real LIBERO, with a task that a random policy solves now and then."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ENV = ("--env.type=libero", "--env.task=libero_object", "--env.task_ids=[0]", "--env.episode_length=16")
ENV += ("--env.observation_height=64", "--env.observation_width=64")
RUN = (*ENV, "--steps=2", "--save_freq=1", "--n_workers=0", "--seed=3", "--algorithm.n_groups=1")
RUN += ("--algorithm.group_size=4", "--algorithm.minibatch_size=4", "--algorithm.lr=1e-4")
RUN += ("--wandb.enable=true", "--wandb.mode=offline", "--wandb.disable_artifact=true")

# A policy with random weights never picks anything up, so that nothing would be learned and a kill could not
# be told from an uninterrupted run. Therefore a task that it does solve now and then: to move the gripper by
# 12 cm. All else is the real command on the real simulator.
SMOOTHVLA_WITH_AN_EASY_TASK = """
import os
import sys
from builders import prepare
from lerobot_smoothvla.envs.assets import prepare_libero
prepare_libero(allow_download=False)
from lerobot.envs.libero import LiberoEnv
from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

reset_to = ChunkedLiberoEnv.reset_to

def reset_and_look(env, start):
    observation = reset_to(env, start)
    env.home = env.position
    return observation

def step(env, action):
    observation, reward, _, truncated, info = LiberoEnv.step(env, action)
    return observation, reward, bool(((env.position - env.home) ** 2).sum() > 0.12**2), truncated, info

ChunkedLiberoEnv.reset_to, ChunkedLiberoEnv.step = reset_and_look, step
prepare(os.environ["POLICY_TYPE"])
sys.exit(main())
"""


def start_run(output: Path, *arguments: str, policy_type: str = "smoothvla") -> subprocess.Popen[str]:
    tests = str(Path(__file__).parent)
    path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-c", SMOOTHVLA_WITH_AN_EASY_TASK, "grpo", f"--output_dir={output}", *arguments],
        env={**os.environ, "WANDB_DIR": str(output), "PYTHONPATH": path, "POLICY_TYPE": policy_type},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(run: subprocess.Popen[str]) -> None:
    said, _ = run.communicate(timeout=500)
    assert run.returncode == 0, said


def log_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def kill_after(run: subprocess.Popen[str], output: Path, iterations: int) -> None:
    """Kill it as soon as it has a checkpoint of so many iterations, before it has another one."""
    while not (output / f"checkpoints/{iterations:06d}").exists() and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert not (output / f"checkpoints/{iterations + 1:06d}").exists()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)
