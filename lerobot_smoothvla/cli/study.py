"""`smoothvla study`: warm start, arms, seeds and evaluations of a study, or what is missing of them."""

from functools import partial

from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.locking import sole_writer
from lerobot_smoothvla.stages import run_stages
from lerobot_smoothvla.study.evaluate import evaluate_missing
from lerobot_smoothvla.study.page import write_study_page
from lerobot_smoothvla.study.plan import StudyConfig, stages
from lerobot_smoothvla.study.results import write_results


def run(config: StudyConfig) -> None:
    """Run what is missing, and sum up."""
    with sole_writer(config.directory, "--output_dir"):
        for seed in config.plan.seeds:  # So that a study that is stopped early has whole comparisons.
            run_stages(partial(stages, config, [seed]), config.directory, n_beside=config.n_workers)
            evaluate_missing(config, seed)
            table = write_results(config)
            page = write_study_page(config)
    print(f"\n{table.read_text()}\nWritten to {table.parent}; {page.name} is the whole of it.")


def main() -> None:
    """Entry of `smoothvla study`."""
    run(parse(StudyConfig))
