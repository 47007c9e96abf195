"""`smoothvla report RUN...`: runs, evaluations and comparisons as one HTML page."""

import json
import sys
from collections.abc import Sequence

from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.report.build import ReportConfig, follow, write_report


def named_runs(arguments: Sequence[str]) -> list[str]:
    """The command line with the directories that stand in it by themselves as `--runs=[...]`."""
    runs: list[str] = []
    flags: list[str] = []
    for index, argument in enumerate(arguments):
        previous = arguments[index - 1] if index else ""
        is_value = previous.startswith("--") and "=" not in previous and previous != "--help"
        (flags if argument.startswith("-") or is_value else runs).append(argument)
    return [*([f"--runs={json.dumps(runs)}"] if runs else []), *flags]


def run(config: ReportConfig) -> None:
    """Write the page, once or as long as a run goes on."""
    if config.live:
        print(f"{config.page} follows the run; Ctrl-C ends it.", flush=True)
    print(f"Written to {(follow if config.live else write_report)(config)}")


def main() -> None:
    """Entry of `smoothvla report`."""
    sys.argv[1:] = named_runs(sys.argv[1:])
    run(parse(ReportConfig))
