"""How a command ends that is asked to: by Ctrl-C, a scheduler's SIGTERM, or a terminal that is closed."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_asked_by: int | None = None


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
    """Let a first signal of these raise `Interrupted`; a second one ends the process and its children.

    After an interruption, the process is on its way out: a signal that comes then changes nothing. Under
    `nohup` it goes on when the terminal is closed.
    """

    def first(number: int, _: Any) -> NoReturn:
        global _asked_by
        _asked_by = number
        for each in heeded:
            signal.signal(each, second)
        raise Interrupted(number)

    def second(number: int, _: Any) -> NoReturn:
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(128 + number)

    global _asked_by
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    heeded = [number for number in _SIGNALS if not (nohup and number == signal.SIGHUP)]
    before = {number: signal.signal(number, first) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if _asked_by is None else signal.SIG_IGN)
        _asked_by = None


def raise_if_asked() -> None:
    """Raise `Interrupted` again after code that may have swallowed it, as a reset of LIBERO's does."""
    if _asked_by is not None:
        raise Interrupted(_asked_by)
