"""What is made of evaluations whose outcome is known."""

import html
import json
import math
import runpy
from pathlib import Path

import pytest
from study_results import evaluation, results

from lerobot_smoothvla.evaluation import report
from lerobot_smoothvla.study.page import write_study_page
from lerobot_smoothvla.study.plan import ARMS, StudyConfig, trials
from lerobot_smoothvla.study.results import (
    EPISODES,
    RESULTS,
    cell_rows,
    comparison_rows,
    read_episodes,
    summarise,
    write_results,
)

REPOSITORY = Path(__file__).parents[2]


def comparison(comparisons, candidate: str, baseline: str, condition: str = "trained"):
    (found,) = [
        c for c in comparisons if (c.condition, c.candidate, c.baseline) == (condition, candidate, baseline)
    ]
    return found


def test_differences_are_paired_by_start_and_seed_and_jerk_is_also_relative():
    cells, comparisons = summarise(results())
    assert cells["trained", "none", "smooth"].n_seeds == 3 and cells["trained", "none", "sft"].n_seeds == 1
    found = comparison(comparisons, "smooth", "success")
    # Every start has a jerk of its own, which is 3 lower under the other policy: so there is no spread.
    jerk = found.differences["jerk_rms"]
    assert (jerk.estimate, jerk.low, jerk.high) == pytest.approx((-3.0, -3.0, -3.0))
    mean = cells["trained", "none", "success"].measures["jerk_rms"].estimate
    assert found.relative["jerk_rms"].estimate == pytest.approx(-3.0 / mean)


def test_a_policy_that_only_slows_down_is_no_smoother_at_matched_duration():
    _, comparisons = summarise(results(smooth_jerk=lambda jerk: jerk / 8, smooth_time=16.0))
    differences = comparison(comparisons, "smooth", "sft").differences
    assert differences["jerk_rms"].high < -5
    assert differences["jerk_at_matched_duration"].estimate == pytest.approx(0.0, abs=1e-9)
    assert differences["time_to_success"].estimate == pytest.approx(8.0)


def test_failures_count_for_success_and_not_for_the_jerk_of_successes():
    cells, comparisons = summarise(results(sft_successes=5))
    measures = cells["trained", "none", "sft"].measures
    assert measures["success_rate"].estimate == 0.5
    assert measures["jerk_rms"].estimate == pytest.approx(14.5)  # 10, 11, …, 19
    assert measures["jerk_rms_success"].estimate == pytest.approx(12.0)  # 10, …, 14
    difference = comparison(comparisons, "smooth", "sft").differences
    assert difference["success_rate"].estimate == 0.5
    assert difference["jerk_rms_success"].estimate == pytest.approx(-3.0)
    # As a share of the baseline's where both succeed, not of all that it did.
    assert comparison(comparisons, "smooth", "sft").relative["jerk_rms_success"].estimate == pytest.approx(
        -3.0 / 12.0
    )


def test_a_filter_is_what_the_jerk_reward_is_compared_with():
    filtered = {("trained", "exponential", "success"): {1: evaluation(lambda jerk: jerk)}}
    _, comparisons = summarise(results() | filtered)
    found = comparison(comparisons, "smooth", "success+exponential")
    assert found.differences["jerk_rms"].estimate == pytest.approx(-3.0)


def test_what_was_not_planned_says_so_and_is_not_a_baseline():
    blended = {("trained", "blend", arm): {1: evaluation(lambda jerk: jerk)} for arm in ("success", "best")}
    _, comparisons = summarise(results() | blended)
    assert not comparison(comparisons, "best+blend", "success+blend").planned
    assert [c.planned for c in comparisons].count(False) == 1
    assert "best+blend − success+blend (not planned)" in comparison_rows(comparisons)[-1]
    assert not [c for c in comparisons if c.baseline == "best+blend"]


def test_arms_without_a_seed_in_common_are_not_compared():
    found = results()
    found["trained", "none", "smooth"] = {4: evaluation(lambda jerk: jerk)}
    del found["trained", "none", "best"]
    _, comparisons = summarise(found)
    assert [(c.candidate, c.baseline) for c in comparisons] == [("smooth", "sft"), ("success", "sft")]


def test_what_has_been_evaluated_so_far_is_written_and_read_back(tmp_path: Path):
    config = StudyConfig(size="smoke", output_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="no evaluation in .* run `smoothvla study --size=smoke`"):
        write_results(config)
    with pytest.raises(FileNotFoundError, match="no episodes of a study in"):
        read_episodes(config.directory)
    some = {key: {seed: of for seed, of in runs.items() if seed < 2} for key, runs in results().items()}
    for trial in trials(config.plan):
        if trial.condition.name in ("trained", "shifted") and trial.filter == "none":
            directory = trial.output_dir(tmp_path)
            directory.mkdir(parents=True)
            found = some["trained", "none", trial.arm][trial.seed]
            report.write(directory, {"policy": trial.arm}, {"policy": found})
    table = write_results(config).read_text()
    lines = [json.loads(line) for line in (config.directory / EPISODES).read_text().splitlines()]
    assert len(lines) == 2 * (1 + len(ARMS)) * 10
    assert {line["arm"] for line in lines} == {"sft", *ARMS}
    cells, comparisons = summarise(some)
    assert {
        k: c for k, c in summarise(read_episodes(config.directory))[0].items() if k[0] == "trained"
    } == cells
    written = json.loads((config.directory / RESULTS).read_text())
    assert len(written["cells"]) == 2 * len(cells) and len(written["comparisons"]) == 2 * len(comparisons)
    assert "| trained | smooth − success | +0.00 (+0.00 to +0.00) | −3.00 (−3.00 to −3.00) |" in table
    assert not math.isnan(written["comparisons"][0]["differences"]["jerk_rms"]["estimate"])

    page = write_study_page(config).read_text()
    assert page.count("Success against jerk, every arm") == 4  # caption and label in two conditions
    for row in (*cell_rows(cells), *comparison_rows(comparisons)):
        assert all(html.escape(cell) in page for cell in row)


def test_the_readme_shows_what_the_results_say_and_nothing_else_changes(tmp_path: Path):
    script = runpy.run_path(str(REPOSITORY / "scripts" / "headline.py"))
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    written = script["with_headline"](readme, results())
    assert "| smooth − success | +0.00 (+0.00 to +0.00) | −3.00 (−3.00 to −3.00) |" in written
    assert script["with_headline"](written, results()) == written
    before, after = (text.partition("<!-- headline -->")[0] for text in (readme, written))
    assert before == after and written.partition("<!-- end of")[2] == readme.partition("<!-- end of")[2]
    with pytest.raises(ValueError, match="no place for a headline"):
        script["with_headline"]("# A document\n", results())
    if ((kept := REPOSITORY / script["RESULTS"]) / EPISODES).is_file():
        assert readme == script["with_headline"](readme, read_episodes(kept))
