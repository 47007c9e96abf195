"""LIBERO's initial states, which are pickles: what they may make is named, and that is an array."""

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_MAKES_ARRAYS = np.zeros(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    # As numpy 1 and numpy 2 call it.
    *((_MAKES_ARRAYS, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    type(np.dtype(np.float64)),
]
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextmanager
def arrays_only(what: str) -> Iterator[None]:
    """Let `torch.load` make arrays and tensors meanwhile, whatever else its caller would let it make.

    A pickle calls any function that it names. LIBERO's are of numpy's, which `weights_only=True` rejects, so
    LeRobot's loader passes `weights_only=False`; torch's own variable of the environment overrules it.

    Args:
        what: Is read, for the message.

    Raises:
        ValueError: If the file asks for anything else.
    """
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            yield
    except pickle.UnpicklingError as error:
        raise _refusal(what, error) from error
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def read_init_states(file: Path, what: str) -> NDArray[np.float64]:
    """The (n, S) initial states in a file.

    Raises:
        OSError: If it cannot be read.
        ValueError: As `arrays_only`, or if it is broken or holds something else.
    """
    try:
        with arrays_only(what):
            states = torch.load(file, weights_only=True)
    except (RuntimeError, EOFError) as error:
        raise _refusal(what, error) from error
    if not isinstance(states, np.ndarray) or states.ndim != 2:
        raise _refusal(what)
    return states


def _refusal(what: str, error: Exception | None = None) -> ValueError:
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    found = f"one that asks for `{asked[1]}`, which it did not get" if asked else "something else"
    return ValueError(
        f"The initial states of {what} should be a file with an array of numbers, got {found}. Install "
        "LIBERO again (`pip install --force-reinstall --no-deps hf-libero`), or let `init_states:` in "
        "~/.libero/config.yaml name the directory of its own files."
    )
