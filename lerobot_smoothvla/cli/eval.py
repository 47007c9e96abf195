"""`smoothvla eval`: success and smoothness of a checkpoint on given starts, alone or against another."""

from contextlib import closing
from dataclasses import replace

from lerobot_smoothvla.checkpoint_loading import actor_config_from_cli, load_actor
from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.envs.tasks import require_usable, selected_tasks
from lerobot_smoothvla.evaluation import report
from lerobot_smoothvla.evaluation.command import EvalCommandConfig
from lerobot_smoothvla.evaluation.evaluate import evaluate, evaluation_starts
from lerobot_smoothvla.locking import sole_writer
from lerobot_smoothvla.provenance import record
from lerobot_smoothvla.rollout.local import make_engine


def run(config: EvalCommandConfig) -> None:
    """Evaluate one policy, or two on the same starts, and write the result."""
    tasks = selected_tasks(config.env)
    starts = evaluation_starts(config.env, tasks, config.eval)
    require_usable(config.env, tasks)
    configs = {name: actor_config_from_cli(name, config.env) for name in ("compare", "policy")}
    if configs["policy"] is None:
        raise ValueError("There is nothing to evaluate: pass --policy.path=CHECKPOINT.")
    report.prepare_output_dir(config.output_dir)
    record(config.output_dir)
    paths = {name: str(checkpoint.pretrained_path) for name, checkpoint in configs.items() if checkpoint}
    actors = {name: load_actor(checkpoint) for name, checkpoint in configs.items() if checkpoint}
    filters = {"policy": config.filter, "compare": config.compare_filter}
    samplers = {name: filters[name].sampler(actor.adapter) for name, actor in actors.items()}
    steps = {name: filters[name].step(actor.adapter, config.env) for name, actor in actors.items()}
    results = {}
    for name, actor in actors.items():
        videos = report.video_paths(starts, config.eval.n_videos, config.output_dir / report.VIDEOS / name)
        acting = replace(actor, action_filter=steps[name])
        with closing(make_engine(config.env, acting, config.eval.n_workers)) as engine:
            results[name] = evaluate(engine, starts, videos, name, samplers[name], config.eval.condition)
        print(f"\n{name}: {paths[name]}\n{report.evaluation_table(results[name])}\n")
    if "compare" in results:
        print(f"policy minus compare\n{report.comparison_table(results['compare'], results['policy'])}\n")
    used = {name: filters[name].to_json() for name in results}
    written = report.write(config.output_dir, paths, results, used, config.eval.condition)
    print(f"Written to {written}")


def main() -> None:
    """Entry of `smoothvla eval`."""
    config = parse(EvalCommandConfig)
    with sole_writer(config.output_dir, "--output_dir"):
        run(config)
