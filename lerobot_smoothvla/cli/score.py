"""`smoothvla score`: the smoothness of a dataset's episodes, and their worst moments."""

from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.report.score import ScoreConfig, score_dataset
from lerobot_smoothvla.report.score_page import score_sentences, write_score


def run(config: ScoreConfig) -> None:
    """Measure, say what came out, and write the page."""
    score = score_dataset(config)
    for sentence in score_sentences(score):
        print(sentence)
    print(f"Written to {write_score(score, config.directory)}")


def main() -> None:
    """Entry of `smoothvla score`."""
    run(parse(ScoreConfig))
