"""How workers are started."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from lerobot_smoothvla.processes import ONE_THREAD, in_environment, started_with, worker_context
from lerobot_smoothvla.rollout.local import SharedWeights

REPORT = """
import json, os, sys
server = f"/proc/{os.getppid()}/task"
threads = [open(f"{server}/{thread}/comm").read().strip() for thread in os.listdir(server)]
report = {
    "imported": "lerobot_smoothvla.rollout.local" in sys.modules,
    "threads of the server": len(threads) - threads.count("jemalloc_bg_thd"),
    "variable": os.environ.get("SMOOTHVLA_TEST"),
}
with open(PATH, "w") as file:
    json.dump(report, file)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are not forked elsewhere")
def test_a_worker_finds_everything_imported_and_the_environment_of_its_parent(tmp_path: Path) -> None:
    for value in ("first", "second"):
        report = tmp_path / f"{value}.json"
        with started_with({**ONE_THREAD, "SMOOTHVLA_TEST": value}):
            process = worker_context().Process(
                target=in_environment, args=(dict(os.environ), exec, REPORT, {"PATH": str(report)})
            )
            process.start()
        process.join()
        # Another thread might hold a lock when the process is forked; PyArrow's allocator knows of that.
        assert json.loads(report.read_text()) == {
            "imported": True,
            "threads of the server": 1,
            "variable": value,
        }
    assert "SMOOTHVLA_TEST" not in os.environ


def test_what_computes_on_a_gpu_is_not_forked() -> None:
    assert worker_context("cuda:1").get_start_method() == "spawn"


def test_starting_a_process_with_many_weights_does_not_last_until_it_has_imported_torch(tmp_path) -> None:
    report = tmp_path / "then"
    weights = SharedWeights(
        {f"{'layers.' * 9}{index}.lora_A": torch.full((2,), index) for index in range(5000)}
    )
    script = """import time; assert len(weights.tensors()) == 5000; open(path, "w").write(str(time.time()))"""
    arguments = (script, {"path": report, "weights": weights})
    process = worker_context("cuda").Process(target=in_environment, args=(dict(os.environ), exec, *arguments))
    begin = time.time()
    process.start()
    started = time.time()
    process.join()
    assert started - begin < (float(report.read_text()) - begin) / 2


def test_shared_weights_keep_names_types_and_values_in_one_block() -> None:
    weights = {
        "matrix": torch.randn(3, 5),
        "flag": torch.tensor(True),
        "half": torch.randn(7).bfloat16(),
        "none": torch.empty(0),
        "counter": torch.tensor(3),
    }
    shared = SharedWeights(weights)
    held = shared.tensors()
    for name, value in weights.items():
        assert held[name].dtype == value.dtype and held[name].is_shared()
        torch.testing.assert_close(held[name], value, rtol=0, atol=0)
    assert len({value.untyped_storage().data_ptr() for value in held.values()}) == 1
    shared.write({**weights, "counter": torch.tensor(4)})
    assert held["counter"] == 4 and held["flag"]
