"""Evaluations of a study's arms with known outcomes."""

import math
from collections.abc import Callable

from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.evaluation.evaluate import Evaluation, Measurement
from lerobot_smoothvla.evaluation.report import LABELS
from lerobot_smoothvla.study.results import Results


def evaluation(jerk: Callable[[float], float], successes: int = 10, time: float = 8.0) -> Evaluation:
    """Ten starts; start k has `jerk(10 + k)`, and the first `successes` are solved in `time` s."""
    measurements = []
    for index in range(10):
        solved = index < successes
        terms = dict.fromkeys(LABELS, 1.0)
        terms |= {"jerk_rms": jerk(10.0 + index), "time_to_success": time if solved else math.nan}
        measurements.append(Measurement(Start("libero_object", 0, 40 + index, 0), solved, terms))
    return Evaluation(tuple(measurements))


def results(
    smooth_jerk: Callable[[float], float] = lambda jerk: jerk - 3.0,
    smooth_time: float = 8.0,
    sft_successes: int = 10,
) -> Results:
    """A warm start, and three seeds of each arm; the smooth one alone moves otherwise."""
    found = {("trained", "none", "sft"): {0: evaluation(lambda jerk: jerk, sft_successes)}}
    same = dict.fromkeys((1, 2, 3), evaluation(lambda jerk: jerk))
    smooth = dict.fromkeys((1, 2, 3), evaluation(smooth_jerk, time=smooth_time))
    arms = {"success": same, "sum": same, "smooth": smooth, "best": smooth}
    return found | {("trained", "none", arm): runs for arm, runs in arms.items()}
