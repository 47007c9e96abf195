"""Simulators that are built once, in the server that workers are forked from, which so share them.

What a worker changes of one is its own, 8 MB in place of a gigabyte; observations and physics are the same to
the last bit. Only where Mesa's software renders by EGL: its contexts are memory like any other, those of a
GPU do not survive a fork, and OSMesa's were not tried. Importing this module in a process with `VARIABLE` in
its environment builds what that says.
"""

import base64
import gc
import logging
import os
import pickle
import signal
import sys
import warnings

from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.envs.adapters import prepare_env
from lerobot_smoothvla.envs.assets import renders_in_software
from lerobot_smoothvla.envs.chunked import ChunkedEnv
from lerobot_smoothvla.envs.tasks import chunked_env, selected_tasks
from lerobot_smoothvla.episode import Start, Task
from lerobot_smoothvla.machine import machine_bytes

VARIABLE = "SMOOTHVLA_STOCK"
MOST = 10
"""Tasks; they are built one after the other, and of more a rollout would meet these too seldom."""
_SIMULATOR_BYTES = 2**30

_stock: dict[Task, ChunkedEnv] = {}
_config: EnvConfig | None = None


def order(config: EnvConfig) -> dict[str, str]:
    """The environment in which a fork server builds the simulators that workers will need; empty for none.

    Only LIBERO's are worth it, and they may take half of the memory that is free.

    Args:
        config: LeRobot's, which `prepare_env` has prepared: so it is known what renders.
    """
    if sys.platform != "linux" or not isinstance(config, LiberoEnvConfig):
        return {}
    tasks = selected_tasks(config)
    n_fitting = machine_bytes()[0] // (2 * _SIMULATOR_BYTES)
    if len(tasks) > MOST or n_fitting == 0 or not renders_in_software():
        return {}
    return {VARIABLE: base64.b64encode(pickle.dumps((config, tasks[:n_fitting]))).decode()}


def take(config: EnvConfig, task: Task) -> ChunkedEnv | None:
    """The simulator of a task that this worker shares, which it must not close; None without one."""
    return _stock.get(task) if config == _config else None


def _build(ordered: str) -> None:
    """In the server. Whatever fails here fails in a worker, too, which says so."""
    global _config
    parent = os.getppid()
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides what ends when.
    # Its thread would not be there after a fork.
    os.environ["MESA_SHADER_CACHE_DISABLE"] = "true"
    try:
        _config, tasks = pickle.loads(base64.b64decode(ordered))
        prepare_env(_config)
        for suite, task_id in tasks:
            if os.getppid() != parent:
                raise SystemExit  # Nobody is left to fork workers for.
            env = chunked_env(_config, suite, task_id)
            # Renders, so that shaders are compiled, too.
            env.reset_to(Start(suite, task_id, init_state=0, seed=0))
            _stock[suite, task_id] = env
    except Exception as error:
        logging.debug("Simulators are not shared: %s", error)
    finally:
        signal.signal(signal.SIGINT, interrupt)
    gc.collect()
    gc.freeze()  # Else collecting would write to what is shared.
    # Python counts the thread of PyArrow's allocator, which knows of forks.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


if VARIABLE in os.environ:
    _build(os.environ[VARIABLE])
