"""Success of the scripted expert on each task that it claims, and how it moves there, without rendering.

    python benchmarks/expert.py --n_processes 2
    python benchmarks/expert.py --n_processes 2 --strokes 2  # as with `smoothvla demos --jerky_share=1`

Initial states 0, 2, 4, ... of each task, simulator seed 0, no action noise, the suite's own horizon. A line a
task as it is done; the last line is one JSON object by task: successes, and means of their jerk RMS (m/s³)
and control steps.
"""

import argparse
import json
import multiprocessing as mp
import os

# Before torch and Mesa are loaded: one thread a process.
os.environ |= {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}

import numpy as np
import torch
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.envs.assets import prepare_libero, require_gl
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.smoothness import jerk_rms

SUITES = ("libero_object", "libero_spatial")


def try_task(suite: str, task_id: int, n_states: int, strokes: int) -> dict[str, float]:
    """How the expert does in one task.

    Returns:
        solved: Of `n_states` initial states.
        jerk_rms: Mean of the solved ones, m/s³.
        steps: Mean of the solved ones.
    """
    from lerobot_smoothvla.demos.expert import PickAndPlace
    from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

    config = LiberoEnvConfig(task=suite, observation_height=64, observation_width=64)
    env = ChunkedLiberoEnv(config, suite, task_id)
    jerks: list[float] = []
    steps: list[int] = []
    for index in range(n_states):
        env.reset_to(Start(suite, task_id, 2 * index % env.n_init_states, 0))
        expert = PickAndPlace(env, strokes=strokes)
        positions = [env.position]
        for _ in range(env.max_steps):
            _, _, success, _, _ = env.step(expert.act())
            positions.append(env.position)
            if success:
                jerks.append(float(jerk_rms(torch.from_numpy(np.array(positions)), env.dt)))
                steps.append(len(positions) - 1)
                break
    env.close()
    mean_jerk, mean_steps = (float(np.mean(values)) if values else float("nan") for values in (jerks, steps))
    return {"solved": len(steps), "jerk_rms": round(mean_jerk, 2), "steps": round(mean_steps, 1)}


def main() -> None:
    """Measure all tasks, `n_processes` at a time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--suites", nargs="+", default=SUITES)
    parser.add_argument("--task_ids", nargs="+", type=int, help="of every suite; default all it can do")
    parser.add_argument("--n_states", type=int, default=20)
    parser.add_argument("--strokes", type=int, default=0, help="of each displacement; 0: eased")
    parser.add_argument("--n_processes", type=int, default=2)
    arguments = parser.parse_args()
    prepare_libero()
    require_gl()
    from lerobot_smoothvla.demos.expert import SOLVABLE_TASKS

    jobs = [
        (suite, task_id, arguments.n_states, arguments.strokes)
        for suite in arguments.suites
        for task_id in arguments.task_ids or SOLVABLE_TASKS[suite]
    ]
    found = {}
    with mp.get_context("spawn").Pool(arguments.n_processes, maxtasksperchild=1) as pool:
        for (suite, task_id, *_), row in zip(jobs, pool.imap(_try_task, jobs), strict=True):
            found[f"{suite}/{task_id}"] = row
            print(f"{suite} task {task_id}: {row}", flush=True)
    print(json.dumps({"n_states": arguments.n_states, "strokes": arguments.strokes, "tasks": found}))


def _try_task(job: tuple[str, int, int, int]) -> dict[str, float]:
    return try_task(*job)


if __name__ == "__main__":
    main()
