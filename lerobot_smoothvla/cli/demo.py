"""`smoothvla demo`: the whole path on real LIBERO, without the Hub and without a GPU."""

from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.demo import DemoConfig, run


def main() -> None:
    """Run the demo, or what is missing of it, and print its summary."""
    summary = run(parse(DemoConfig))
    print(f"\n{summary.read_text()}\nWritten to {summary}.")
