"""How a run ends that is asked to: by Ctrl-C, or by a scheduler's SIGTERM."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The process was asked to end.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        """Say by which."""
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a first SIGINT or SIGTERM raise `Interrupted`; a second one ends the process and its children."""

    def first(number: int, _: Any) -> NoReturn:
        for each in _SIGNALS:
            signal.signal(each, second)
        raise Interrupted(number)

    def second(number: int, _: Any) -> NoReturn:
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(128 + number)

    before = {number: signal.signal(number, first) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
