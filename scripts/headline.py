"""Write docs/results' tables, and README's headline, from docs/results/episodes.jsonl: `make results`."""

import re
from pathlib import Path

from lerobot_smoothvla.evaluation.report import markdown
from lerobot_smoothvla.study.results import (
    Results,
    cell_rows,
    comparison_rows,
    read_episodes,
    summarise,
    write_tables,
)

RESULTS = Path("docs/results")
README = Path("README.md")
PLACE = re.compile(r"(<!-- headline -->\n).*?(<!-- end of headline -->)", re.DOTALL)


def headline(found: Results) -> str:
    """The arms on the trained tasks, and the planned differences between them, without filters."""
    trained = {key: runs for key, runs in found.items() if key[:2] == ("trained", "none")}
    cells, comparisons = summarise(trained)
    return f"\n{markdown(cell_rows(cells))}\n{markdown(comparison_rows(comparisons))}\n"


def with_headline(text: str, found: Results) -> str:
    """A document with its headline written anew.

    Raises:
        ValueError: If it has no place for one.
    """
    if not PLACE.search(text):
        raise ValueError("The document has no place for a headline: expected `<!-- headline -->` in it.")
    return PLACE.sub(lambda place: place[1] + headline(found) + place[2], text)


if __name__ == "__main__":
    write_tables(RESULTS)
    README.write_text(with_headline(README.read_text(), read_episodes(RESULTS)))
