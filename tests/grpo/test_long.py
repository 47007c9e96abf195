"""What takes hours, run by `make test-long`: kills, and a soak. docs/reliability.md has the last results."""

import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from easy_runs import RUN, Run, finish, log_of, same_state, start_run, timeless_log_of

pytestmark = pytest.mark.long
KILLS = 20
SOAK_S = 60 * float(os.environ.get("SOAK_MINUTES", "120"))
_EVERY_S = 10.0
_STEPS = 12


@pytest.fixture(scope="module")
def settings() -> tuple[str, ...]:
    return (*(flag for flag in RUN if not flag.startswith(("--wandb", "--steps"))), f"--steps={_STEPS}")


def kill_while_it_writes(output: Path, run: Run) -> None:
    """As soon as there is an unfinished checkpoint."""
    while run.process.is_alive() and not list((output / "checkpoints").glob(".*")):
        time.sleep(0.001)
    run.process.kill()


def kill_some_time(run: Run, chance: random.Random) -> None:
    run.process.join(chance.uniform(1.0, 30.0))
    run.process.kill()


def test_a_run_that_is_killed_many_times_ends_with_the_same_weights(
    uninterrupted, warm_start, settings, tmp_path
):
    output, chance, kills = tmp_path / "killed", random.Random(0), 0
    while kills < KILLS:
        resumes = (output / "checkpoints" / "last").exists()
        again = ("--resume=true",) if resumes else (f"--policy.path={warm_start}", *settings)
        run = start_run(output, *again)
        if kills % 2:
            kill_while_it_writes(output, run)
        else:
            kill_some_time(run, chance)
        run.process.join()
        if run.process.exitcode == 0:
            break
        kills += 1
        last = output / "checkpoints" / "last"
        if last.is_symlink():
            assert (last / "training_state" / "optimizer_param_groups.json").is_file()
            assert (last / "pretrained_model" / "model.safetensors").is_file()
        elif output.exists():  # Killed before its first checkpoint was whole.
            shutil.rmtree(output)
    if run.process.exitcode != 0:
        finish(start_run(output, "--resume=true"))
    print(f"{kills} kills, {len(log_of(output))} iterations")
    assert kills >= KILLS // 2
    assert same_state(uninterrupted, output)
    assert timeless_log_of(uninterrupted) == timeless_log_of(output)


def test_memory_and_file_handles_stay_flat(warm_start, settings, tmp_path):
    output = tmp_path / "soak"
    long = ("--steps=1000000", "--save_freq=10", "--env.episode_length=100")
    run = start_run(output, f"--policy.path={warm_start}", *settings, *long)
    began, samples = time.monotonic(), []
    while time.monotonic() < began + SOAK_S:
        time.sleep(_EVERY_S)
        assert run.process.is_alive(), run.log.read_text()
        learner = psutil.Process(run.process.pid)
        processes = [learner, *learner.children(recursive=True)]
        sizes = [process.memory_info().rss for process in processes]
        handles = sum(process.num_fds() for process in processes)
        samples.append((time.monotonic() - began, sizes[0], sum(sizes[1:]), handles))
    run.process.terminate()
    run.process.join(30)
    assert run.process.exitcode == 143
    hours, learner_mb, workers_mb, handles = np.array(samples).T / [[3600], [1e6], [1e6], [1]]
    warm = hours > hours[-1] / 4
    print(f"{len(log_of(output))} iterations in {hours[-1]:.2f} h")
    for name, values in {"learner, MB": learner_mb, "workers, MB": workers_mb, "handles": handles}.items():
        slope = np.polyfit(hours[warm], values[warm], 1)[0]
        print(f"{name}: {values[warm].mean():.0f}, slope {slope:+.2f} an hour")
        assert slope * hours[-1] < 0.05 * values[warm].mean()
