"""Success of the scripted expert on each task that it claims, without rendering.

    python benchmarks/expert.py --n_processes 2

Initial states 0, 2, 4, ... of each task, simulator seed 0, no action noise, the suite's own horizon. A line a
task as it is done; the last line is one JSON object of successes by task.
"""

import argparse
import json
import multiprocessing as mp
import os

# Before torch and Mesa are loaded: one thread a process.
os.environ |= {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}

from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.envs.assets import prepare_libero, require_gl
from lerobot_smoothvla.episode import Start

SUITES = ("libero_object", "libero_spatial")


def n_solved(suite: str, task_id: int, n_states: int) -> tuple[str, int, int]:
    """From how many of `n_states` initial states the expert solves a task.

    Returns:
        suite, task id, successes.
    """
    from lerobot_smoothvla.demos.expert import PickAndPlace
    from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

    config = LiberoEnvConfig(task=suite, observation_height=64, observation_width=64)
    env = ChunkedLiberoEnv(config, suite, task_id)
    successes = 0
    for index in range(n_states):
        env.reset_to(Start(suite, task_id, 2 * index % env.n_init_states, 0))
        expert = PickAndPlace(env)
        success = False
        for _ in range(env.max_steps):
            _, _, success, _, _ = env.step(expert.act())
            if success:
                break
        successes += bool(success)
    env.close()
    return suite, task_id, successes


def main() -> None:
    """Measure all tasks, `n_processes` at a time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--suites", nargs="+", default=SUITES)
    parser.add_argument("--n_states", type=int, default=20)
    parser.add_argument("--n_processes", type=int, default=2)
    arguments = parser.parse_args()
    prepare_libero()
    require_gl()
    from lerobot_smoothvla.demos.expert import SOLVABLE_TASKS

    jobs = [
        (suite, task_id, arguments.n_states)
        for suite in arguments.suites
        for task_id in SOLVABLE_TASKS[suite]
    ]
    solved = {}
    with mp.get_context("spawn").Pool(arguments.n_processes, maxtasksperchild=1) as pool:
        for suite, task_id, successes in pool.imap(_n_solved, jobs):
            solved[f"{suite}/{task_id}"] = successes
            print(f"{suite} task {task_id}: {successes} of {arguments.n_states}", flush=True)
    print(json.dumps({"n_states": arguments.n_states, "solved": solved}))


def _n_solved(job: tuple[str, int, int]) -> tuple[str, int, int]:
    return n_solved(*job)


if __name__ == "__main__":
    main()
