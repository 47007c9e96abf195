"""Time of our stochastic sampling (Flow-SDE) over the policy's own sampling, side by side in one run.

    python benchmarks/sampling.py --size tiny
    python benchmarks/sampling.py --size 450m --pairs 5
    python benchmarks/sampling.py --size 450m --device cuda

Both sides turn the same preprocessed observation into a chunk with the same K: the policy's own
`predict_action_chunk`, and `encode` with `FlowSDERatio.sample`, which also records what the update replays.
The sides take turns, and the ratio is the median over the pairs. On a CPU it is CPU time of one thread, on a
GPU time until it is idle. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ |= {"OMP_NUM_THREADS": "1"}  # Before torch is loaded: as in a rollout worker.

import torch
from policies import SIZES, make_actor, random_observation, seconds

from lerobot_smoothvla.flow.ratio import FlowSDERatio


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_steps", type=int, default=10, help="K")
    parser.add_argument("--stochastic_steps", choices=("one", "all"), default="one")
    parser.add_argument("--noise_length", type=float, default=0.0)
    parser.add_argument("--pairs", type=int, default=30, help="measurements of each side")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    estimator = FlowSDERatio(
        level=0.2, stochastic_steps=arguments.stochastic_steps, noise_length=arguments.noise_length
    )
    device = arguments.device
    generator = torch.Generator(device).manual_seed(0)
    with TemporaryDirectory() as directory:
        actor = make_actor(arguments.size, Path(directory), device, num_steps=arguments.num_steps)
    batch = actor.model_input(random_observation(actor.policy.config, 1), ["pick up the milk"])

    def own() -> None:
        actor.policy.predict_action_chunk(batch)

    def ours() -> None:
        estimator.sample(actor.adapter, actor.adapter.encode(batch), generator)

    own(), ours()
    pairs = [(seconds(own, device), seconds(ours, device)) for _ in range(arguments.pairs)]
    print(
        json.dumps(
            {
                "own_ms": round(1e3 * statistics.median(own for own, _ in pairs), 2),
                "ours_ms": round(1e3 * statistics.median(ours for _, ours in pairs), 2),
                "ratio": round(statistics.median(ours / own for own, ours in pairs), 3),
                **vars(arguments),
            }
        )
    )


if __name__ == "__main__":
    main()
