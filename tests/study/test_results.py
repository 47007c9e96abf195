"""What is made of evaluations whose outcome is known."""

import json
import math
from pathlib import Path

import pytest
from study_results import evaluations, trial

from lerobot_smoothvla.evaluation import report
from lerobot_smoothvla.study.plan import StudyConfig, trials
from lerobot_smoothvla.study.results import EPISODES, RESULTS, summarise, write_results


def comparison(comparisons, candidate: str, baseline: str, condition: str = "trained"):
    (found,) = [
        c for c in comparisons if (c.condition, c.candidate, c.baseline) == (condition, candidate, baseline)
    ]
    return found


def test_differences_are_paired_by_start_and_seed_and_jerk_is_also_relative():
    cells, comparisons = summarise(evaluations())
    assert cells["trained", "none", "smooth"].n_seeds == 3 and cells["trained", "none", "sft"].n_seeds == 1
    found = comparison(comparisons, "smooth", "success")
    # Every start has a jerk of its own, which is 3 lower under the other policy: so there is no spread.
    jerk = found.differences["jerk_rms"]
    assert (jerk.estimate, jerk.low, jerk.high) == pytest.approx((-3.0, -3.0, -3.0))
    mean = cells["trained", "none", "success"].measures["jerk_rms"].estimate
    assert found.relative_jerk.estimate == pytest.approx(-3.0 / mean)
    assert found.planned


def test_a_policy_that_only_slows_down_is_no_smoother_at_matched_duration():
    _, comparisons = summarise(evaluations(smooth_jerk=lambda jerk: jerk / 8, smooth_time=16.0))
    differences = comparison(comparisons, "smooth", "sft").differences
    assert differences["jerk_rms"].high < -5
    assert differences["jerk_at_matched_duration"].estimate == pytest.approx(0.0, abs=1e-9)
    assert differences["time_to_success"].estimate == pytest.approx(8.0)


def test_failures_count_for_success_and_not_for_the_jerk_of_successes():
    cells, comparisons = summarise(evaluations(sft_successes=5))
    measures = cells["trained", "none", "sft"].measures
    assert measures["success_rate"].estimate == 0.5
    assert measures["jerk_rms"].estimate == pytest.approx(14.5)  # 10, 11, …, 19
    assert measures["jerk_rms_success"].estimate == pytest.approx(12.0)  # 10, …, 14
    difference = comparison(comparisons, "smooth", "sft").differences
    assert difference["success_rate"].estimate == 0.5
    assert difference["jerk_rms_success"].estimate == pytest.approx(-3.0)


def test_a_filter_is_what_the_jerk_reward_is_compared_with():
    found = evaluations() | {trial("success", 1, "exponential"): next(iter(evaluations().values()))}
    _, comparisons = summarise(found)
    filtered = comparison(comparisons, "smooth", "success+exponential")
    assert filtered.planned and filtered.differences["jerk_rms"].estimate == pytest.approx(-3.0)


def test_what_has_been_evaluated_so_far_is_written_and_read_back(tmp_path: Path):
    config = StudyConfig(size="smoke", output_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="no evaluation in .* run `smoothvla study --size=smoke`"):
        write_results(config)
    some = {t: e for t, e in evaluations().items() if t.seed < 2}
    planned = {(t.arm, t.seed, t.condition.name, t.filter): t for t in trials(config.plan)}
    for one, evaluation in some.items():
        for condition in ("trained", "camera"):
            directory = planned[one.arm, one.seed, condition, "none"].output_dir(tmp_path)
            directory.mkdir(parents=True)
            report.write(directory, {"policy": one.arm}, {"policy": evaluation})
    table = write_results(config).read_text()
    lines = [json.loads(line) for line in (config.results / EPISODES).read_text().splitlines()]
    assert len(lines) == 2 * 4 * 10
    assert {line["arm"] for line in lines} == {"sft", "success", "sum", "smooth"}
    cells, comparisons = summarise(some)
    written = json.loads((config.results / RESULTS).read_text())
    assert len(written["cells"]) == 2 * len(cells) and len(written["comparisons"]) == 2 * len(comparisons)
    assert "| trained | smooth − success | +0.00 (+0.00 to +0.00) | −3.00 (−3.00 to −3.00) |" in table
    assert not math.isnan(written["comparisons"][0]["differences"]["jerk_rms"]["estimate"])
