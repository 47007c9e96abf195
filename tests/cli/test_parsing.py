"""Flags mean the same beside every config file."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import draccus
import pytest

from lerobot_smoothvla.cli.parsing import parse


@dataclass
class Config:
    """Read from a file as LeRobot reads that of a training run."""

    parts: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_pretrained(cls, file: str, cli_args: list[str]) -> "Config":
        with draccus.config_type("json"):
            return draccus.parse(cls, file, args=cli_args)


@pytest.mark.parametrize("with_file", [False, True])
def test_lists_and_mappings_may_be_given_as_yaml(
    with_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "train_config.json"
    file.write_text('{"parts": ["head"]}')
    flags = ["--parts=[vision, vlm]", "--sizes={a: 1}"]
    monkeypatch.setattr(sys, "argv", ["command", *([f"--config_path={file}"] if with_file else []), *flags])
    assert parse(Config) == Config(("vision", "vlm"), {"a": 1})
