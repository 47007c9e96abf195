import os
import subprocess
import sys

import pytest

from lerobot_smoothvla.cli.main import _NEEDS_NO_SIMULATOR, COMMANDS


def smoothvla(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lerobot_smoothvla.cli.main", *arguments],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_help_lists_the_commands():
    result = smoothvla("--help")
    assert result.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout


def test_no_command_prints_the_usage_and_fails():
    result = smoothvla()
    assert result.returncode == 2
    assert result.stdout.startswith("usage: smoothvla COMMAND")


def test_an_unknown_command_lists_those_there_are():
    result = smoothvla("trian")
    assert result.returncode == 2
    assert "no command `trian`" in result.stderr and "grpo" in result.stderr


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_an_expected_error_is_one_paragraph_without_a_traceback(command: str):
    result = smoothvla(command, "env=liberro")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"smoothvla {command}: error: There is no preset `env=liberro`")


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(_NEEDS_NO_SIMULATOR)))
def test_missing_gl_ends_a_command_before_it_starts(command: str):
    result = smoothvla(command, MUJOCO_GL="egl", __EGL_VENDOR_LIBRARY_FILENAMES="/nowhere.json")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "apt-get install" in result.stderr


def test_an_export_needs_no_gl():
    result = smoothvla(
        "export", "--output_dir=/", MUJOCO_GL="egl", __EGL_VENDOR_LIBRARY_FILENAMES="/nowhere.json"
    )
    assert "nothing to export: pass --policy.path" in result.stderr


def test_debugging_shows_the_traceback():
    result = smoothvla("grpo", "env=liberro", SMOOTHVLA_DEBUG="1")
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_dispatching_imports_nothing_heavy():
    code = "import sys; from lerobot_smoothvla.cli import main; print(sorted({'torch'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
