"""Two processes and one directory."""

import subprocess
import sys
from pathlib import Path

import pytest

from lerobot_smoothvla.locking import sole_writer

HOLDS = """
import sys
from pathlib import Path
from lerobot_smoothvla.locking import sole_writer
with sole_writer(Path(sys.argv[1]), "--output_dir"):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_of_two_processes_the_second_is_refused_until_the_first_is_gone_however_it_went(tmp_path: Path):
    directory = tmp_path / "new" / "run"
    command = [sys.executable, "-c", HOLDS, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"holds\n"
        with (
            pytest.raises(BlockingIOError, match=r"Another process writes to .*or choose another --out"),
            sole_writer(directory, "--output_dir"),
        ):
            pass
        other.kill()
    with sole_writer(directory, "--output_dir"):
        pass


def test_a_directory_in_which_nothing_was_written_goes_again_if_it_was_new(tmp_path: Path):
    new, used, old = tmp_path / "new", tmp_path / "used", tmp_path / "old"
    old.mkdir()
    for directory in (new, used, old):
        with pytest.raises(RuntimeError), sole_writer(directory, "--output_dir"):
            if directory == used:
                (used / "log").write_text("mine")
            raise RuntimeError
    assert not new.exists() and old.exists() and (used / "log").read_text() == "mine"


def test_two_directories_do_not_mind_each_other(tmp_path: Path):
    with sole_writer(tmp_path / "one", "--output_dir"), sole_writer(tmp_path / "two", "--output_dir"):
        pass


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    message = r"file/run' cannot be written to \(Not a directory\); choose another --x"
    with (
        pytest.raises(OSError, match=message),
        sole_writer(tmp_path / "file" / "run", "--x"),
    ):
        pass
