"""How worker processes of this machine are started."""

import ctypes
import multiprocessing as mp
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
"""Of torch and, beside its caller's, of Mesa's software renderer: with one process a core, more only wait."""
_PR_SET_PDEATHSIG = 1
"""Of Linux' `prctl`."""
_IMPORTED_BY_ALL = "lerobot_smoothvla.rollout.local"


def worker_context(device: str = "cpu") -> ForkServerContext | SpawnContext:
    """Of processes that share what they have imported, ten seconds and half a gigabyte, where that is safe.

    They are forked from a server that has imported it and done nothing else. CUDA may not survive a fork, nor
    do other systems' libraries than Linux's.

    Args:
        device: On which they compute.
    """
    if sys.platform != "linux" or device != "cpu":
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([_IMPORTED_BY_ALL])
    return context


@contextmanager
def started_with(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def in_environment(variables: Mapping[str, str], function: Callable[..., None], *arguments: Any) -> None:
    """Call in a process whose environment may be that of its server, which is older than its parent's."""
    os.environ.clear()
    os.environ.update(variables)
    function(*arguments)


def end_with_parent() -> None:
    """Get SIGTERM when the parent is gone, however it went; for `Popen(preexec_fn=...)`, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
