"""Two processes learn what one does; `accelerate launch` starts them, on real LIBERO."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from easy_runs import RUN, log_of
from safetensors.torch import load_file

from lerobot_smoothvla.grpo.ranks import Ranks

LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")
PROGRAM = """import sys
from easy_task import set_an_easy_task
from lerobot_smoothvla.cli.main import main
set_an_easy_task()
sys.exit(main())
"""
# Minibatches whose chunks both ranks have, or only one, and groups of which the first rank has one of three.
SETTINGS = (*RUN, "--steps=1", "--algorithm.n_groups=3", "--algorithm.minibatch_size=3")


@pytest.fixture(scope="module")
def settings() -> tuple[str, ...]:
    return SETTINGS


@pytest.fixture(scope="module")
def of_two(warm_start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output directory of a run by two processes, without GPUs as the flag of their launcher has them."""
    output = tmp_path_factory.mktemp("runs") / "of_two"
    program = output.with_suffix(".py")
    program.write_text(PROGRAM)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = subprocess.run(
        [
            *LAUNCH,
            *("--multi_gpu", "--num_processes=2", f"--main_process_port={port}", str(program), "grpo"),
            *(f"--output_dir={output}", f"--policy.path={warm_start}", *SETTINGS),
        ],
        env={**os.environ, "PYTHONPATH": path, "WANDB_DIR": str(output.parent)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    return output


def test_two_processes_take_the_step_of_one(uninterrupted, of_two, warm_start):
    one, two = (
        load_file(run / "checkpoints/last/pretrained_model/model.safetensors")
        for run in (uninterrupted, of_two)
    )
    before = load_file(warm_start / "model.safetensors")
    moved = max((one[name] - before[name]).abs().max().item() for name in one)
    apart = max((one[name] - two[name]).abs().max().item() for name in one)
    # The same sum in another order; AdamW divides by its root, so that small gradients are large in it.
    assert moved > 0 and apart < 0.02 * moved


def test_what_is_logged_is_of_all_groups_and_logged_once(uninterrupted, of_two):
    (one,), (two,) = log_of(uninterrupted), log_of(of_two)
    assert one["n_chunks"] > 0 and one["n_minibatches"] > 2
    for name in one.keys() - {"rollout_s", "update_s"}:
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name
    assert len((of_two / "provenance.jsonl").read_text().splitlines()) == 1


def test_more_processes_than_groups_are_refused(warm_start, tmp_path, monkeypatch, capsys):
    from lerobot_smoothvla.cli.main import main

    monkeypatch.setattr("lerobot_smoothvla.cli.grpo.launched", lambda device: Ranks(0, 4))
    flags = [f"--policy.path={warm_start}", f"--output_dir={tmp_path / 'run'}", *SETTINGS]
    monkeypatch.setattr("sys.argv", ["smoothvla", "grpo", *flags])
    assert main() == 2
    assert "`n_groups` should be at least 4, a group for each process" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_whole_and_follow_one_another(size):
    things = list(range(11))
    shared = [thing for rank in range(size) for thing in things[Ranks(rank, size).share(11)]]
    assert shared == things
    tensor = torch.ones(2)
    Ranks().sum([tensor])
    assert tensor.tolist() == [1, 1] and Ranks().gather("x") == ["x"]


def test_a_launcher_that_is_told_to_split_the_weights_is_refused(tmp_path):
    config = "--use_fsdp --fsdp_version=2 --num_processes=2 --num_machines=1 --mixed_precision=no"
    launch = [*LAUNCH, *config.split()]
    program = tmp_path / "program.py"
    program.write_text("from lerobot_smoothvla.grpo.ranks import launched\nlaunched('cpu')\n")
    result = subprocess.run([*launch, str(program)], capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    assert "told to use FSDP" in result.stderr and "--multi_gpu" in result.stderr
