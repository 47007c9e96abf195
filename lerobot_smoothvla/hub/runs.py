"""A GRPO run that pushes: what is looked at before it, after each checkpoint, and at its end."""

import logging
from pathlib import Path

from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig
from lerobot_smoothvla.hub.push import (
    PushConfig,
    push,
    push_checkpoint,
    require_access,
    require_base_on_hub,
    require_repo_id,
)
from lerobot_smoothvla.peft_loading import read_adapter
from lerobot_smoothvla.redaction import redacted


class NotPushedError(OSError):
    """The training is done and its checkpoint written; only the push failed."""

    exit_code = 3


def pushes(config: GRPOPipelineConfig) -> bool:
    """Whether the run pushes its policy."""
    return bool(config.policy.repo_id and config.policy.push_to_hub)


def require_hub(config: GRPOPipelineConfig) -> None:
    """Reject a push that could not work, before hours are spent on what it shall push.

    Raises:
        OSError: If the Hub does not know us, or is out of reach.
        ValueError: If it would have no such name, should be private and is public, or is of an adapter that
            would not load from there.
    """
    repo_id, start = config.policy.repo_id, str(config.policy.pretrained_path)
    require_repo_id(repo_id)
    if config.policy.use_peft:
        adapter = read_adapter(start, config.policy.pretrained_revision)
        require_base_on_hub(adapter.base_model_name_or_path, repo_id)
    elif config.peft is not None:
        require_base_on_hub(start, repo_id)
    require_access(repo_id, config.policy.private)


def push_saved(config: GRPOPipelineConfig, saved: Path) -> None:
    """Push a checkpoint of the run, if it shall; one that fails is a warning, and the training goes on."""
    if config.save_checkpoint_to_hub:
        try:
            push_checkpoint(saved, config.policy.repo_id, config.policy.private)
        except OSError as error:
            logging.warning("%s The training goes on.", redacted(str(error)))


def push_trained(config: GRPOPipelineConfig) -> None:
    """Push the last checkpoint.

    Raises:
        NotPushedError: If that fails.
    """
    assert config.output_dir is not None
    try:
        url = push(PushConfig(config.policy.repo_id, [config.output_dir], config.policy.private))
    except (OSError, ValueError) as error:
        raise NotPushedError(f"The training is done, but not pushed. {error}") from error
    # LeRobot's `lerobot.jobs.hf` looks for these words.
    logging.info("Model pushed to %s", url)
