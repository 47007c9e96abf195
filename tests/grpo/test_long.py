"""What takes hours, run by `make test-long`: kills, and a soak. docs/reliability.md has the last results."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from easy_runs import (
    RUN,
    WITH_WORKERS,
    assert_gone,
    log_of,
    processes_of,
    same_state,
    start_with_workers,
    timeless_log_of,
)

pytestmark = pytest.mark.long
KILLS = int(os.environ.get("KILLS", "20"))
SOAK_S = 60 * float(os.environ.get("SOAK_MINUTES", "120"))
_EVERY_S = 10.0
_STEPS = f"--steps={4 * KILLS + 2}"
"""More than are done between the kills: one or two each, on a fast machine a few more."""


@pytest.fixture(scope="module")
def settings() -> tuple[str, ...]:
    return (*(flag for flag in RUN if not flag.startswith("--wandb")), _STEPS)


def unfinished(output: Path) -> set[tuple[str, int]]:
    """What writing a checkpoint has left, or has not renamed yet; by its last change, too."""
    found = set()
    for path in (output / "checkpoints").glob(".*"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.lstat().st_ctime_ns))
    return found


def n_lines(output: Path) -> int:
    log = output / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for_a_moment(kind: int, run: subprocess.Popen[bytes], output: Path, chance: random.Random) -> None:
    """While it starts (0), while it learns (1), or while it writes a checkpoint (2)."""
    lines, before = n_lines(output), unfinished(output)
    if kind == 0:
        time.sleep(chance.uniform(0, 20))
    while kind == 1 and n_lines(output) <= lines and run.poll() is None:
        time.sleep(0.01)
    while kind == 2 and not unfinished(output) - before and run.poll() is None:
        time.sleep(0.001)
    # An iteration takes longer than a second, a checkpoint some hundredths.
    time.sleep(chance.uniform(0, (0, 2, 0.03)[kind]))


def test_a_run_that_is_killed_many_times_ends_with_the_same_weights(
    uninterrupted, warm_start, settings, tmp_path
):
    """In all of them no worker is left; the uninterrupted run had none, so that they do as the serial one."""
    output, chance, torn = tmp_path / "killed", random.Random(0), 0
    for kill in range(KILLS):
        resumes = (output / "checkpoints" / "last").exists()
        first = (f"--policy.path={warm_start}", *WITH_WORKERS, _STEPS)
        before = unfinished(output)
        run = start_with_workers(output, *(["--resume=true"] if resumes else first))
        wait_for_a_moment(kill % 3, run, output, chance)
        started = processes_of(run)
        run.kill()
        assert run.wait() == -9, output.with_suffix(".log").read_text()
        assert_gone(started)
        torn += bool(unfinished(output) - before)
        last = output / "checkpoints" / "last"
        if last.is_symlink():
            assert (last / "training_state" / "optimizer_param_groups.json").is_file()
            assert (last / "pretrained_model" / "model.safetensors").is_file()
        elif output.exists():  # Killed before its first checkpoint was whole.
            shutil.rmtree(output)
    n_done = len(log_of(output))
    assert start_with_workers(output, "--resume=true").wait() == 0
    print(f"{KILLS} kills within {n_done} iterations, {torn} of them while a checkpoint was written")
    assert torn >= max(1, KILLS // 6)
    assert same_state(uninterrupted, output)
    assert timeless_log_of(uninterrupted) == timeless_log_of(output)


def written_to(processes: Sequence[psutil.Process]) -> int:
    """Bytes that are theirs alone as they wrote to them; whoever else uses a library changes the others."""
    return sum(part.private_dirty for process in processes for part in process.memory_maps())


def test_memory_and_file_handles_stay_flat(warm_start, tmp_path):
    output = tmp_path / "soak"
    long = ("--n_workers=2", "--steps=1000000", "--save_freq=10", "--env.episode_length=100")
    run = start_with_workers(output, f"--policy.path={warm_start}", *WITH_WORKERS, *long)
    while n_lines(output) < 2:  # Both workers have a simulator by then.
        time.sleep(1)
        assert run.poll() is None, output.with_suffix(".log").read_text()
    began, samples = time.monotonic(), []
    while time.monotonic() < began + SOAK_S:
        time.sleep(_EVERY_S)
        assert run.poll() is None, output.with_suffix(".log").read_text()
        processes = [psutil.Process(run.pid), *processes_of(run)]
        learner, *workers = [process.memory_info().rss for process in processes]
        handles = sum(process.num_fds() for process in processes)
        now = time.monotonic() - began
        samples.append((now, learner, sum(workers), written_to(processes[1:]), handles))
    run.terminate()
    assert run.wait(30) == 143
    hours, learner_mb, workers_mb, own_mb, handles = np.array(samples).T / [[3600], [1e6], [1e6], [1e6], [1]]
    warm = hours > hours[-1] / 4
    print(f"{len(log_of(output))} iterations in {hours[-1]:.2f} h")
    for name, values, most in (
        ("learner, MB", learner_mb, learner_mb),
        ("workers, MB", workers_mb, workers_mb),
        ("workers' own, MB", own_mb, workers_mb),  # Theirs becomes what they had shared.
        ("handles", handles, handles),
    ):
        slope = np.polyfit(hours[warm], values[warm], 1)[0]
        print(f"{name}: {values[warm].mean():.0f}, slope {slope:+.2f} an hour")
        assert slope * hours[-1] < 0.05 * most[warm].mean()
