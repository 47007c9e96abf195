"""One command at a time writes to a directory; of two, each would overwrite what the other has made."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
"""Stays in the directory; it is the process that holds it, so that none is left by one that was killed."""


@contextmanager
def sole_writer(directory: Path, flag: str) -> Iterator[None]:
    """Make the directory if need be, and keep other commands from writing to it meanwhile.

    A directory that was made for nothing goes again, as a run that begins may want it to be new.

    Args:
        directory: Whose.
        flag: That names it, for the message.

    Raises:
        BlockingIOError: If another process writes to it.
        OSError: If it cannot be made or written to.
    """
    new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK).acquire(blocking=False)
    except Timeout as held:
        raise BlockingIOError(
            f"Another process writes to '{directory}'. Wait until it has ended, or end it, and run the same "
            f"command again; or choose another {flag}."
        ) from held
    except OSError as error:
        raise OSError(
            f"'{directory}' cannot be written to ({error.strerror}); choose another {flag}."
        ) from error
    with lock:
        try:
            yield
        finally:
            if new and [path.name for path in directory.glob("*")] == [LOCK]:
                (directory / LOCK).unlink()
                directory.rmdir()
