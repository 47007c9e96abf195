"""`smoothvla demo`: the whole path on real LIBERO, without the Hub and without a GPU."""

import draccus

from lerobot_smoothvla.demo import DemoConfig, run


def main() -> None:
    """Run the demo, or what is missing of it, and print its summary."""
    summary = run(draccus.parse(DemoConfig))
    print(f"\n{summary.read_text()}\nWritten to {summary}.")
