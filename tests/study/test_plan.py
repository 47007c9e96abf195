"""What a study trains and evaluates; its commands are read by the programs that they are for."""

from dataclasses import replace
from pathlib import Path

import pytest
from lerobot.configs.train import TrainPipelineConfig
from stage_commands import checkpoint, parsed

from lerobot_smoothvla.demos.record import DemosConfig
from lerobot_smoothvla.envs.tasks import selected_tasks
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.evaluation.evaluate import evaluation_starts
from lerobot_smoothvla.evaluation.report import EVAL_INFO
from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig
from lerobot_smoothvla.stages import LAST, Stage
from lerobot_smoothvla.study.plan import LIMITS, SIZES, StudyConfig, conditions, stages, trials


@pytest.fixture(params=sorted(SIZES))
def config(request: pytest.FixtureRequest, tmp_path: Path) -> StudyConfig:
    return StudyConfig(size=request.param, output_dir=tmp_path / "study")


def of_grpo(config: StudyConfig) -> list[Stage]:
    return [stage for stage in stages(config) if stage.name.startswith("grpo/")]


def test_the_warm_start_learns_from_the_uneven_demonstrations_of_the_trained_tasks(config, monkeypatch):
    dataset, sft = stages(config)[:2]
    demos = parsed(dataset, DemosConfig, monkeypatch)
    train = parsed(sft, TrainPipelineConfig, monkeypatch)
    assert Path(train.dataset.root) == demos.dataset.directory and train.steps == config.plan.sft_steps
    assert 0 < demos.jerky_share < 1 and demos.speed_spread > 0
    assert selected_tasks(demos.env) == selected_tasks(conditions(config.plan)[0].env)


def test_the_arms_differ_in_reward_and_advantage_alone_and_share_everything_else(config, monkeypatch):
    runs = [parsed(stage, GRPOPipelineConfig, monkeypatch) for stage in of_grpo(config)]
    assert len(runs) == 4 * len(config.plan.seeds)
    success, paper, smooth, best = (run.algorithm for run in runs[:4])
    assert success.reward.weight == 0
    assert (paper.reward.combination, paper.advantage) == ("sum", "joint")
    assert (smooth.reward.combination, smooth.advantage) == ("gated", "counterfactual")
    assert smooth.reward.signal == "ldlj"  # Slow is the cheap way to smooth.
    same = {"reward": success.reward, "advantage": success.advantage}
    assert replace(best, advantage=smooth.advantage) == smooth and best.advantage == "best_draw"
    assert replace(paper, **same) == replace(smooth, **same) == success
    assert {run.seed for run in runs} == set(config.plan.seeds) and not any(run.resume for run in runs)


def test_no_start_and_no_unseen_task_is_trained_on(config, monkeypatch):
    run = parsed(of_grpo(config)[0], GRPOPipelineConfig, monkeypatch)
    demos = parsed(stages(config)[0], DemosConfig, monkeypatch)
    trained = set(selected_tasks(run.env))
    for condition in conditions(config.plan):
        tasks = selected_tasks(condition.env)
        if condition.name == "unseen":
            assert not trained & set(tasks)
        else:
            assert set(tasks) == trained
        for start in evaluation_starts(condition.env, tasks, condition.evaluation):
            assert start.init_state >= max(run.algorithm.init_states[1], demos.init_states[1])


def test_the_full_study_is_as_large_as_it_promises():
    plan = SIZES["full"]
    assert len(plan.seeds) >= 3 and {*plan.filters} == {"exponential", "jerk_limited", "blend", "rtc"}
    starts: dict[str, list[Start]] = {}
    for condition in conditions(plan):
        tasks = selected_tasks(condition.env)
        starts.setdefault(condition.name, []).extend(
            evaluation_starts(condition.env, tasks, condition.evaluation)
        )
    for of_condition in starts.values():  # The kinds of shift are of different starts.
        assert len(of_condition) == len(set(of_condition)) >= 50
    suites = [suite for suite, _ in selected_tasks(conditions(plan)[0].env)]
    assert suites.count("libero_object") >= 4 and suites.count("libero_spatial") >= 4


def test_every_trial_has_a_checkpoint_that_a_stage_makes_and_a_directory_of_its_own(config):
    made = {config.directory / stage.name / LAST for stage in stages(config)[1:]}
    planned = trials(config.plan)
    assert {trial.checkpoint(config.directory) for trial in planned} == made
    assert len({trial.output_dir(config.directory) for trial in planned}) == len(planned)
    filtered = {(trial.arm, trial.filter) for trial in planned if trial.filter != "none"}
    both = {(arm, name) for arm in ("sft", "success") for name in config.plan.filters}
    assert filtered == both | {("best", name) for name in config.plan.filters if name == "blend"}


def test_an_interrupted_run_resumes_and_a_finished_one_is_done(config):
    first = of_grpo(config)[0]
    assert first.restarts and not first.done()
    checkpoint(config.directory / first.name, f"{config.plan.iterations:06d}")
    assert "--resume=true" in of_grpo(config)[0].command and of_grpo(config)[0].done()


def test_a_run_that_was_evaluated_is_done_without_its_checkpoint(config):
    first = of_grpo(config)[0]
    of_run = [t for t in trials(config.plan) if (t.arm, t.seed) == ("success", 1)]
    for trial in of_run:
        assert not first.done()
        directory = trial.output_dir(config.directory)
        directory.mkdir(parents=True)
        (directory / EVAL_INFO).touch()
    assert first.done() and not of_grpo(config)[1].done()


def test_demonstrations_that_were_learned_from_are_done_once_their_limits_are_kept(config):
    dataset, sft = stages(config)[:2]
    checkpoint(config.directory / sft.name)
    assert not dataset.done()
    (config.directory / LIMITS).touch()
    assert dataset.done()


def test_the_seeds_of_a_study_can_be_run_one_at_a_time(config):
    alone = [stage.name for seed in config.plan.seeds for stage in stages(config, [seed])[2:]]
    assert alone == [stage.name for stage in stages(config)[2:]]


def test_a_size_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="`size` should be one of full, smoke, got 'huge'"):
        StudyConfig(size="huge")
