"""Checkpoints in LeRobot's layout that are whole or not there, and resuming from the last one."""

import os
import shutil
from pathlib import Path

from lerobot.common.train_utils import (
    get_step_checkpoint_dir,
    load_training_state,
    save_checkpoint,
)
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig


def save(config: GRPOPipelineConfig, algorithm: GRPOAlgorithm, iteration: int) -> Path:
    """Write `checkpoints/<iteration>` and point `checkpoints/last` to it.

    It is written under another name and then renamed, so a run that is killed meanwhile leaves the last whole
    checkpoint as it was.

    Args:
        config: Saved with it.
        algorithm: Whose policy, processors and optimizer are saved.
        iteration: Iterations done.

    Returns:
        The checkpoint's directory.
    """
    assert config.output_dir is not None
    final = get_step_checkpoint_dir(config.output_dir, config.steps, iteration)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    actor = algorithm.actor
    save_checkpoint(
        partial,
        iteration,
        config,
        actor.policy,
        algorithm.get_optimizers()["policy"],
        preprocessor=actor.preprocessor,
        postprocessor=actor.postprocessor,
    )
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    link = final.with_name(LAST_CHECKPOINT_LINK)
    new_link = final.with_name(f".{LAST_CHECKPOINT_LINK}")
    new_link.unlink(missing_ok=True)
    new_link.symlink_to(final.name)
    os.replace(new_link, link)
    return final


def last(output_dir: Path) -> Path:
    """The `pretrained_model` directory of a run's last checkpoint.

    Raises:
        FileNotFoundError: If the run has none.
    """
    path = output_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no checkpoint to resume from: expected {path}; start the run without --resume."
        )
    return path


def restore(checkpoint: Path, algorithm: GRPOAlgorithm) -> int:
    """Load optimizer and random state of a checkpoint; its weights are loaded with the policy.

    Args:
        checkpoint: Its directory.
        algorithm: Gets the optimizer's state and the step count.

    Returns:
        Iterations done.
    """
    iteration, _, _ = load_training_state(checkpoint, algorithm.get_optimizers()["policy"], None)
    algorithm.optimization_step = iteration
    return iteration
