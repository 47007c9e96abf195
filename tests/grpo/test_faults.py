"""Runs that are asked to end, that fill the disk or the numbers, by the real command on real LIBERO."""

import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest
from easy_runs import (
    RUN,
    WITH_WORKERS,
    Run,
    assert_gone,
    finish,
    log_of,
    processes_of,
    same_state,
    start_run,
    start_with_workers,
    timeless_log_of,
    wait_for_checkpoint,
)

SETTINGS = tuple(flag for flag in RUN if not flag.startswith("--wandb"))
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def settings() -> tuple[str, ...]:
    return SETTINGS


def wait_for_lines(output: Path, n: int, run: Run) -> None:
    while not (output / "metrics.jsonl").exists() or len(log_of(output)) < n:
        assert run.process.is_alive(), run.log.read_text()
        time.sleep(0.05)


def asked_to_end(output: Path, warm_start: Path, number: int) -> Run:
    """A run that gets a signal in its second iteration, of which the first one was not saved."""
    never = (*SETTINGS, "--save_freq=0", "--steps=3")
    run = start_run(output, f"--policy.path={warm_start}", *never)
    wait_for_lines(output, 1, run)
    os.kill(run.process.pid, number)
    run.process.join(30)  # as the promise says
    return run


def shared_memory_of(processes: list[psutil.Process]) -> set[str]:
    """What they have mapped; tests beside this one have some, too."""
    maps = "".join(Path(f"/proc/{process.pid}/maps").read_text() for process in processes)
    return {path.name for path in SHARED_MEMORY.iterdir() if f"{path}\n" in maps}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_saves_what_it_has_done_and_goes_on_as_if_it_had_not(
    uninterrupted, warm_start, tmp_path, number
):
    output = tmp_path / "run"
    run = asked_to_end(output, warm_start, number)
    assert run.process.exitcode == 128 + number, run.log.read_text()
    done = len(log_of(output))
    assert (output / "checkpoints" / "last").readlink() == Path(f"{done:06d}")
    assert (
        f"after {done} of 3 iterations, which are saved; continue with --resume=true" in run.log.read_text()
    )

    finish(start_run(output, "--resume=true", "--steps=2", "--save_freq=1"))
    assert timeless_log_of(output) == timeless_log_of(uninterrupted)
    assert same_state(uninterrupted, output)


def test_a_run_that_is_under_way_is_not_resumed_by_another_process(warm_start, tmp_path):
    output = tmp_path / "run"
    run = start_run(output, f"--policy.path={warm_start}", *SETTINGS, "--steps=1000")
    wait_for_lines(output, 1, run)
    second = start_run(output, "--resume=true", rank=1)
    second.process.join(120)
    assert second.process.exitcode == 2
    assert f"Another process writes to '{output}'." in second.log.read_text()

    assert run.process.is_alive()
    run.process.terminate()
    run.process.join(30)
    assert [line["iteration"] for line in log_of(output)] == list(range(1, len(log_of(output)) + 1))


def test_a_second_ctrl_c_ends_it_at_once_and_leaves_nothing_running(warm_start, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "lerobot_smoothvla.cli.main", "grpo", f"--policy.path={warm_start}"]
    # A shell lets what it starts in the background ignore Ctrl-C, and its children inherit that.
    with subprocess.Popen(
        [*command, f"--output_dir={output}", *SETTINGS, "--n_workers=1", "--env.episode_length=200"],
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as run:
        while not (output / "checkpoints" / "last").exists():
            assert run.poll() is None
            time.sleep(0.05)
        started = psutil.Process(run.pid).children(recursive=True)
        assert started
        shared = shared_memory_of([psutil.Process(run.pid), *started])
        os.kill(run.pid, signal.SIGINT)
        time.sleep(0.02)  # Two at once may be one.
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(3) == 130
    _, left = psutil.wait_procs(started, timeout=10)
    assert not left
    assert not shared & {path.name for path in SHARED_MEMORY.iterdir()}


def start_and_turn_away(
    ends: tuple[int, int], output: Path, *arguments: str, **settings
) -> subprocess.Popen[bytes]:
    """A run that in its first iterations loses whoever reads what it says, at the first of two ends."""
    ours, its = ends
    run = start_with_workers(output, *arguments, **{"stdin": its, "stdout": its, "stderr": its}, **settings)
    os.close(its)
    while not (output / "metrics.jsonl").exists():
        assert run.poll() is None
        if select.select([ours], [], [], 0.05)[0]:
            os.read(ours, 65_536)
    os.close(ours)
    return run


def take_the_terminal() -> None:
    """As a shell lets its child do, also where these tests run under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY)


def test_a_run_whose_terminal_is_closed_saves_what_it_has_done_and_leaves_nothing_running(
    warm_start, tmp_path
):
    output = tmp_path / "run"
    run = start_and_turn_away(
        os.openpty(),
        output,
        *(f"--policy.path={warm_start}", *WITH_WORKERS, "--save_freq=0", "--steps=1000"),
        start_new_session=True,
        preexec_fn=take_the_terminal,
    )
    started = processes_of(run)
    try:
        assert run.wait(30) == 128 + signal.SIGHUP
    finally:
        run.kill()
    assert_gone(started)
    done = len(log_of(output))
    assert done >= 1 and (output / "checkpoints/last").readlink() == Path(f"{done:06d}")


@pytest.mark.slow
def test_a_run_that_writes_into_a_broken_pipe_goes_on_to_its_end(warm_start, tmp_path):
    output = tmp_path / "run"
    run = start_and_turn_away(
        os.pipe(), output, f"--policy.path={warm_start}", *WITH_WORKERS, "--save_freq=0", "--steps=4"
    )
    started = processes_of(run)
    assert started and run.wait(120) in (0, 120)  # That is Python's own, where something is left to print.
    assert_gone(started)
    assert len(log_of(output)) == 4 and (output / "checkpoints/last").readlink() == Path("000004")


def test_a_killed_learner_leaves_no_worker_and_goes_on_as_if_it_had_not_been(
    uninterrupted, warm_start, tmp_path
):
    """Which had none, so that these roll out what the learner itself would."""
    output = tmp_path / "run"
    run = start_with_workers(output, f"--policy.path={warm_start}", *WITH_WORKERS)
    wait_for_checkpoint(run, output, 1)
    started = processes_of(run)
    assert started
    run.kill()
    assert run.wait() == -signal.SIGKILL and not (output / "checkpoints/000002").exists()
    assert_gone(started)

    assert start_with_workers(output, "--resume=true").wait(300) == 0
    assert same_state(uninterrupted, output)
    assert timeless_log_of(uninterrupted) == timeless_log_of(output)


def test_a_resumed_run_keeps_its_settings_but_where_and_how_long(uninterrupted, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output, symlinks=True)
    log = output.with_suffix(".0.log")
    changes = ("--algorithm.lr=0.5", "--algorithm.freeze=[vision,vlm]", "--policy.n_action_steps=2")
    run = start_run(output, "--resume=true", "--steps=3", *changes)
    run.process.join(300)
    assert run.process.exitcode == 2
    said = log.read_text()
    assert "--algorithm.lr=0.0001 there, 0.5 here" in said and "--policy.n_action_steps=" in said
    assert "--algorithm.freeze=[] there, ['vision', 'vlm'] here" in said
    assert "--steps" not in said.partition("error:")[2] and "and a new --output_dir" in said
    finish(start_run(output, "--resume=true", "--steps=3", "--save_freq=3"))
    assert (
        "Resumed with other settings: --save_freq=1 there, 3 here; --steps=2 there, 3 here" in log.read_text()
    )


def test_a_run_whose_gradients_explode_ends_with_a_diagnosis(warm_start, tmp_path):
    output = tmp_path / "run"
    steep = ("--algorithm.lr=1e30", "--algorithm.epochs=5", "--algorithm.minibatch_size=1", "--save_freq=0")
    run = start_run(output, f"--policy.path={warm_start}", *SETTINGS, *steep)
    run.process.join(300)
    said = run.log.read_text()
    assert run.process.exitcode == 2, said
    assert "5 minibatches in a row had no finite gradient in iteration 1" in said
    assert re.search(r"The weights are (finite|not finite): ", said)
    assert (output / "dropped" / "000001_0.safetensors").is_file()
    # What was saved is the warm start: of the first iteration nothing is left.
    first = output / "checkpoints/last/pretrained_model/model.safetensors"
    assert (
        first.read_bytes() == (output / "checkpoints/000000/pretrained_model/model.safetensors").read_bytes()
    )


def test_a_full_disk_ends_a_run_cleanly_and_it_goes_on_with_more_space(warm_start, small_disk):
    output = small_disk / "run"
    run = start_run(output, f"--policy.path={warm_start}", *SETTINGS)
    while not (output / "checkpoints" / "000000").exists():
        assert run.process.is_alive(), run.log.read_text()
        time.sleep(0.05)
    (small_disk / "filler").write_bytes(b"\0" * (shutil.disk_usage(small_disk).free - 65_536))
    run.process.join(300)
    said = run.log.read_text()
    assert run.process.exitcode == 2, said
    assert re.search(r"The checkpoint \S+000001 could not be written .* Make space and continue", said)
    assert "Traceback" not in said
    assert (output / "checkpoints" / "last").readlink() == Path("000000")
    (small_disk / "filler").unlink()
    finish(start_run(output, "--resume=true"))
    assert [line["iteration"] for line in log_of(output)] == [1, 2]
