"""The evaluations of a study on real LIBERO, of two random policies."""

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from builders import tiny_smoothvla
from safetensors.torch import load_file, save_file

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.envs.tasks import selected_tasks
from lerobot_smoothvla.evaluation.evaluate import evaluate, evaluation_starts
from lerobot_smoothvla.evaluation.report import EVAL_INFO, read_evaluation
from lerobot_smoothvla.rollout.local import make_engine
from lerobot_smoothvla.stages import LAST
from lerobot_smoothvla.study.evaluate import evaluate_missing
from lerobot_smoothvla.study.plan import SIZES, StudyConfig, Trial, action_filter, missing, run_name, trials


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    """With one episode an evaluation, and two different checkpoints: of the warm start and of one arm."""
    plan = replace(SIZES["smoke"], shifts=(), filters=(), episodes=1)
    monkeypatch.setitem(SIZES, "smoke", plan)
    for run in ("sft", run_name("smooth", 1)):
        tiny_smoothvla(tmp_path / run / LAST)
    file = tmp_path / run / LAST / "model.safetensors"
    weights = load_file(file)
    weights["model.action_out_proj.bias"] += 0.5
    save_file(weights, file)
    return StudyConfig(size="smoke", output_dir=tmp_path, n_workers=0)


def of(config: StudyConfig, arm: str) -> Trial:
    """The arm's trial on the trained task."""
    (trial,) = [t for t in trials(config.plan) if (t.arm, t.condition.name) == (arm, "trained")]
    return trial


def test_what_is_missing_is_evaluated_with_the_weights_of_its_own_checkpoint(config):
    wanted = [of(config, "sft"), of(config, "smooth")]
    for trial in trials(config.plan):
        if trial not in wanted:  # there already
            trial.output_dir(config.directory).mkdir(parents=True)
            (trial.output_dir(config.directory) / EVAL_INFO).touch()
    assert missing(trials(config.plan), config.directory) == wanted
    evaluate_missing(config, 1)
    assert missing(trials(config.plan), config.directory) == []

    condition = wanted[1].condition
    starts = evaluation_starts(condition.env, selected_tasks(condition.env), condition.evaluation)
    paths, results = read_evaluation(wanted[1].output_dir(config.directory))
    actor = load_actor(load_actor_config(Path(paths["policy"])))
    with closing(make_engine(condition.env, actor, 0)) as engine:
        alone = evaluate(engine, starts)
    assert results["policy"] == alone
    _, warm_start = read_evaluation(wanted[0].output_dir(config.directory))
    assert warm_start["policy"].measurements[0].start == alone.measurements[0].start
    assert warm_start["policy"] != alone


def test_the_jerk_limits_are_kept_without_the_demonstrations(config, tiny_dataset):
    shutil.copytree(tiny_dataset, config.directory / "dataset")
    first = action_filter("jerk_limited", config)
    shutil.rmtree(config.directory / "dataset")
    assert action_filter("jerk_limited", config) == first
    assert len(first.max_acceleration) == len(first.max_jerk) == 6 and min(first.max_jerk) > 0
