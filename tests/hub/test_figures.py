"""The pictures of a card: one for what there is to show, none for what there is not."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from card_facts import FACTS
from PIL import Image
from run_directories import evaluation, metrics

from lerobot_smoothvla.hub.card import Measured, model_card, picture_path
from lerobot_smoothvla.hub.figures import pictures

LOG = [metrics(iteration, success) for iteration, success in enumerate([0.25, None, 0.75], start=1)]
SOLVED = Measured(evaluation([True, True, False, True]))


def ink(png: bytes) -> float:
    """Share of the picture that is not white."""
    return float((np.asarray(Image.open(BytesIO(png)).convert("L")) < 250).mean())


@pytest.mark.parametrize(
    ("log", "evaluations", "names"),
    [
        ([], [], []),
        (LOG[:1], [], []),
        (LOG, [], ["training"]),
        ([], [SOLVED], ["evaluations"]),
        (LOG, [SOLVED, replace(SOLVED, condition="light shifted by 0.3")], ["training", "evaluations"]),
    ],
)
def test_what_is_known_is_drawn_and_shown_in_the_card(log, evaluations, names):
    facts = replace(FACTS, metrics=log, evaluations=evaluations)
    drawn = pictures(facts)
    assert list(drawn) == names
    assert all(0.005 < ink(png) < 0.5 for png in drawn.values())
    card = str(model_card(facts, drawn))
    assert card.count("![") == len(names)
    assert all(f"]({picture_path(name)})" in card for name in names)


def orange(png: bytes) -> int:
    """Pixels of the second colour."""
    red, green, blue = np.moveaxis(np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int), 2, 0)
    return int(((red > 230) & (abs(green - 127) < 30) & (blue < 60)).sum())


def test_a_baseline_is_drawn_beside_the_policy():
    compared = replace(
        SOLVED, baseline=evaluation([False] * 4, roughness=0.002), baseline_name="the warm start"
    )
    alone, beside = (pictures(replace(FACTS, evaluations=[one]))["evaluations"] for one in (SOLVED, compared))
    assert orange(alone) == 0 and orange(beside) > 100
