"""Where a result comes from: a line in its directory each time a command worked on it."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from lerobot_smoothvla.redaction import redacted

PROVENANCE = "provenance.jsonl"
_PACKAGES = ("lerobot_policy_smoothvla", "lerobot", "torch")
_HERE = Path(__file__).parent


def record(directory: Path, **facts: int) -> None:
    """Append what runs now, where, and `facts` about it, to the directory's `provenance.jsonl`."""
    with (directory / PROVENANCE).open("a", encoding="utf-8") as log:
        log.write(json.dumps({**provenance(), **facts}) + "\n")


def provenance() -> dict[str, str]:
    """Time, command, versions, commit and machine, each as a person reads it."""
    return {
        "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": redacted(f"{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}"),
        "versions": ", ".join([f"Python {platform.python_version()}", *map(_version, _PACKAGES)]),
        "commit": _commit() or "not in a git repository",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_accelerator()}",
    }


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (not installed)"


def _accelerator() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _commit() -> str | None:
    """Of the clone that this package runs from, `-dirty` where it was changed; None for an installed one."""
    git = ["git", "-C", str(_HERE)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
