"""What a card is told about."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from run_directories import evaluation

from lerobot_smoothvla.evaluation import report
from lerobot_smoothvla.hub.facts import card_facts

REFUSED = pytest.raises(
    ValueError, match="as it was earlier, not of the checkpoint that is pushed.*evaluate that"
)


@pytest.mark.parametrize(
    ("later_s", "outcome"), [(0, nullcontext()), (3600, nullcontext()), (-3600, REFUSED)]
)
def test_an_evaluation_that_the_clock_puts_before_its_checkpoint_is_refused_rather_than_claimed(
    later_s: int, outcome: AbstractContextManager, run: Path, tmp_path: Path
):
    checkpoint = run / "checkpoints/last/pretrained_model"
    directory = tmp_path / "evaluation"
    directory.mkdir()
    info = report.write(directory, {"policy": str(checkpoint)}, {"policy": evaluation([True], suite="pusht")})
    written = (checkpoint / "config.json").stat().st_mtime + later_s
    os.utime(info, (written, written))
    with outcome:
        facts = card_facts(HfApi(), "me/smooth", run, [directory])
        assert len(facts.evaluations) == 1
