"""Which tasks and initial states exist and are asked for, known without a simulator; and their simulators."""

import difflib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path

import lerobot.envs
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.envs.configs import MetaworldEnv as MetaworldEnvConfig

from lerobot_smoothvla.envs.adapters import env_adapter, prepare_env
from lerobot_smoothvla.envs.assets import prepare_libero
from lerobot_smoothvla.envs.chunked import ChunkedEnv
from lerobot_smoothvla.envs.init_states import read_init_states
from lerobot_smoothvla.episode import Task

TRAINING_SEEDS = 2**31
"""Where only the seed tells starts apart, training takes its seeds from here on, evaluation those below."""


def task_names() -> dict[str, list[str]]:
    """The task names of every suite, by task id."""
    prepare_libero()
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    return libero_task_map


def selected_tasks(config: EnvConfig) -> list[Task]:
    """The tasks that an environment config asks for.

    Args:
        config: LeRobot's. Of LIBERO, `task` may name several suites, separated by commas, of which it asks
            for `task_ids`, or all; of Meta-World several tasks and groups of tasks.

    Returns:
        Sorted and without duplicates.

    Raises:
        ValueError: If the type has no adapter, or a suite or a task does not exist; the message lists what
            does.
    """
    if isinstance(config, LiberoEnvConfig):
        return _libero_tasks(config)
    env_adapter(config)
    if isinstance(config, MetaworldEnvConfig):
        return sorted({(s, i) for s in _listed(config) for i in range(len(_metaworld_tasks(s)))})
    return [(config.type, 0)]


def chunked_env(config: EnvConfig, suite: str, task_id: int) -> ChunkedEnv:
    """The environment of a task.

    Raises:
        ValueError: If the type has no adapter, the task does not exist, or it is none to learn in.
    """
    # Imported only here, as they load simulators.
    if isinstance(config, LiberoEnvConfig):
        from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

        return ChunkedLiberoEnv(config, suite, task_id)
    from lerobot_smoothvla.envs.gym import GymChunkedEnv

    if isinstance(config, MetaworldEnvConfig):
        config = replace(config, task=_metaworld_tasks(suite)[task_id])
    return GymChunkedEnv(config, suite, task_id)


def require_usable(config: EnvConfig, tasks: Sequence[Task]) -> None:
    """Reject an environment that cannot be built or learnt in, before hours are spent.

    Args:
        config: LeRobot's.
        tasks: Its tasks, of which the first is built, unless it is LIBERO's, which takes long and is known.

    Raises:
        ImportError: If something is not installed.
        ValueError: If the type has no adapter, or the environment lacks what `GymChunkedEnv` needs.
    """
    prepare_env(config)
    if not has_init_states(config):
        with closing(chunked_env(config, *tasks[0])):
            pass


def _listed(config: EnvConfig) -> list[str]:
    """What `task` names, separated by commas."""
    return [name.strip() for name in (config.task or "").split(",")]


@cache
def _metaworld_names() -> tuple[list[str], dict[str, list[str]]]:
    """All task names, and those of each group; LeRobot's module that holds them would load MuJoCo."""
    file = Path(lerobot.envs.__path__[0]) / "metaworld_config.json"
    names = json.loads(file.read_text(encoding="utf-8"))
    return list(names["TASK_DESCRIPTIONS"]), names["DIFFICULTY_TO_TASKS"]


def _metaworld_tasks(suite: str) -> list[str]:
    """The names of a group's tasks, or of the task that `suite` itself is.

    Raises:
        ValueError: If it is neither.
    """
    tasks, groups = _metaworld_names()
    name = suite.removeprefix("metaworld-")
    if name not in (*tasks, *groups):
        close = difflib.get_close_matches(name, [*tasks, *groups], n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ValueError(
            f"There is no Meta-World task '{suite}'; --env.task should name some of the groups "
            f"{', '.join(groups)}, or of the tasks {', '.join(tasks)}.{hint}"
        )
    return groups.get(name, [name])


def _libero_tasks(config: LiberoEnvConfig) -> list[Task]:
    """`task_ids`, or all, of each suite in `task`."""
    names = task_names()
    tasks = set()
    for suite in _listed(config):
        if suite not in names:
            raise ValueError(
                f"There is no LIBERO suite '{suite}'; --env.task should name some of {', '.join(names)}."
            )
        ids = range(len(names[suite])) if config.task_ids is None else config.task_ids
        if unknown := sorted(set(ids) - set(range(len(names[suite])))):
            listed = "; ".join(f"{index} {name}" for index, name in enumerate(names[suite]))
            raise ValueError(
                f"{suite} has the tasks 0 to {len(names[suite]) - 1}, --env.task_ids asks for {unknown}. "
                f"There are: {listed}."
            )
        tasks |= {(suite, index) for index in ids}
    if not tasks:
        raise ValueError("--env.task_ids should name at least one task, got []; leave it out for all.")
    return sorted(tasks)


def has_init_states(config: EnvConfig) -> bool:
    """Whether the tasks have fixed initial states; else the seed alone says where an episode begins."""
    return isinstance(config, LiberoEnvConfig)


def n_init_states(task: Task) -> int:
    """How many fixed initial states LIBERO ships for a task.

    Raises:
        ValueError: If their file is not LIBERO's.
    """
    suite, task_id = task
    name = task_names()[suite][task_id]
    from libero.libero import get_libero_path

    file = Path(get_libero_path("init_states")) / suite / f"{name}.pruned_init"
    return len(read_init_states(file, f"{suite} task {task_id}"))


def require_init_states(config: EnvConfig, tasks: Sequence[Task], init_states: tuple[int, int]) -> None:
    """Reject initial states that a task does not have; without fixed ones the setting is not used.

    Args:
        config: Of the environment.
        tasks: That exist.
        init_states: First, and one past the last.

    Raises:
        ValueError: If the range is empty or leaves the task's.
    """
    first, end = init_states
    for task in tasks if has_init_states(config) else []:
        n_states = n_init_states(task)
        if not 0 <= first < end <= n_states:
            suite, task_id = task
            raise ValueError(
                f"`init_states` should be [first, end) with 0 <= first < end <= {n_states}, the number of "
                f"initial states of {suite} task {task_id}, got [{first}, {end})."
            )
