"""Stages are real processes: in their order, some beside one another, and none twice."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from lerobot_smoothvla.stages import Stage, run_stages

MEET = """
import os, sys, time
from pathlib import Path
mine, other = map(Path, sys.argv[1:])
mine.write_text(os.environ["OMP_NUM_THREADS"])
print("here", flush=True)
while not other.exists():
    time.sleep(0.01)
"""
"""Ends once the other stage has begun."""


def stage(directory: Path, name: str, script: str, *arguments: str | Path, **settings) -> Stage:
    made = directory / name
    command = [sys.executable, "-c", script, *map(str, arguments or [made])]
    return Stage(name, command, made.is_file, **settings)


WRITE = "import sys; from pathlib import Path; Path(sys.argv[1]).write_text('')"


def test_what_is_done_is_not_done_again(tmp_path, capfd):
    stages = [stage(tmp_path, name, f"print('{name}', 'runs'); {WRITE}") for name in ("first", "second")]
    (tmp_path / "first").touch()
    minutes = run_stages(lambda: stages, tmp_path)
    assert list(minutes) == ["second"]
    said = capfd.readouterr().out
    assert "first runs" not in said and "second runs" in said and "Done before." in said


def test_independent_stages_meet_and_each_keeps_its_log_and_one_thread(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    a, b = tmp_path / "a", tmp_path / "b"
    stages = [
        stage(tmp_path, "a", MEET, a, b, independent=True),
        stage(tmp_path, "b", MEET, b, a, independent=True),
        stage(tmp_path, "c", f"assert __import__('os').path.exists({str(a)!r}); {WRITE}"),
    ]
    assert set(run_stages(lambda: stages, tmp_path, n_beside=2)) == {"a", "b", "c"}
    assert (tmp_path / "a.log").read_text() == (tmp_path / "b.log").read_text() == "here\n"
    assert a.read_text() == b.read_text() == "1"


def test_what_others_need_is_finished_before_they_begin(tmp_path):
    first = tmp_path / "first"
    slow = f"import time; time.sleep(0.5); {WRITE}"
    needs = f"assert __import__('os').path.exists({str(first)!r}); {WRITE}"
    stages = [stage(tmp_path, "first", slow), stage(tmp_path, "second", needs, independent=True)]
    assert set(run_stages(lambda: stages, tmp_path, n_beside=2)) == {"first", "second"}


def test_a_failure_ends_what_runs_beside_it_and_says_where_it_is_told(tmp_path):
    forever = (
        f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    wait = f"while not __import__('os').path.exists({str(tmp_path / 'pid')!r}): pass\nraise SystemExit(3)"
    stages = [
        stage(tmp_path, "long", forever, independent=True),
        stage(tmp_path, "bad", wait, independent=True),
        stage(tmp_path, "never", WRITE, independent=True),
    ]
    begin = time.monotonic()
    with pytest.raises(ChildProcessError, match=r"'bad' ended with exit code 3; its message is .*bad\.log"):
        run_stages(lambda: stages, tmp_path, n_beside=2)
    assert time.monotonic() - begin < 60 and not (tmp_path / "never").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_command_that_leaves_nothing_behind_has_failed(tmp_path):
    with pytest.raises(ChildProcessError, match="'empty' ended with exit code 0; its message is above"):
        run_stages(lambda: [stage(tmp_path, "empty", "")], tmp_path)


KILLED_ONCE = """
import os, signal, sys
from pathlib import Path
directory = Path(sys.argv[1])
found = sorted(path.name for path in directory.glob("*"))
directory.mkdir(exist_ok=True)
(directory / "half").touch()
print("found", found, flush=True)
if not Path(sys.argv[2]).exists():
    Path(sys.argv[2]).touch()
    os.kill(os.getpid(), signal.SIGKILL)
(directory / "whole").touch()
"""
"""Leaves half of it, and the other half when it is run again."""


@pytest.mark.parametrize(("restarts", "found"), [(True, []), (False, ["half"])])
def test_a_killed_stage_goes_on_with_what_it_has_or_begins_again_where_it_cannot(
    tmp_path, capfd, restarts: bool, found: list[str]
):
    once, killed = tmp_path / "once", tmp_path / "killed"
    command = [sys.executable, "-c", KILLED_ONCE, str(killed), str(tmp_path / "mark")]
    stages = [
        stage(tmp_path, "once", f"print('once', 'runs'); {WRITE}"),
        Stage("killed", command, (killed / "whole").is_file, restarts=restarts),
    ]
    with pytest.raises(
        ChildProcessError, match="'killed' ended with exit code -9.*Run the same command again"
    ):
        run_stages(lambda: stages, tmp_path)
    assert once.is_file() and (killed / "half").is_file()
    minutes = run_stages(lambda: stages, tmp_path)
    assert set(minutes) == {"once", "killed"}
    said = capfd.readouterr().out
    assert said.count("once runs") == 1 and f"found {found}" in said.splitlines()[-1]


TWO_STAGES = """
import sys
from pathlib import Path
from lerobot_smoothvla.stages import Stage, run_stages
out = Path(sys.argv[1])
def stage(name, body):
    script = "import os, sys, time; open(sys.argv[1] + '.pids', 'a').write(f'{os.getpid()} ')\\n"
    command = [sys.executable, "-c", script + body, str(out / name)]
    return Stage(name, command, (out / name).is_file)
end = "open(sys.argv[1], 'w')"
wait = f"while not os.path.exists('{out / 'go'}'): time.sleep(0.01)\\n"
run_stages(lambda: [stage("a", end), stage("b", wait + end)], out)
"""


def test_a_killed_command_takes_its_stage_along_and_goes_on_after_the_last_that_was_finished(tmp_path):
    a, b = tmp_path / "a.pids", tmp_path / "b.pids"
    command = [sys.executable, "-c", TWO_STAGES, str(tmp_path)]
    with subprocess.Popen(command) as killed:
        while not (b.exists() and b.read_text()):
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(b.read_text())).wait(10)
    (tmp_path / "go").touch()
    assert not (tmp_path / "b").exists()
    subprocess.run(command, check=True, timeout=60)
    assert len(a.read_text().split()) == 1 and len(b.read_text().split()) == 2
