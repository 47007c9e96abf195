import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import TINY_SMOOTHVLA
from lerobot.envs.configs import EnvConfig, PushtEnv, RoboCasaEnv
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.envs.tasks import selected_tasks
from lerobot_smoothvla.episode import Embodiment, Episode, Start
from lerobot_smoothvla.evaluation import report
from lerobot_smoothvla.evaluation.evaluate import (
    Evaluation,
    EvaluationConfig,
    Measurement,
    action_magnitude,
    compare,
    evaluate,
    evaluation_starts,
    measure_episode,
)
from lerobot_smoothvla.evaluation.statistics import bootstrap_interval, wilson_interval
from lerobot_smoothvla.modeling_smoothvla import SmoothVLAPolicy
from lerobot_smoothvla.processor_smoothvla import make_smoothvla_pre_post_processors
from lerobot_smoothvla.rollout.engine import Actor, RolloutEngine
from lerobot_smoothvla.rollout.local import make_engine
from lerobot_smoothvla.smoothness import measure

ENV = LiberoEnvConfig(
    task="libero_object", task_ids=[0], episode_length=16, observation_height=64, observation_width=64
)
TERMS = ("jerk_rms", "boundary_jerk_rms", "interior_jerk_rms", "ldlj", "sparc", "time_to_success", "duration")
TERMS += ("path_length", "extent", "moving_share", "action_magnitude")


def measurement(start: Start, success: bool, **terms: float) -> Measurement:
    return Measurement(start, success, {**dict.fromkeys(TERMS, 1.0), **terms})


def fabricated(seed: int, n_tasks: int = 2, n_states: int = 10) -> Evaluation:
    random = np.random.default_rng(seed)
    starts = [Start("libero_object", task, s, 1000 + s) for task in range(n_tasks) for s in range(n_states)]
    return Evaluation(
        tuple(
            measurement(
                start,
                bool(random.random() < 0.5),
                jerk_rms=float(random.gamma(5.0, 20.0)),
                ldlj=float(random.normal(-12.0)),
            )
            for start in starts
        )
    )


def episode(n_steps: int, success: bool) -> Episode:
    positions = torch.randn(n_steps + 1, 3, generator=torch.manual_seed(0)).cumsum(0) * 0.01
    return Episode(
        start=Start("libero_object", 0, 0, 0),
        instruction="",
        observations={},
        record={},
        chunks=torch.zeros(2, 8, 7),
        executed=torch.tensor([8, n_steps - 8]),
        actions=torch.tensor([[3.0, 0, 0, 0, 0, 4.0, -1.0]]).repeat(n_steps, 1),
        positions=positions,
        dt=0.05,
        success=success,
        max_steps=100,
    )


# --- starts


def starts_of(env: EnvConfig, **settings: Any) -> list[Start]:
    return evaluation_starts(env, selected_tasks(env), EvaluationConfig(**settings))


def test_there_is_one_start_for_each_held_out_state_of_each_task():
    env = LiberoEnvConfig(task="libero_spatial, libero_object", task_ids=[3, 1, 3])
    starts = starts_of(env)
    assert starts == sorted(set(starts)) and len(starts) == 2 * 2 * 10
    assert {(s.suite, s.task_id) for s in starts} == {
        (suite, task) for suite in ("libero_object", "libero_spatial") for task in (1, 3)
    }
    assert {s.init_state for s in starts} == set(range(40, 50))


def test_no_task_ids_means_all_of_the_suite():
    starts = starts_of(LiberoEnvConfig(task="libero_90"), n_episodes=1)
    assert [s.task_id for s in starts] == list(range(90))


def test_a_start_does_not_depend_on_the_range_nor_the_number_of_episodes():
    few = starts_of(ENV, init_states=(43, 46))
    many = starts_of(ENV, init_states=(40, 50), n_episodes=20)
    assert set(few) <= set(many)


def test_more_episodes_than_states_go_on_with_the_next_seed():
    starts = starts_of(ENV, init_states=(40, 42), n_episodes=5, seed=7)
    assert [(s.init_state, s.seed) for s in starts] == [(40, 47), (41, 48), (40, 48), (41, 49), (40, 49)]
    assert len(set(starts)) == 5


def test_where_tasks_have_no_initial_states_the_seed_tells_starts_apart():
    starts = starts_of(PushtEnv(), init_states=(3, 5), seed=7)
    assert starts == [Start("pusht", 0, 0, seed) for seed in range(7, 17)]
    few = starts_of(PushtEnv(), n_episodes=2, seed=7)
    assert few == starts[:2]


@pytest.mark.parametrize(
    ("env", "config", "message"),
    [
        (LiberoEnvConfig(task="libero_objects"), {}, "no LIBERO suite 'libero_objects'.*libero_spatial"),
        (LiberoEnvConfig(task="libero_object", task_ids=[0, 10]), {}, r"\[10\].*9 pick_up_the_orange_juice"),
        (LiberoEnvConfig(task="libero_object", task_ids=[-1]), {}, r"tasks 0 to 9.*\[-1\]"),
        (LiberoEnvConfig(task="libero_object", task_ids=[]), {}, "at least one task"),
        (RoboCasaEnv(), {}, "type 'robocasa' have no adapter"),
        (ENV, {"init_states": (40, 51)}, r"end <= 50.*got \[40, 51\)"),
        (ENV, {"init_states": (-1, 5)}, r"got \[-1, 5\)"),
        (ENV, {"init_states": (5, 5)}, r"got \[5, 5\)"),
    ],
)
def test_starts_that_do_not_exist_are_rejected_with_those_that_do(env, config, message):
    with pytest.raises(ValueError, match=message):
        starts_of(env, **config)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_episodes": 0}, "`n_episodes`.*at least 1"),
        ({"n_workers": -1}, "`n_workers`.*at least 0"),
        ({"n_videos": -1}, "`n_videos`.*at least 0"),
        ({"seed": -1}, "`seed`.*at least 0"),
    ],
)
def test_settings_out_of_range_are_rejected(setting, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**setting)


# --- measurements and their summary


def test_an_episodes_terms_are_those_of_the_reward_with_time_to_success_and_action_magnitude():
    solved = episode(12, success=True)
    terms = measure_episode(solved).terms
    assert terms == {
        **measure(solved.positions, 0.05, solved.executed),
        "time_to_success": pytest.approx(0.6),
        "action_magnitude": pytest.approx(5.0),
    }
    assert math.isnan(measure_episode(replace(solved, success=False)).terms["time_to_success"])


@pytest.mark.parametrize(("grippers", "magnitude"), [((-1,), 2.5), ((0, 2), 2.0), ((), (26**0.5 + 1) / 2)])
def test_action_magnitude_leaves_the_grippers_out(grippers, magnitude):
    actions = torch.tensor([[3.0, 4.0, -1.0], [0.0, 0.0, 1.0]])
    assert action_magnitude(actions, Embodiment(grippers=grippers)) == pytest.approx(magnitude)


def test_an_episode_is_measured_and_shown_in_the_unit_and_by_the_thresholds_of_its_embodiment():
    pixels = Embodiment("px", moving_speed=0.5, min_extent=50.0, grippers=())
    measured = measure_episode(replace(episode(12, success=True), embodiment=pixels))
    plain = episode(12, success=True)
    assert (
        measured.terms["moving_share"] == measure(plain.positions, 0.05, plain.executed, 0.5)["moving_share"]
    )
    assert measured.terms["moving_share"] < measure_episode(plain).terms["moving_share"]
    evaluation = Evaluation((measured,))
    assert evaluation.to_json()["unit"] == "px"
    assert "jerk RMS, px/s³" in report.evaluation_table(evaluation)
    assert "path length, px" in report.comparison_table(evaluation, evaluation)


def test_a_summary_is_the_statistics_of_the_episodes():
    evaluation = fabricated(0)
    summary = evaluation.summary()
    jerk = [m.terms["jerk_rms"] for m in evaluation.measurements]
    jerk_of_successes = [m.terms["jerk_rms"] for m in evaluation.measurements if m.success]
    assert summary.n_successes == len(jerk_of_successes)
    assert summary.success_rate == wilson_interval(len(jerk_of_successes), 20)
    assert summary.terms["jerk_rms"] == bootstrap_interval(jerk)
    assert summary.among_successes["jerk_rms"] == bootstrap_interval(jerk_of_successes)


def test_what_an_episode_does_not_have_is_left_out_of_the_mean():
    starts = [Start("libero_object", 0, state, 0) for state in range(3)]
    times = (2.0, math.nan, 4.0)
    evaluation = Evaluation(
        tuple(
            measurement(s, True, time_to_success=t, ldlj=math.nan) for s, t in zip(starts, times, strict=True)
        )
    )
    assert evaluation.summary().terms["time_to_success"].estimate == 3.0
    assert evaluation.summary().terms["ldlj"] is None


def test_tasks_are_summarised_apart():
    evaluation = fabricated(0, n_tasks=3)
    by_task = evaluation.by_task()
    assert list(by_task) == ["libero_object/0", "libero_object/1", "libero_object/2"]
    assert {m for one in by_task.values() for m in (m.start for m in one.measurements)} == {
        m.start for m in evaluation.measurements
    }
    assert all(len(one.measurements) == 10 for one in by_task.values())


@pytest.mark.parametrize("copies", [0, 2])
def test_an_evaluation_has_one_episode_of_each_start(copies):
    one = measurement(Start("libero_object", 0, 0, 0), True)
    with pytest.raises(ValueError, match="one episode of each start"):
        Evaluation((one,) * copies)


# --- comparison


def test_a_comparison_is_candidate_minus_baseline_paired_by_start():
    baseline = fabricated(0)
    lower = tuple(
        replace(m, terms={**m.terms, "jerk_rms": m.terms["jerk_rms"] - 3.0}) for m in baseline.measurements
    )
    difference = compare(baseline, Evaluation(lower[::-1]))
    for interval in (difference.terms["jerk_rms"], difference.among_successes["jerk_rms"]):
        # The jerk varies by tens; paired, the difference does not vary at all.
        assert (interval.estimate, interval.low, interval.high) == pytest.approx((-3.0, -3.0, -3.0))
    assert difference.success_rate.estimate == 0.0


def test_a_term_is_compared_over_the_starts_from_which_both_have_it():
    starts = [Start("libero_object", 0, state, 0) for state in range(3)]
    first = [measurement(starts[0], True, ldlj=1.0), measurement(starts[1], False, ldlj=math.nan)]
    second = [measurement(starts[0], True, ldlj=3.0), measurement(starts[1], True, ldlj=9.0)]
    first.append(measurement(starts[2], True, ldlj=5.0))
    second.append(measurement(starts[2], False, ldlj=6.0))
    difference = compare(Evaluation(tuple(first)), Evaluation(tuple(second)))
    assert difference.terms["ldlj"].estimate == pytest.approx(1.5)
    assert difference.among_successes["ldlj"].estimate == pytest.approx(2.0)
    assert (difference.n_episodes, difference.n_successes) == (3, 1)


def test_policies_that_met_other_starts_are_not_compared():
    with pytest.raises(ValueError, match="same starts"):
        compare(fabricated(0), fabricated(0, n_states=9))


# --- what is shown and kept


def test_tables_fit_into_100_columns_and_name_every_task():
    suite = "libero_spatial"
    first, second = (
        Evaluation(
            tuple(replace(m, start=replace(m.start, suite=suite)) for m in fabricated(i, 10).measurements)
        )
        for i in (0, 1)
    )
    tables = (report.evaluation_table(first), report.comparison_table(first, second))
    assert max(len(line) for table in tables for line in table.splitlines()) <= 100
    assert all(f"{suite}/{task} " in tables[0] for task in range(10))
    assert "overall" in tables[0] and "difference [95 %]" in tables[1]


def test_what_cannot_be_measured_is_null_in_json_and_a_dash_in_the_table(tmp_path):
    start = Start("libero_object", 0, 0, 0)
    evaluation = Evaluation((measurement(start, False, ldlj=math.nan, sparc=math.inf),))
    info = evaluation.to_json()
    assert info["overall"]["terms"]["ldlj"] is None
    assert info["per_task"]["libero_object/0"]["among_successes"]["jerk_rms"] is None
    terms = info["per_episode"][0]["terms"]
    assert (terms["ldlj"], terms["sparc"], terms["jerk_rms"]) == (None, None, 1.0)
    assert " -" in report.evaluation_table(evaluation)
    report.write_info(tmp_path, info)


def test_an_earlier_evaluation_is_not_overwritten(tmp_path):
    report.prepare_output_dir(tmp_path / "new")
    written = report.write_info(tmp_path / "new", {"first": 1})
    with pytest.raises(FileExistsError, match="choose another --output_dir"):
        report.prepare_output_dir(tmp_path / "new")
    with pytest.raises(FileExistsError):
        report.write_info(tmp_path / "new", {"second": 2})
    assert "first" in written.read_text()


def test_a_directory_that_cannot_be_made_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to .*choose another --output_dir"):
        report.prepare_output_dir(tmp_path / "file" / "inside")


def test_videos_are_of_the_first_episodes_of_each_task(tmp_path):
    starts = [Start("libero_object", task, state, 5) for task in (0, 1) for state in (40, 41, 42)]
    paths = report.video_paths(starts, 2, tmp_path)
    assert list(paths) == [s for s in starts if s.init_state < 42]
    assert len(set(paths.values())) == 4
    assert paths[starts[0]] == tmp_path / "libero_object_0" / "init_40_seed_5.mp4"


# --- real rollouts of a policy with random weights


@pytest.fixture(scope="module")
def engine() -> Iterator[RolloutEngine]:
    torch.manual_seed(0)
    config = SmoothVLAConfig(**TINY_SMOOTHVLA)
    actor = Actor(SmoothVLAPolicy(config).eval(), *make_smoothvla_pre_post_processors(config))
    engine = make_engine(ENV, actor, n_workers=0)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def evaluation(engine: RolloutEngine) -> Evaluation:
    return evaluate(engine, starts_of(ENV, init_states=(40, 42)))


def test_every_start_is_played_once_and_measured(evaluation):
    assert [m.start.init_state for m in evaluation.measurements] == [40, 41]
    for one in evaluation.measurements:
        assert set(one.terms) == {*TERMS, "joint_jerk_rms", "joint_ldlj"}
        assert one.terms["duration"] == pytest.approx(16 / 20)
        assert one.terms["jerk_rms"] > 0 and one.terms["action_magnitude"] > 0
    first, second = evaluation.measurements
    assert first.terms["jerk_rms"] != second.terms["jerk_rms"]


def test_a_start_gives_the_same_numbers_whatever_is_played_before_or_filmed(engine, evaluation, tmp_path):
    starts = [m.start for m in evaluation.measurements][::-1]
    video = tmp_path / "videos" / "episode.mp4"
    again = evaluate(engine, starts, {starts[0]: video})
    # Through JSON, where NaN equals NaN.
    assert again.to_json()["per_episode"] == evaluation.to_json()["per_episode"][::-1]
    assert video.stat().st_size > 0 and not list(Path(tmp_path).glob("*.mp4"))


def test_a_policy_compared_with_itself_does_not_differ(evaluation):
    difference = compare(evaluation, evaluation)
    assert difference.terms["jerk_rms"].estimate == difference.terms["jerk_rms"].high == 0.0
