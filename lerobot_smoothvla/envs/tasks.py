"""Which LIBERO tasks and initial states exist and are asked for, known without MuJoCo."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.envs.assets import prepare_libero

Task = tuple[str, int]
"""Suite and index of the task in it."""


def task_names() -> dict[str, list[str]]:
    """The task names of every suite, by task id."""
    prepare_libero()
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    return libero_task_map


def selected_tasks(config: EnvConfig) -> list[Task]:
    """The tasks that an environment config asks for: `task_ids`, or all, of each suite in `task`.

    Args:
        config: LeRobot's; `task` may name several suites, separated by commas.

    Returns:
        Sorted and without duplicates.

    Raises:
        ValueError: If it is not LIBERO, or a suite or a task id does not exist; the message lists what does.
    """
    if not isinstance(config, LiberoEnvConfig):
        raise ValueError(f"The environment should be LIBERO (--env.type=libero), got '{config.type}'.")
    names = task_names()
    tasks = set()
    for suite in (name.strip() for name in config.task.split(",")):
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


def n_init_states(task: Task) -> int:
    """How many fixed initial states LIBERO ships for a task."""
    suite, task_id = task
    name = task_names()[suite][task_id]
    from libero.libero import get_libero_path

    file = Path(get_libero_path("init_states")) / suite / f"{name}.pruned_init"
    # A pickled array of the installed package, read as LeRobot reads it.
    return len(torch.load(file, weights_only=False))


def require_init_states(tasks: Sequence[Task], init_states: tuple[int, int]) -> None:
    """Reject initial states that a task does not have.

    Args:
        tasks: That exist.
        init_states: First, and one past the last.

    Raises:
        ValueError: If the range is empty or leaves the task's.
    """
    first, end = init_states
    for task in tasks:
        n_states = n_init_states(task)
        if not 0 <= first < end <= n_states:
            suite, task_id = task
            raise ValueError(
                f"`init_states` should be [first, end) with 0 <= first < end <= {n_states}, the number of "
                f"initial states of {suite} task {task_id}, got [{first}, {end})."
            )
