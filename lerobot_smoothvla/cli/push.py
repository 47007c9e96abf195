"""`smoothvla push RUN [EVALUATION ...] --repo_id=USER/NAME`: a checkpoint and its card onto the Hub."""

import sys

from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.cli.report import named_runs
from lerobot_smoothvla.hub.push import PushConfig, push


def main() -> None:
    """Entry of `smoothvla push`."""
    sys.argv[1:] = named_runs(sys.argv[1:])
    print(f"Pushed to {push(parse(PushConfig))}")
