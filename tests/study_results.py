"""Evaluations of a study's arms with known outcomes."""

import math
from collections.abc import Callable

from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.evaluation.evaluate import Evaluation, EvaluationConfig, Measurement
from lerobot_smoothvla.study.plan import Condition, Trial

TRAINED = Condition("trained", LiberoEnvConfig(task="libero_object"), EvaluationConfig())


def trial(arm: str, seed: int, filter_name: str = "none") -> Trial:
    return Trial(arm, seed, TRAINED, filter_name)


def evaluation(jerk: Callable[[float], float], successes: int = 10, time: float = 8.0) -> Evaluation:
    """Ten starts; start k has `jerk(10 + k)`, and the first `successes` are solved in `time` s."""
    measurements = []
    for index in range(10):
        solved = index < successes
        terms = dict.fromkeys(("boundary_jerk_rms", "interior_jerk_rms", "ldlj", "sparc", "path_length"), 1.0)
        terms |= {"jerk_rms": jerk(10.0 + index), "time_to_success": time if solved else math.nan}
        measurements.append(Measurement(Start("libero_object", 0, 40 + index, 0), solved, terms))
    return Evaluation(tuple(measurements))


def evaluations(
    smooth_jerk: Callable[[float], float] = lambda jerk: jerk - 3.0,
    smooth_time: float = 8.0,
    sft_successes: int = 10,
) -> dict[Trial, Evaluation]:
    """A warm start, and three seeds of each arm; the smooth one alone moves otherwise."""
    found = {trial("sft", 0): evaluation(lambda jerk: jerk, sft_successes)}
    for seed in (1, 2, 3):
        found |= {trial(arm, seed): evaluation(lambda jerk: jerk) for arm in ("success", "sum")}
        found[trial("smooth", seed)] = evaluation(smooth_jerk, time=smooth_time)
    return found
