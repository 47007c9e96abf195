"""CPU time of LIBERO's images: of whole scenes as robosuite renders them, and of what of them may show.

    python benchmarks/rendering.py

In an episode of the scripted expert in task 0, each camera's image is rendered both ways at every 8th control
step. The last line is one JSON object: median milliseconds by camera, images, and how many of them differ.
"""

import argparse
import json
import os
import statistics
import time

# Before Mesa is loaded: it rasterises in its caller's thread.
os.environ |= {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}

import numpy as np
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.envs.assets import prepare_libero, require_gl
from lerobot_smoothvla.episode import Start

CAMERAS = ("agentview", "robot0_eye_in_hand")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--pixels", type=int, default=64)
    arguments = parser.parse_args()
    prepare_libero()
    require_gl()
    from lerobot_smoothvla.demos.expert import PickAndPlace
    from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

    size = arguments.pixels
    config = LiberoEnvConfig(task=arguments.suite, observation_height=size, observation_width=size)
    env = ChunkedLiberoEnv(config, arguments.suite, 0)
    env.reset_to(Start(arguments.suite, 0, 0, 0))
    context = env._env.sim._render_context_offscreen
    ways = {"whole": context.render.whole, "shown": context.render}
    times: dict[str, list[float]] = {f"{camera}, {way}": [] for camera in CAMERAS for way in ways}
    expert, solved, n_steps, n_images, n_differing = PickAndPlace(env), False, 0, 0, 0
    while not solved:
        _, _, solved, _, _ = env.step(expert.act())
        n_steps += 1
        if n_steps % 8:
            continue
        env._enter_gl_context()
        for camera in CAMERAS:
            images = []
            for way, render in ways.items():
                context.render = render
                env._env.sim.render(camera_name=camera, width=size, height=size)  # Each way has its meshes.
                begin = time.process_time()
                images.append(env._env.sim.render(camera_name=camera, width=size, height=size))
                times[f"{camera}, {way}"].append(1e3 * (time.process_time() - begin))
            n_images += 1
            n_differing += not np.array_equal(*images)
    env.close()
    found = {name: round(statistics.median(values), 1) for name, values in times.items()}
    print(json.dumps({"suite": arguments.suite, "ms": found, "images": n_images, "differing": n_differing}))


if __name__ == "__main__":
    main()
