"""A clock that jumps changes labels: whatever waits or measures asks a clock that cannot jump."""

import ast
from pathlib import Path

import lerobot_smoothvla

PACKAGE = Path(lerobot_smoothvla.__file__).parent
TIME_OF_DAY = {
    *(f"time.{name}" for name in ("time", "time_ns", "ctime", "localtime", "gmtime", "strftime")),
    *(f"{owner}.{name}" for owner in ("datetime", "date") for name in ("now", "utcnow", "today")),
}
OF_FILES = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_atime", "getmtime", "getctime"}
READERS = {
    "evaluation/command.py",  # Names an evaluation's directory.
    "provenance.py",  # Says when a command was run.
    "hub/facts.py",  # See tests/hub/test_facts.py.
}


def reads_the_time_of_day(file: Path) -> bool:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return bool((used | imported) & TIME_OF_DAY or {name.rpartition(".")[2] for name in used} & OF_FILES)


def test_nothing_but_what_names_or_dates_something_reads_the_time_of_day():
    readers = {
        str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if reads_the_time_of_day(file)
    }
    assert readers == READERS
