"""The evaluations of a study, each kept as `smoothvla eval` keeps its own; none is done twice."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.envs.tasks import selected_tasks
from lerobot_smoothvla.evaluation import report
from lerobot_smoothvla.evaluation.evaluate import evaluate, evaluation_starts
from lerobot_smoothvla.provenance import record
from lerobot_smoothvla.rollout.local import make_engine
from lerobot_smoothvla.study.plan import StudyConfig, Trial, action_filter, missing, trials


def evaluate_missing(config: StudyConfig, seed: int) -> None:
    """Run what is missing of the warm start and of a seed's runs, trials of the same scenes in a row.

    Raises:
        RolloutError: If a rollout failed three times.
        OSError: If a result cannot be written.
    """
    todo = missing([t for t in trials(config.plan) if t.seed in (0, seed)], config.directory)
    for _, some in groupby(todo, key=lambda trial: (trial.condition, trial.filter)):
        _evaluate(list(some), config)


def _evaluate(some: Sequence[Trial], config: StudyConfig) -> None:
    """Trials that differ in their checkpoints alone."""
    condition, chosen = some[0].condition, action_filter(some[0].filter, config)
    starts = evaluation_starts(condition.env, selected_tasks(condition.env), condition.evaluation)
    shift = condition.evaluation.condition
    actor = load_actor(load_actor_config(some[0].checkpoint(config.directory)))
    sampler, step = chosen.sampler(actor.adapter), chosen.step(actor.adapter, condition.env)
    with closing(make_engine(condition.env, replace(actor, action_filter=step), config.n_workers)) as engine:
        for trial in some:
            checkpoint, directory = trial.checkpoint(config.directory), trial.output_dir(config.directory)
            # GRPO keeps the warm start's processors, so the checkpoints differ in their weights alone.
            engine.load_weights(load_actor(load_actor_config(checkpoint)).policy)
            name = f"{trial.arm} {trial.seed}, {condition.kind}, filter {trial.filter}"
            report.prepare_output_dir(directory)
            record(directory)
            measured = evaluate(engine, starts, None, name, sampler, shift)
            paths = {"policy": str(checkpoint)}
            used = {"policy": chosen.to_json()}
            report.write(directory, paths, {"policy": measured}, used, shift)
