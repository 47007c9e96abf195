"""What could not be written is one paragraph: what it is, how much it takes, how much is free, what to do."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class WritingError(OSError):
    """Something could not be written; what was there before still is."""


@contextmanager
def writing(
    what: str, place: Path, size: Callable[[], int], then: str, draft: Path | None = None
) -> Iterator[None]:
    """Say what an error of the disk was about.

    Args:
        what: Is written, as a sentence begins: "The log runs/a/metrics.jsonl".
        place: On the same disk.
        size: Bytes that it takes, about, asked for after an error.
        then: What to do, as the sentence goes on that begins with "Make space".
        draft: A directory with what was written of it, which goes and takes no more space.

    Raises:
        WritingError: In the place of an error of the disk.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        takes = _readable(size())
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        raise WritingError(
            f"{what} could not be written ({error}). It takes about {takes}{_free(place)}. Make space {then}"
        ) from error


def size_of(directory: Path) -> int:
    """Bytes of the files in it."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _readable(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 50_000 else f"{size} bytes"


def _free(place: Path) -> str:
    """What is left of the disk, as the end of a sentence."""
    try:
        return f", and {_readable(shutil.disk_usage(place).free)} are free"
    except OSError:
        return ""
