"""`smoothvla grpo`: fine-tune a checkpoint with GRPO and the jerk reward."""

import logging
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import yaml
from lerobot.configs import parser
from lerobot.configs.train import TRAIN_CONFIG_NAME
from lerobot.utils.utils import init_logging

from lerobot_smoothvla.checkpoint_loading import actor_config_from_cli, load_actor, load_actor_config
from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.envs.tasks import require_init_states, require_usable, selected_tasks
from lerobot_smoothvla.episode import Task
from lerobot_smoothvla.grpo import checkpoint
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig
from lerobot_smoothvla.grpo.ranks import launched
from lerobot_smoothvla.grpo.trainer import GRPOTrainer
from lerobot_smoothvla.hub.runs import push_saved, push_trained, pushes, require_hub
from lerobot_smoothvla.locking import sole_writer
from lerobot_smoothvla.provenance import record
from lerobot_smoothvla.rollout.local import make_engine
from lerobot_smoothvla.selectors import flag_value


def run(config: GRPOPipelineConfig) -> None:
    """Train from `--policy.path` or, with `--resume=true`, from the run's last checkpoint."""
    init_logging()
    tasks = selected_tasks(config.env)
    require_init_states(config.env, tasks, config.algorithm.init_states)
    require_usable(config.env, tasks)
    overrides = parser.get_yaml_overrides("policy") + (parser.get_cli_overrides("policy") or [])
    if config.resume:
        last = checkpoint.last(config.output_dir)
        config.policy = load_actor_config(last, overrides, config.env)
        checkpoint.require_same_settings(config, last)
    else:
        config.policy = actor_config_from_cli("policy", config.env)
        if config.policy is not None:
            checkpoint.decide_push(config.policy, overrides)
    config.validate()
    assert config.output_dir is not None  # `validate` fills it in.
    ranks = launched(config.policy.device)
    pushing = pushes(config) and ranks.first
    if pushing:
        require_hub(config)
    if config.algorithm.n_groups < ranks.size:
        raise ValueError(
            f"`n_groups` should be at least {ranks.size}, a group for each process, got "
            f"{config.algorithm.n_groups}; raise --algorithm.n_groups or launch fewer processes."
        )
    ranks.gather(None)  # Nobody writes before all have looked at what is there.
    actor = load_actor(config.policy, config.peft, config.seed or 0)
    algorithm = GRPOAlgorithm(actor, config.algorithm, ranks)
    with sole_writer(config.output_dir, "--output_dir") if ranks.first else nullcontext():
        saved = _train(config, tasks, algorithm)
    logging.info("Last checkpoint: %s", saved / "pretrained_model")
    if pushing:
        push_trained(config)


def _train(config: GRPOPipelineConfig, tasks: Sequence[Task], algorithm: GRPOAlgorithm) -> Path:
    """The run itself; returns its last checkpoint."""
    assert config.policy is not None and config.policy.pretrained_path and config.output_dir is not None
    iteration = checkpoint.restore(config.policy.pretrained_path.parent, algorithm) if config.resume else 0
    with closing(make_engine(config.env, algorithm.actor, config.n_workers, config.rollout)) as engine:
        trainer = GRPOTrainer(config, algorithm, engine, tasks, iteration, partial(push_saved, config))
        if algorithm.ranks.first:
            record(config.output_dir, steps=config.steps)
        return trainer.train()


def main() -> None:
    """Entry of `smoothvla grpo`; a resumed run takes the config of its last checkpoint."""
    output_dir, resume, config_path = (
        flag_value(flag, sys.argv[1:]) for flag in ("output_dir", "resume", "config_path")
    )
    if yaml.safe_load(resume or "false") is True:
        directory = Path(output_dir) if output_dir else None
        if config_path and not Path(config_path).exists():
            start = checkpoint.fetch(config_path, directory)
            sys.argv.insert(1, f"--config_path={start / TRAIN_CONFIG_NAME}")
        elif output_dir and not config_path:
            sys.argv.insert(1, f"--config_path={checkpoint.last(directory) / TRAIN_CONFIG_NAME}")
    run(parse(GRPOPipelineConfig))
