"""What the programs make of the commands of a demo's or a study's stages."""

import sys
from pathlib import Path

import pytest

import lerobot_smoothvla.configuration_smoothvla  # noqa: F401  (registered, as under a command)
from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.selectors import expand
from lerobot_smoothvla.stages import Stage


def parsed[Config](stage: Stage, config_class: type[Config], monkeypatch: pytest.MonkeyPatch) -> Config:
    """What a stage's own program makes of its command."""
    program, *arguments = stage.command
    if Path(program).name == "smoothvla":
        program, *arguments = (f"smoothvla {arguments[0]}", *arguments[1:])
    monkeypatch.setattr(sys, "argv", [program, *expand(Path(program).name, arguments)])
    return parse(config_class)


def checkpoint(run_dir: Path, iteration: str = "000003") -> None:
    """Something that looks like a run's last checkpoint."""
    (run_dir / "checkpoints" / iteration / "pretrained_model").mkdir(parents=True)
    (run_dir / "checkpoints" / "last").symlink_to(iteration)
