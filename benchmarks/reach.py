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

import numpy as np

from lerobot_smoothvla.evaluation.report import read_evaluation

BASES = {"libero_object": (-0.6, 0.0), "libero_spatial": (-0.66, 0.0)}
"""Of their robots, m."""
STEP = 0.05
"""Control period, s."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("evaluations", type=Path)
    parser.add_argument("--far", type=float, default=0.8, help="m, horizontally")
    arguments = parser.parse_args()
    distances, jerks, n_episodes = defaultdict(list), defaultdict(list), defaultdict(int)
    for directory in sorted(arguments.evaluations.iterdir()):
        arm = directory.name.rsplit("_", 1)[0]
        for measurement in read_evaluation(directory)[1]["policy"].measurements:
            positions = np.asarray(measurement.positions)
            jerks[arm].append(np.linalg.norm(np.diff(positions, 3, axis=0) / STEP**3, axis=1))
            distances[arm].append(np.linalg.norm(positions[3:, :2] - BASES[measurement.start.suite], axis=1))
            n_episodes[arm] += 1
    found = {}
    for arm in jerks:
        squared, far = np.concatenate(jerks[arm]) ** 2, np.concatenate(distances[arm]) > arguments.far
        found[arm] = {
            "episodes": n_episodes[arm],
            "near": round(float(np.sqrt(squared[~far].mean())), 1),
            "far": round(float(np.sqrt(squared[far].mean())), 1),
            "share of steps": round(float(far.mean()), 2),
            "share of squared jerk": round(float(squared[far].sum() / squared.sum()), 2),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
