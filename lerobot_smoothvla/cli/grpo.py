"""`smoothvla grpo`: fine-tune a checkpoint with GRPO and the jerk reward."""

import logging
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import yaml
from lerobot.configs import parser
from lerobot.configs.train import TRAIN_CONFIG_NAME
from lerobot.utils.utils import init_logging

from lerobot_smoothvla.checkpoint_loading import actor_config_from_cli, load_actor, load_actor_config
from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.envs.tasks import require_init_states, require_usable, selected_tasks
from lerobot_smoothvla.grpo import checkpoint
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig
from lerobot_smoothvla.grpo.ranks import launched
from lerobot_smoothvla.grpo.trainer import GRPOTrainer
from lerobot_smoothvla.hub.push import (
    PushConfig,
    push,
    push_checkpoint,
    require_base_on_hub,
    require_login,
    require_repo_id,
)
from lerobot_smoothvla.peft_loading import read_adapter
from lerobot_smoothvla.provenance import record
from lerobot_smoothvla.rollout.local import make_engine
from lerobot_smoothvla.selectors import flag_value


class NotPushedError(OSError):
    """The training is done and its checkpoint written; only the push failed."""

    exit_code = 3


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
    repo_id = config.policy.repo_id if config.policy.push_to_hub and ranks.first else None
    if repo_id:
        _require_hub(config, repo_id)
    if config.algorithm.n_groups < ranks.size:
        raise ValueError(
            f"`n_groups` should be at least {ranks.size}, a group for each process, got "
            f"{config.algorithm.n_groups}; raise --algorithm.n_groups or launch fewer processes."
        )
    ranks.gather(None)  # Nobody writes before all have looked at what is there.
    actor = load_actor(config.policy, config.peft, config.seed or 0)
    algorithm = GRPOAlgorithm(actor, config.algorithm, ranks)
    iteration = checkpoint.restore(config.policy.pretrained_path.parent, algorithm) if config.resume else 0
    with closing(make_engine(config.env, algorithm.actor, config.n_workers, config.rollout)) as engine:
        trainer = GRPOTrainer(config, algorithm, engine, tasks, iteration, partial(_after_save, config))
        if ranks.first:
            record(config.output_dir, steps=config.steps)
        saved = trainer.train()
    logging.info("Last checkpoint: %s", saved / "pretrained_model")
    if repo_id:
        try:
            url = push(PushConfig(repo_id, [config.output_dir], config.policy.private))
        except (OSError, ValueError) as error:
            raise NotPushedError(f"The training is done, but not pushed. {error}") from error
        # LeRobot's `lerobot.jobs.hf` looks for these words.
        logging.info("Model pushed to %s", url)


def _require_hub(config: GRPOPipelineConfig, repo_id: str) -> None:
    """Reject a push that could not work, or an adapter that would not load from there."""
    require_repo_id(repo_id)
    start = str(config.policy.pretrained_path)
    if config.policy.use_peft:
        adapter = read_adapter(start, config.policy.pretrained_revision)
        require_base_on_hub(adapter.base_model_name_or_path, repo_id)
    elif config.peft is not None:
        require_base_on_hub(start, repo_id)
    require_login(repo_id)


def _after_save(config: GRPOPipelineConfig, saved: Path) -> None:
    """A push that fails is tried again with the next checkpoint; meanwhile the training goes on."""
    if config.save_checkpoint_to_hub:
        try:
            push_checkpoint(saved, config.policy.repo_id, config.policy.private)
        except OSError as error:
            logging.warning("%s The training goes on.", error)


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
