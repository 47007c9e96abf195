"""Where a study's jerk comes from: within the arm's reach, and where it is stretched out.

    python benchmarks/reach.py docs/results/evaluations/trained/none

Of evaluations in libero_object and libero_spatial, each in a directory `<arm>_<seed>`. The last line is one
JSON object: for each arm its episodes, the RMS of jerk (m/s³) of control steps in which the hand is nearer to
the robot's base than `--far` and of the others, and the others' share of the steps and of the squared jerk.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch

from lerobot_smoothvla.evaluation.report import read_evaluation
from lerobot_smoothvla.smoothness import jerk

BASES = {"libero_object": (-0.6, 0.0), "libero_spatial": (-0.66, 0.0)}
"""Of their robots, m."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("evaluations", type=Path)
    parser.add_argument("--far", type=float, default=0.8, help="m, horizontally")
    arguments = parser.parse_args()
    distances, jerks = defaultdict(list), defaultdict(list)
    for directory in sorted(arguments.evaluations.iterdir()):
        arm = directory.name.rsplit("_", 1)[0]
        for measurement in read_evaluation(directory)[1]["policy"].measurements:
            positions = measurement.positions.double()
            base = torch.tensor(BASES[measurement.start.suite])
            jerks[arm].append(jerk(positions, measurement.dt).norm(dim=-1))
            distances[arm].append((positions[3:, :2] - base).norm(dim=-1))
    found = {}
    for arm in jerks:
        squared, far = torch.cat(jerks[arm]) ** 2, torch.cat(distances[arm]) > arguments.far
        found[arm] = {
            "episodes": len(jerks[arm]),
            "near": round(squared[~far].mean().sqrt().item(), 1),
            "far": round(squared[far].mean().sqrt().item(), 1),
            "share of steps": round(far.double().mean().item(), 2),
            "share of squared jerk": round((squared[far].sum() / squared.sum()).item(), 2),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
