"""Runs that roll the next iteration out while they learn: the real command, with a worker process.

The environment is the one that a user would register, `slide`, which a random policy solves now and then.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from builders import tiny_smoothvla_in
from easy_runs import log_of

# The environment is found as the module of a plugin would be.
COMMAND = "import environments, sys; from lerobot_smoothvla.cli.main import main; sys.exit(main())"
SETTINGS = ("--env.type=slide", "--n_workers=1", "--seed=3", "--algorithm.n_groups=2", "--algorithm.lr=1e-3")
OVERLAP = "--rollout.overlap=true"
OF_THE_ROLLOUTS = ("success_rate", "jerk_rms", "smoothness", "episode_steps")


@pytest.fixture(scope="module")
def warm_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_smoothvla_in("slide", tmp_path_factory.mktemp("warm_start"))


def start(output: Path, *arguments: str) -> subprocess.Popen[bytes]:
    search = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "grpo", f"--output_dir={output}", *arguments],
        env={**os.environ, "PYTHONPATH": search},
        stdin=subprocess.DEVNULL,
    )


def rolled_out(output: Path) -> list[list[float]]:
    return [[line[name] for name in OF_THE_ROLLOUTS] for line in log_of(output)]


def test_the_policy_before_the_last_update_acts(warm_start: Path, tmp_path: Path):
    overlapping, still = tmp_path / "overlapping", tmp_path / "still"
    shared = (f"--policy.path={warm_start}", *SETTINGS, "--steps=3")
    runs = [start(overlapping, *shared, OVERLAP), start(still, *shared, "--algorithm.lr=1e-30")]
    assert [run.wait(300) for run in runs] == [0, 0]
    first, second = rolled_out(overlapping), rolled_out(still)
    # Nothing was learned before the second iteration was begun, and something before the third.
    assert first[:2] == second[:2] and first[2] != second[2]


def test_a_run_that_is_asked_to_end_leaves_no_rollout_behind(warm_start: Path, tmp_path: Path):
    output = tmp_path / "run"
    run = start(output, f"--policy.path={warm_start}", *SETTINGS, OVERLAP, "--steps=1000", "--save_freq=0")
    while not (output / "metrics.jsonl").exists():
        assert run.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(run.pid).children(recursive=True)
    assert workers
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 128 + signal.SIGTERM
    _, left = psutil.wait_procs(workers, timeout=10)
    assert not left
    assert (output / "checkpoints" / "last").readlink() == Path(f"{len(log_of(output)):06d}")
