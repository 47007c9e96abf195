"""GRPO runs by the real command on real LIBERO, with a task that a random policy solves now and then."""

import atexit
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from builders import prepare
from easy_task import set_an_easy_task

ENV = ("--env.type=libero", "--env.task=libero_object", "--env.task_ids=[0]", "--env.episode_length=16")
ENV += ("--env.observation_height=64", "--env.observation_width=64")
RUN = (*ENV, "--steps=2", "--save_freq=1", "--n_workers=0", "--seed=3", "--algorithm.n_groups=1")
RUN += ("--algorithm.group_size=4", "--algorithm.minibatch_size=4", "--algorithm.lr=1e-4")
WITH_WORKERS = (*RUN, "--env.type=easy_libero", "--n_workers=1")
"""Flags of `start_with_workers`."""
RUN += ("--wandb.enable=true", "--wandb.mode=offline", "--wandb.disable_artifact=true")

# A process a run, forked from one that has imported what takes 20 s and has started nothing.
FORKING = mp.get_context("forkserver")
FORKING.set_forkserver_preload(["lerobot_smoothvla.cli.grpo", "lerobot.envs.libero", "wandb", "peft"])


@dataclass(frozen=True)
class Run:
    """The command in a process of its own, and the file that keeps what it says."""

    process: mp.process.BaseProcess
    log: Path


def start_run(
    output: Path,
    *arguments: str,
    policy_type: str = "smoothvla",
    distance: float = 0.12,
    rank: int = 0,
) -> Run:
    """Start the command.

    Args:
        output: Its output directory.
        arguments: Its other flags.
        policy_type: Of the policy.
        distance: That the gripper has to move by, m.
        rank: Of the process, where the output directory has several.
    """
    log = output.with_suffix(f".{rank}.log")
    environment = {**os.environ, "WANDB_DIR": str(output)}
    command = ("smoothvla", "grpo", f"--output_dir={output}", *arguments)
    task = (command, environment, log, policy_type, distance)
    process = FORKING.Process(target=_smoothvla, args=task, daemon=True)
    process.start()
    return Run(process, log)


def start_with_workers(output: Path, *arguments: str, **settings: Any) -> subprocess.Popen[bytes]:
    """Start the command as a user does, so that it can have worker processes, which a forked one cannot.

    Args:
        output: Its output directory.
        arguments: Its other flags.
        settings: Of `Popen`; by default it says what it says into `<output>.log`.
    """
    command = "import easy_task, sys; from lerobot_smoothvla.cli.main import main; sys.exit(main())"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with output.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", command, "grpo", f"--output_dir={output}", *arguments],
            env={**os.environ, "PYTHONPATH": path},
            **({"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log} | settings),
        )


def processes_of(run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Those that the command has started, workers and what they are forked from; none once it has ended."""
    try:
        return psutil.Process(run.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for_checkpoint(run: subprocess.Popen[bytes], output: Path, iterations: int) -> None:
    while not (output / f"checkpoints/{iterations:06d}").exists():
        assert run.poll() is None, output.with_suffix(".log").read_text()
        time.sleep(0.02)


def assert_gone(processes: Sequence[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=20)
    assert not left


def finish(run: Run) -> None:
    run.process.join(timeout=500)
    assert run.process.exitcode == 0, run.log.read_text()


def log_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def timeless_log_of(output: Path) -> list[dict]:
    """The log without what depends on how fast the machine was."""
    return [{k: v for k, v in line.items() if not k.endswith("_s")} for line in log_of(output)]


def same_state(one: Path, other: Path, weights: str = "model.safetensors") -> bool:
    """Whether the last checkpoints of two runs have the same weights and optimizer, byte by byte."""
    names = (f"pretrained_model/{weights}", "training_state/optimizer_state.safetensors")
    pairs = [[run / "checkpoints/last" / name for run in (one, other)] for name in names]
    return all(first.read_bytes() == second.read_bytes() for first, second in pairs)


def kill_after(run: Run, output: Path, iterations: int) -> None:
    """Kill it as soon as it has a checkpoint of so many iterations, before it has another one."""
    while not (output / f"checkpoints/{iterations:06d}").exists() and run.process.is_alive():
        time.sleep(0.05)
    run.process.kill()
    run.process.join()
    assert run.process.exitcode == -signal.SIGKILL, run.log.read_text()
    assert not (output / f"checkpoints/{iterations + 1:06d}").exists()


def evaluate_in_stock_lerobot(run: Path, output: Path) -> str:
    """What `lerobot-eval` writes about the run's last policy; not forked: it finds the plugin by itself."""
    command = [str(Path(sys.executable).parent / "lerobot-eval"), *ENV, f"--output_dir={output}"]
    command += [f"--policy.path={run / 'checkpoints/last/pretrained_model'}"]
    command += ["--eval.n_episodes=1", "--eval.batch_size=1"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    return (output / "eval_info.json").read_text()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)


def _smoothvla(
    command: tuple[str, ...], environment: dict[str, str], log: Path, policy_type: str, distance: float
) -> None:
    """What the forked process does: the command, with an easy task."""
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(environment)
    sys.argv = list(command)
    # As in a process that was not forked, no two runs begin with the same ones. (`random` sees to it itself.)
    np.random.seed()
    torch.seed()
    set_an_easy_task(distance)
    prepare(policy_type)
    from lerobot_smoothvla.cli.main import main

    try:
        sys.exit(main())
    finally:
        atexit._run_exitfuncs()  # Such a process leaves them out, and W&B writes its last there.
