"""A whole study in real processes, with rollouts of a few steps."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.study.plan import ARMS, SIZES
from lerobot_smoothvla.study.results import EPISODES, RESULTS, TABLE

pytestmark = pytest.mark.slow


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The command, in the test's own directory."""
    plan = replace(
        SIZES["smoke"], demonstrations=1, sft_steps=2, group_size=2, episodes=1, shifts=(), horizon=16
    )
    monkeypatch.setitem(SIZES, "smoke", plan)
    command = ["smoothvla", "study", "--size=smoke", f"--output_dir={tmp_path}", "--n_workers=1"]

    def run() -> int:
        monkeypatch.setattr(sys, "argv", command.copy())
        return main()

    return run


def test_the_command_makes_what_is_missing_and_nothing_twice(study, tmp_path, capfd):
    assert study() == 0, capfd.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / EPISODES).read_text().splitlines()]
    assert {(line["condition"], line["filter"], line["arm"]) for line in lines} == {
        *((condition, "none", arm) for condition in ("trained", "unseen") for arm in ("sft", *ARMS)),
        *(("trained", "exponential", arm) for arm in ("sft", "success")),
    }
    assert len(json.loads((tmp_path / RESULTS).read_text())["comparisons"]) == 2 * 7 + 2 * 2
    table = (tmp_path / TABLE).read_text()
    assert table in capfd.readouterr().out and "| trained | smooth − success+exponential |" in table
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("grpo/*/metrics.jsonl")}
    assert len(written) == len(ARMS)

    (tmp_path / "evaluations" / "unseen" / "none" / "sum_1" / "eval_info.json").unlink()
    assert study() == 0
    assert capfd.readouterr().out.count("Done before.") == 2 + len(ARMS)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert (tmp_path / TABLE).read_text() == table
