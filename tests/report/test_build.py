"""What the page says of directories whose figures are known."""

import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_directories import evaluation, metrics, write_evaluation, write_training_run

from lerobot_smoothvla.evaluation.evaluate import Evaluation
from lerobot_smoothvla.evaluation.report import read_evaluation
from lerobot_smoothvla.report.build import ReportConfig, follow, write_report
from lerobot_smoothvla.report.comparison import non_dominated
from lerobot_smoothvla.report.runs import arms, evaluated_policies, read_runs, short_labels
from lerobot_smoothvla.report.training import curve

SOLVED_13, SOLVED_10 = [True] * 13 + [False] * 7, [True] * 10 + [False] * 10


def page_of(*runs: Path, **settings) -> str:
    return write_report(ReportConfig(list(runs), **settings)).read_text()


def text_of(page: str) -> str:
    """What can be read on it, by a screen reader too."""
    body = re.sub(r"<(style|script|title)>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


# --- what it says


def test_the_summary_says_what_ran(tmp_path):
    run = write_training_run(tmp_path / "grpo", [0.25, 0.5, 0.75])
    text = text_of(page_of(run))
    assert "3 of 3 iterations of 32 rollouts (4 starts, 8 of each) on libero_object, seed 1" in text
    assert "success of the rollouts went from 0.250 to 0.750 and jerk RMS from 7.00 to 5.00 m/s³" in text


def test_the_summary_says_how_many_starts_were_solved_with_the_interval(tmp_path):
    run = write_evaluation(tmp_path / "eval", policy=evaluation(SOLVED_13))
    assert "solved 13 of 20 starts (0.650, 95 % 0.433 to 0.819)" in text_of(page_of(run))


def test_a_difference_whose_interval_includes_0_is_said_to_show_nothing(tmp_path):
    few = evaluation([True, False, True, False])
    other = evaluation([False, True, True, True])
    text = text_of(page_of(write_evaluation(tmp_path / "eval", compare=few, policy=other)))
    assert re.search(
        r"Success: \+0\.250 \(95 % -0\.\d+ to \+\S+\), paired over 4 starts\. The interval", text
    )
    assert "includes 0: these starts do not show a difference" in text


def test_a_difference_whose_interval_excludes_0_is_told_with_its_direction(tmp_path):
    rough, smooth = evaluation(SOLVED_13, roughness=0.002), evaluation(SOLVED_13, roughness=0.001)
    text = text_of(page_of(write_evaluation(tmp_path / "eval", compare=rough, policy=smooth)))
    assert re.search(r"Jerk RMS: -\S+ m/s³ \(95 % -\S+ to -\S+\), paired over 20 starts: lower", text)
    assert "Success: the same from each of the 20 starts" in text
    assert "slower rather than smoother" not in text


def test_one_start_is_said_to_show_nothing(tmp_path):
    run = write_evaluation(tmp_path / "eval", compare=evaluation([True]), policy=evaluation([False]))
    assert "one start shows nothing about others" in text_of(page_of(run))


def test_less_jerk_by_taking_longer_is_not_called_smooth(tmp_path):
    fast, slow = evaluation(SOLVED_13, roughness=0.002), evaluation(SOLVED_13, roughness=0.001)
    for measurement in slow.measurements:
        measurement.terms["time_to_success"] += 1.0
    text = text_of(page_of(write_evaluation(tmp_path / "eval", compare=fast, policy=slow)))
    assert "it may be slower rather than smoother" in text


def test_the_tables_have_the_figures_of_the_evaluation(tmp_path):
    policy = evaluation(SOLVED_13)
    page = page_of(write_evaluation(tmp_path / "eval", policy=policy))
    jerk = policy.summary().terms["jerk_rms"]
    assert f"{jerk.estimate:.1f} [{jerk.low:.1f}, {jerk.high:.1f}]" in page
    assert "<td>10/10, " in page and "<td>3/10, " in page


def test_every_figure_of_the_training_is_there_as_a_number_too(tmp_path):
    text = text_of(page_of(write_training_run(tmp_path / "grpo", [0.25, None])))
    assert " 1 0.250 7.00 5.00 - - 0.010 0.100 0.000 0.500 " in text
    assert " 2 - 6.00 4.00 - " in text


def test_settings_and_origin_are_on_the_page(tmp_path):
    run = write_training_run(tmp_path / "grpo", [0.5])
    line = {"time": "2026-01-01 12:00 UTC", "command": "smoothvla grpo --seed=1", "commit": "abc", "steps": 1}
    (run / "provenance.jsonl").write_text(json.dumps(line) + "\n")
    text = text_of(page_of(run))
    assert "smoothvla grpo --seed=1" in text and "abc" in text
    assert "algorithm.reward.weight 0.5" in text


def test_what_comes_from_files_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    run = write_training_run(tmp_path / "<b>grpo", [0.5])
    config = run / "checkpoints/000000/pretrained_model/train_config.json"
    config.write_text(config.read_text().replace("libero_object", evil))
    (run / "provenance.jsonl").write_text(json.dumps({"command": evil}) + "\n")
    result = write_evaluation(tmp_path / "eval", policy=evaluation([True], suite=evil))
    page = page_of(run, result)
    assert evil not in page and "<b>" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


# --- several runs


def test_seeds_of_an_arm_become_a_line_and_a_band(tmp_path):
    runs = [write_training_run(tmp_path / f"s{i}", [0.1 * i, 0.2 * i], seed=i) for i in (1, 2, 3)]
    training, _ = read_runs(runs)
    [(label, group)] = arms(training).items()
    drawn = curve("success_rate", 0, label, group)
    assert drawn.y == pytest.approx([0.2, 0.4])
    assert drawn.low == pytest.approx([0.1, 0.2]) and drawn.high == pytest.approx([0.3, 0.6])
    assert "(3 seeds)" in page_of(*runs)


def test_arms_are_called_by_the_setting_in_which_they_differ(tmp_path):
    runs = [write_training_run(tmp_path / f"w{w}_{s}", [0.5], s, w) for w in (0.0, 0.5) for s in (1, 2)]
    found = arms(read_runs(runs)[0])
    assert {label: len(group) for label, group in found.items()} == {
        "reward.weight=0.0": 2,
        "reward.weight=0.5": 2,
    }


def test_a_longer_seed_goes_on_alone(tmp_path):
    runs = [write_training_run(tmp_path / "a", [0.2, 0.4], 1), write_training_run(tmp_path / "b", [0.6], 2)]
    drawn = curve("success_rate", 0, "arm", read_runs(runs)[0])
    assert list(drawn.x) == [1, 2] and drawn.y == pytest.approx([0.4, 0.4])


def test_a_demo_has_both_kinds(tmp_path):
    write_training_run(tmp_path / "demo/grpo", [0.5])
    write_evaluation(
        tmp_path / "demo/evaluation", compare=evaluation(SOLVED_13), policy=evaluation(SOLVED_10)
    )
    text = text_of(page_of(tmp_path / "demo"))
    assert "Training" in text and "13 of 20" in text and "10 of 20" in text


def test_evaluations_on_the_same_starts_are_compared_with_the_first(tmp_path):
    runs = [
        write_evaluation(tmp_path / name, policy=evaluation(solved))
        for name, solved in (("first", SOLVED_10), ("second", SOLVED_13))
    ]
    assert "Success: +0.150" in text_of(page_of(*runs))


def test_evaluations_on_other_starts_are_not_compared(tmp_path):
    runs = [
        write_evaluation(tmp_path / name, policy=evaluation([True] * n))
        for name, n in (("first", 5), ("second", 6))
    ]
    text = text_of(page_of(*runs))
    assert "paired over" not in text
    assert "Not all of them played the same starts" in text


def test_a_policy_that_two_evaluations_share_is_shown_once(tmp_path):
    base = evaluation(SOLVED_10)
    runs = [
        write_evaluation(tmp_path / "first", compare=base, policy=evaluation(SOLVED_13)),
        write_evaluation(tmp_path / "second", compare=base, policy=evaluation([True] * 20)),
    ]
    assert len(evaluated_policies(read_runs(runs)[1])) == 3


def test_what_was_measured_in_another_unit_has_no_place_in_the_same_tables(tmp_path):
    metres = evaluation([True, False])
    pixels = Evaluation(tuple(replace(m, unit="px") for m in metres.measurements))
    runs = [write_evaluation(tmp_path / unit, policy=of) for unit, of in {"m": metres, "px": pixels}.items()]
    with pytest.raises(
        ValueError, match="in one unit, got m in '.*/m', px in '.*/px'; make a report of each"
    ):
        evaluated_policies(read_runs(runs)[1])


def test_labels_are_as_short_as_tells_them_apart():
    assert short_labels(["a/grpo/checkpoints/last/pretrained_model"]) == ["grpo/last"]
    assert short_labels(["a/x/last", "b/x/last"]) == ["a/x/last", "b/x/last"]
    assert short_labels(["a/x", "a/x"]) == ["a/x", "a/x (2)"]


def test_nothing_dominates_what_has_less_jerk_or_more_success():
    assert non_dominated([(1.0, 0.5), (2.0, 0.9), (2.0, 0.4), (1.5, 0.5)]) == [0, 1]
    assert non_dominated([(1.0, 0.5), (1.0, 0.5)]) == [0, 1]


# --- positions and videos


def test_positions_come_back_as_they_were_kept(tmp_path):
    policy = evaluation([True, False])
    write_evaluation(tmp_path, policy=policy)
    paths, results = read_evaluation(tmp_path)
    assert paths == {"policy": "outputs/policy/checkpoints/last/pretrained_model"}
    for kept, measured in zip(results["policy"].measurements, policy.measurements, strict=True):
        assert kept.positions.dtype == torch.float32 and kept.positions.equal(measured.positions)
    assert repr(results["policy"]) == repr(policy)
    assert (tmp_path / "positions.safetensors").stat().st_size < 2_000


def test_an_evaluation_without_positions_has_no_profiles_and_says_why(tmp_path):
    run = write_evaluation(tmp_path, videos=True, policy=evaluation([True], positions=False))
    page = page_of(run)
    assert "kept no positions" in page and "Speed, m/s" not in page


def test_videos_beyond_the_limit_are_left_out_and_said_to_be(tmp_path):
    run = write_evaluation(tmp_path, videos=True, policy=evaluation([True]))
    assert page_of(run).count("<video") == 1
    page = page_of(run, max_video_mb=0.0)
    assert "<video" not in page
    assert "is left out" in page and "init_40_seed_1040.mp4" in page


# --- what is not as it should be


def test_a_directory_that_holds_nothing_is_named(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"'{directory}' is no output directory"):
            page_of(directory)


def test_a_run_without_an_iteration_is_said_to_have_none(tmp_path):
    with pytest.raises(ValueError, match="no iteration yet.*--live=true"):
        page_of(write_training_run(tmp_path, [], steps=3))


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    run = write_training_run(tmp_path, [0.25, 0.5], steps=3)
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"iteration": 3, "succ')
    assert "2 of 3 iterations" in page_of(run)


def test_a_broken_line_is_named(tmp_path):
    run = write_training_run(tmp_path, [0.25])
    (run / "metrics.jsonl").write_text("{broken\n" + json.dumps(metrics(2, 0.5)) + "\n")
    with pytest.raises(ValueError, match=r"Line 1 of '.*metrics.jsonl' should be JSON, got '\{broken'"):
        page_of(run)


@pytest.mark.parametrize("text", ["{", "{}", '{"policy": {"per_episode": [{"suite": "a"}]}}'])
def test_an_evaluation_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "eval_info.json").write_text(text)
    with pytest.raises(ValueError, match="evaluation|smoothvla eval"):
        page_of(tmp_path)


def test_an_evaluation_in_which_nothing_moved_can_be_reported(tmp_path):
    still = evaluation([False, False])
    for measurement in still.measurements:
        measurement.terms.update(dict.fromkeys(("jerk_rms", "ldlj", "sparc"), torch.nan))
    text = text_of(page_of(write_evaluation(tmp_path, policy=still)))
    assert "solved 0 of 2 starts" in text and "not measured" in text


def test_the_page_is_where_it_was_asked_for(tmp_path):
    run = write_training_run(tmp_path / "run", [0.5])
    assert write_report(ReportConfig([run])) == run / "report.html"
    assert write_report(ReportConfig([run])) == run / "report.html"
    assert write_report(ReportConfig([run], tmp_path / "new/page.html")).is_file()


# --- live


def test_a_live_page_follows_the_run_and_ends_with_it(tmp_path):
    run = write_training_run(tmp_path, [], steps=2)
    follower = threading.Thread(target=follow, args=[ReportConfig([run], live=True)])
    follower.start()
    page = run / "report.html"
    for iteration in (1, 2):
        waited_for(lambda: page.is_file() and f"{iteration - 1} of 2 iterations" in page.read_text())  # noqa: B023
        assert 'http-equiv="refresh"' in page.read_text()
        with (run / "metrics.jsonl").open("a") as log:
            log.write(json.dumps(metrics(iteration, 0.5)) + "\n")
    follower.join(timeout=20)
    assert not follower.is_alive()
    assert "2 of 2 iterations" in page.read_text() and 'http-equiv="refresh"' not in page.read_text()


def waited_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_resumed_run_is_followed_to_its_new_end(tmp_path):
    run = write_training_run(tmp_path, [0.5, 0.5])
    assert read_runs([run])[0][0].finished
    (run / "provenance.jsonl").write_text('{"steps": 2}\n{"steps": 5}\n')
    assert not read_runs([run])[0][0].finished


def test_nothing_of_it_loads_a_simulator():
    code = "import sys, lerobot_smoothvla.report.build, lerobot_smoothvla.report.score_page; "
    code += "print(sorted({'mujoco', 'robosuite', 'libero'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_round_trip_through_json_keeps_the_summary():
    policy = evaluation(SOLVED_13)
    again = Evaluation.from_json(json.loads(json.dumps(policy.to_json())))
    assert repr(again.summary()) == repr(policy.summary())
