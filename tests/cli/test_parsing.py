"""Flags mean the same with every config file."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lerobot_smoothvla.cli.parsing import parse


@dataclass
class Config:
    parts: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)


@pytest.mark.parametrize(
    "file", [None, ("config.json", '{"parts": ["head"]}'), ("config.yaml", "parts: [head]")]
)
def test_lists_and_mappings_may_be_given_as_yaml_beside_any_file(
    file: tuple[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--parts=[vision, vlm]", "--sizes={a: 1}"]
    if file:
        (tmp_path / file[0]).write_text(file[1])
        flags.insert(0, f"--config_path={tmp_path / file[0]}")
    monkeypatch.setattr(sys, "argv", ["command", *flags])
    assert parse(Config) == Config(("vision", "vlm"), {"a": 1})
