"""A path of several commands, each in a process of its own, that goes on where it was interrupted.

A stage that is done is skipped, and one that is not is run, whatever was there before.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lerobot_smoothvla.processes import ONE_THREAD, end_with_parent

LAST = Path("checkpoints") / "last" / "pretrained_model"
"""In a training run, of `lerobot-train` and of `smoothvla grpo`."""


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: Of its directory in the output directory.
        command: Program and arguments.
        done: What is there once it has finished.
        environment: Variables it gets.
        restarts: Whether the command cannot go on with what an interrupted one left, so that goes first.
        independent: Whether it needs nothing of other independent stages, so that they may run beside it.
    """

    name: str
    command: list[str]
    done: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    restarts: bool = False
    independent: bool = False


def program(name: str) -> str:
    """A command of this environment."""
    return str(Path(sys.executable).parent / name)


def libero_flags(task: str, task_ids: Sequence[int], pixels: int, horizon: int | None = None) -> list[str]:
    """The flags of an environment.

    Args:
        task: Suites, separated by commas.
        task_ids: Tasks of each.
        pixels: Height and width of its images.
        horizon: Control steps of an episode; None for the suites' own.
    """
    return [
        "--env.type=libero",
        f"--env.task={task}",
        f"--env.task_ids={list(task_ids)}",
        f"--env.observation_height={pixels}",
        f"--env.observation_width={pixels}",
        *([] if horizon is None else [f"--env.episode_length={horizon}"]),
    ]


def sft_stage(run: Path, dataset: Sequence[str], steps: int, batch_size: int, seed: int) -> Stage:
    """Supervised training of the tiny policy.

    Args:
        run: Its output directory, of which the last part is the stage's name.
        dataset: Flags.
        steps: Updates.
        batch_size: Observations an update.
        seed: Of the training.
    """
    return Stage(
        run.name,
        [
            program("lerobot-train"),
            "policy=smoothvla_tiny",
            *dataset,
            f"--output_dir={run}",
            f"--steps={steps}",
            f"--batch_size={batch_size}",
            f"--seed={seed}",
            "--policy.push_to_hub=false",
            "--num_workers=1",
            "--log_freq=100",
            "--save_freq=0",
        ],
        (run / LAST).is_dir,
        {"OMP_NUM_THREADS": "1"},  # Training beside its data loader: each takes one of two cores.
        restarts=True,
    )


def grpo_stage(name: str, output_dir: Path, warm_start: Path, steps: int, flags: Sequence[str]) -> Stage:
    """GRPO that goes on with its last checkpoint where it has one.

    Args:
        name: Of the stage.
        output_dir: Of all stages.
        warm_start: Run that it begins from.
        steps: Iterations.
        flags: All others.
    """
    run = output_dir / name
    resumes = (run / LAST).is_dir()
    return Stage(
        name,
        [
            program("smoothvla"),
            "grpo",
            *flags,
            *([] if resumes else [f"--policy.path={warm_start / LAST}"]),
            f"--resume={str(resumes).lower()}",
            f"--output_dir={run}",
            f"--steps={steps}",
            "--save_freq=1",
        ],
        lambda: iterations_done(run) >= steps,
        restarts=not resumes,
        independent=True,
    )


def run_stages(
    stages: Callable[[], Sequence[Stage]], output_dir: Path, n_beside: int = 1
) -> dict[str, float]:
    """Run what is not done yet.

    Args:
        stages: The stages, asked for again before each of them, as a command may depend on what is there.
        output_dir: Where the stages' directories are; `minutes.json` is written there.
        n_beside: How many of those that are `independent` run at a time. If more than one, each says
            what it says in `<name>.log`, and computes in one thread.

    Returns:
        Minutes per stage, over all attempts.

    Raises:
        ChildProcessError: If a stage fails; what it said is above, or in its log.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    minutes_file = output_dir / "minutes.json"
    minutes = json.loads(minutes_file.read_text()) if minutes_file.is_file() else {}
    running: list[_Running] = []

    def finish_one() -> None:
        ended = _first_to_end(running)
        running.remove(ended)
        name = ended.stage.name
        if ended.process.returncode != 0 or not ended.stage.done():
            raise ChildProcessError(
                f"The stage '{name}' ended with exit code {ended.process.returncode}; its message is "
                f"{ended.log or 'above'}. Run the same command again to continue from here."
            )
        minutes[name] = minutes.get(name, 0.0) + (time.perf_counter() - ended.began) / 60
        minutes_file.write_text(json.dumps(minutes, indent=2) + "\n")

    names = [stage.name for stage in stages()]
    try:
        for index, name in enumerate(names):
            while running and not (
                len(running) < n_beside
                and stages()[index].independent
                and all(other.stage.independent for other in running)
            ):
                finish_one()
            stage = stages()[index]
            print(f"\n=== {index + 1} of {len(names)}: {name}\n$ {' '.join(stage.command)}\n", flush=True)
            if stage.done():
                print("Done before.", flush=True)
                continue
            if stage.restarts:
                shutil.rmtree(output_dir / name, ignore_errors=True)
            log = output_dir / f"{name}.log" if stage.independent and n_beside > 1 else None
            running.append(_Running(stage, log))
        while running:
            finish_one()
    finally:
        for left in running:
            left.process.terminate()
        for left in running:
            left.process.wait()
    return minutes


class _Running:
    """A stage's process."""

    def __init__(self, stage: Stage, log: Path | None) -> None:
        self.stage, self.log, self.began = stage, log, time.perf_counter()
        with ExitStack() as stack:
            if log:
                log.parent.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context(log.open("a")) if log else None
            self.process = subprocess.Popen(
                stage.command,
                env={**(ONE_THREAD if log else {}), **os.environ, **stage.environment},
                stdout=output,
                stderr=output and subprocess.STDOUT,
                preexec_fn=end_with_parent,  # Or the same command again would run the stage beside it.
            )


def _first_to_end(running: Sequence[_Running]) -> _Running:
    while True:
        for one in running:
            if one.process.poll() is not None:
                return one
        time.sleep(0.1)


def iterations_done(run: Path) -> int:
    """Iterations of the last checkpoint of a GRPO run, 0 without one."""
    last = run / LAST.parent
    return int(last.resolve().name) if last.is_dir() else 0
