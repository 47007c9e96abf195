import json
import sys
from pathlib import Path

import torch

from lerobot_smoothvla.provenance import provenance, record


def test_each_start_of_a_command_adds_a_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["smoothvla grpo", "--output_dir=a b"])
    for steps in (2, 5):
        record(tmp_path, steps=steps)
    lines = [json.loads(line) for line in (tmp_path / "provenance.jsonl").read_text().splitlines()]
    assert [line["steps"] for line in lines] == [2, 5]
    assert lines[0]["command"] == "smoothvla grpo '--output_dir=a b'"


def test_it_says_with_what_and_where():
    said = provenance()
    assert set(said) == {"time", "command", "versions", "commit", "machine"}
    assert f"torch {torch.__version__.partition('+')[0]}" in said["versions"]
    assert "cores" in said["machine"]
