"""`smoothvla demos`: demonstrations by a scripted expert, as a LeRobotDataset."""

import json

from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.demos.record import SUMMARY, DemosConfig, record


def run(config: DemosConfig) -> None:
    """Record, and say what was kept."""
    root = record(config)
    tasks = json.loads((root / SUMMARY).read_text())["tasks"]
    for name, count in tasks.items():
        where, failures = next(item for item in count.items() if item[0].startswith("failed"))
        dropped = f", dropped the failures at {where.removeprefix('failed_')} {failures}" if failures else ""
        print(f"{name}: kept {count['kept']} of {count['attempts']} episodes{dropped}")
    print(f"Written to {root}")


def main() -> None:
    """Entry of `smoothvla demos`."""
    run(parse(DemosConfig))
