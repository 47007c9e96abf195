"""Where a control step's CPU time goes in our rollouts, in one process.

    python benchmarks/breakdown.py --suite libero_object

CPU time rather than wall time, so that it hardly depends on what else the machine does. Parts exclude each
other; resets, with their settle steps and their frame, are one part, spread over the episode's steps.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# First, as it sets the number of threads.
from rollout import SEED, random_actor  # isort: skip

import mujoco
import torch
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.envs.assets import prepare_libero, require_gl
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.rollout.engine import Actor, RolloutRequest, run_episode


class Stopwatch:
    """CPU seconds by part; a part that another one calls is not counted in that one."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._parts = ["the rest of robosuite and LeRobot"]
        self._since = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs here is part `name`; a reset stays one part."""
        self._turn()
        self._parts.append("reset" if "reset" in self._parts else name)
        try:
            yield
        finally:
            self._turn()
            self._parts.pop()

    def watch(self, owner: Any, functions: tuple[str, ...], name: str) -> None:
        """Let calls of `owner`'s functions count as part `name`."""
        for function in functions:
            setattr(owner, function, self._counted(getattr(owner, function), name))

    def _counted(self, plain: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(plain)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return plain(*args, **kwargs)

        return counted


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--task_id", type=int, default=0)
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--n_action_steps", type=int, default=8)
    parser.add_argument("--n_episodes", type=int, default=1)
    arguments = parser.parse_args()
    prepare_libero()
    require_gl()
    torch.set_num_threads(1)
    # Only now that LIBERO is prepared.
    from robosuite.controllers.osc import OperationalSpaceController
    from robosuite.environments.base import MujocoEnv
    from robosuite.utils.binding_utils import MjSim

    from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

    size = arguments.image_size
    config = LiberoEnvConfig(task=arguments.suite, observation_height=size, observation_width=size)
    env = ChunkedLiberoEnv(config, arguments.suite, arguments.task_id)
    with TemporaryDirectory() as directory:
        actor = random_actor(Path(directory), size, arguments.n_action_steps)

    def run(index: int) -> int:
        start = Start(arguments.suite, arguments.task_id, index, SEED + index)
        return run_episode(env, actor, RolloutRequest(start, index, DeployedSampler())).n_steps

    run(0)
    stopwatch = Stopwatch()
    stopwatch.watch(mujoco, ("mj_forward", "mj_forwardSkip", "mj_step2"), "MuJoCo")
    stopwatch.watch(OperationalSpaceController, ("set_goal", "run_controller"), "controller (Python)")
    stopwatch.watch(MujocoEnv, ("_update_observables", "_get_observations"), "observables")
    stopwatch.watch(MjSim, ("render",), "rendering")
    stopwatch.watch(type(env._env.env), ("_check_success",), "success checks")
    stopwatch.watch(ChunkedLiberoEnv, ("reset_to",), "reset")
    stopwatch.watch(ChunkedLiberoEnv, ("to_lerobot",), "observation format and processors")
    stopwatch.watch(Actor, ("model_input", "env_actions"), "observation format and processors")
    stopwatch.watch(Actor, ("decide",), "policy")
    n_steps = sum(run(1 + index) for index in range(arguments.n_episodes))
    env.close()
    milliseconds = {part: 1e3 * seconds / n_steps for part, seconds in stopwatch.seconds.items()}
    total = sum(milliseconds.values())
    for part, value in sorted(milliseconds.items(), key=lambda item: -item[1]):
        print(f"{part:36s} {value:7.2f} ms a control step  {100 * value / total:5.1f} %")
    print(json.dumps({"total_ms": round(total, 2), **{k: round(v, 2) for k, v in milliseconds.items()}}))


if __name__ == "__main__":
    main()
