"""A whole GRPO run on an adapter, on real LIBERO by the real command: kill, resume, stock LeRobot."""

import json
from pathlib import Path

import pytest
from easy_runs import RUN, evaluate_in_stock_lerobot, finish, kill_after, log_of, same, same_state, start_run
from safetensors.torch import load_file

LORA = (
    *RUN,
    "--peft.method_type=LORA",
    "--peft.r=4",
    "--algorithm.lr=1e-3",
    "--wandb.disable_artifact=false",
)
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def settings() -> tuple[str, ...]:
    return LORA


def test_every_iteration_trains_the_adapter(uninterrupted: Path):
    adapters = [
        load_file(uninterrupted / f"checkpoints/00000{iteration}/pretrained_model" / ADAPTER)
        for iteration in range(3)
    ]
    assert all("lora_" in key for key in adapters[0])
    assert not same(adapters[0], adapters[1]) and not same(adapters[1], adapters[2])
    assert all(line["n_minibatches"] >= 1 for line in log_of(uninterrupted))


def test_the_artifact_of_wandb_is_the_adapter(uninterrupted: Path):
    (run,) = (uninterrupted / "wandb").glob("offline-run-*/*.wandb")
    logged = run.read_bytes()
    assert b"adapter_model.safetensors" in logged and b"adapter_config.json" in logged


def test_killed_and_resumed_it_ends_with_the_same_adapter_on_the_same_base(
    uninterrupted: Path, warm_start: Path, tmp_path: Path
):
    output = tmp_path / "killed"
    kill_after(start_run(output, f"--policy.path={warm_start}", *LORA), output, iterations=1)
    finish(start_run(output, "--resume=true"))
    assert same_state(uninterrupted, output, ADAPTER)
    adapter = json.loads((output / "checkpoints/last/pretrained_model/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(warm_start)


def test_stock_lerobot_eval_runs_the_checkpoint(uninterrupted: Path, tmp_path: Path):
    assert "pc_success" in evaluate_in_stock_lerobot(uninterrupted, tmp_path / "eval")
