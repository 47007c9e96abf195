import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from run_directories import evaluation, write_evaluation, write_training_run

from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.cli.report import named_runs


def test_directories_stand_by_themselves_between_flags():
    assert named_runs(["a", "--live=true", "b", "--output", "c.html"]) == [
        '--runs=["a", "b"]',
        "--live=true",
        "--output",
        "c.html",
    ]
    assert named_runs(["--help"]) == ["--help"]


def test_the_command_makes_one_page_of_all_directories(tmp_path, monkeypatch, capsys):
    run = write_training_run(tmp_path / "a run, with a comma", [0.5])
    result = write_evaluation(tmp_path / "eval", policy=evaluation([True, False]))
    page = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["smoothvla", "report", str(run), f"--output={page}", str(result)])
    assert main() == 0
    assert f"Written to {page}" in capsys.readouterr().out
    assert "1 of 1 iterations" in page.read_text() and "solved 1 of 2 starts" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name output directories, `smoothvla report DIR...`"),
        (["."], "is no output directory of `smoothvla grpo`, `eval` or `demo`"),
        ([".", "--max_video_mb=-1"], "`max_video_mb` should be at least 0, got -1"),
        ([".", "--lives=true"], "--lives=true"),
    ],
)
def test_bad_input_is_one_paragraph(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["smoothvla", "report", *arguments])
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("smoothvla report: error: ") and message in error
    assert not list(tmp_path.iterdir())


def test_a_live_page_that_is_interrupted_stands_still(tmp_path):
    run = write_training_run(tmp_path, [0.5], steps=2)
    command = [sys.executable, "-m", "lerobot_smoothvla.cli.main", "report", str(run), "--live=true"]
    # A shell lets what it starts in the background ignore Ctrl-C, and its children inherit that.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heeding)
    page = run / "report.html"
    while not page.exists() and process.poll() is None:
        time.sleep(0.1)
    assert 'http-equiv="refresh"' in page.read_text()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert "1 of 2 iterations" in page.read_text() and 'http-equiv="refresh"' not in page.read_text()
