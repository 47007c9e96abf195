"""A path of several commands, each in a process of its own, that goes on where it was interrupted.

A stage that is done is skipped, and one that is not is run, whatever was there before.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    """

    name: str
    command: list[str]
    done: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    restarts: bool = False


def run_stages(stages: Callable[[], Sequence[Stage]], output_dir: Path) -> dict[str, float]:
    """Run what is not done yet.

    Args:
        stages: The stages, asked for again before each of them, as a command may depend on what is there.
        output_dir: Where the stages' directories are; `minutes.json` is written there.

    Returns:
        Minutes per stage, over all attempts.

    Raises:
        ChildProcessError: If a stage fails; its own message is above it.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    minutes_file = output_dir / "minutes.json"
    minutes = json.loads(minutes_file.read_text()) if minutes_file.is_file() else {}
    names = [stage.name for stage in stages()]
    for index, name in enumerate(names):
        stage = stages()[index]
        print(f"\n=== {index + 1} of {len(names)}: {name}\n$ {' '.join(stage.command)}\n", flush=True)
        if stage.done():
            print("Done before.", flush=True)
            continue
        if stage.restarts:
            shutil.rmtree(output_dir / name, ignore_errors=True)
        began = time.perf_counter()
        code = subprocess.run(stage.command, env={**os.environ, **stage.environment}, check=False).returncode
        if code != 0 or not stage.done():
            raise ChildProcessError(
                f"The stage '{name}' ended with exit code {code}; its message is above. "
                "Run the same command again to continue from here."
            )
        minutes[name] = minutes.get(name, 0.0) + (time.perf_counter() - began) / 60
        minutes_file.write_text(json.dumps(minutes, indent=2) + "\n")
    return minutes


def iterations_done(run: Path) -> int:
    """Iterations of the last checkpoint of a GRPO run, 0 without one."""
    last = run / LAST.parent
    return int(last.resolve().name) if last.is_dir() else 0
