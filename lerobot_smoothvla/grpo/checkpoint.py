"""Checkpoints in LeRobot's layout that are whole or not there, and resuming from the last one."""

import copy
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import httpx
from lerobot.common.train_utils import (
    get_step_checkpoint_dir,
    load_training_state,
    save_checkpoint,
)
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TRAIN_CONFIG_NAME
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR
from safetensors import SafetensorError

from lerobot_smoothvla.checkpoint_safety import UNREADABLE, require_inside, said
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig
from lerobot_smoothvla.peft_loading import adapter_of


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

    Raises:
        OSError: If it cannot be written; the last whole checkpoint is still there.
    """
    assert config.output_dir is not None
    final = get_step_checkpoint_dir(config.output_dir, config.steps, iteration)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    actor = algorithm.actor
    try:
        save_checkpoint(
            partial,
            iteration,
            config,
            actor.policy,
            algorithm.get_optimizers()["policy"],
            preprocessor=actor.preprocessor,
            postprocessor=actor.postprocessor,
        )
        # LeRobot leaves it out of an adapter's checkpoint in a run without --peft flags.
        actor.policy.config.save_pretrained(partial / PRETRAINED_MODEL_DIR)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        link = final.with_name(LAST_CHECKPOINT_LINK)
        new_link = final.with_name(f".{LAST_CHECKPOINT_LINK}")
        new_link.unlink(missing_ok=True)
        new_link.symlink_to(final.name)
        os.replace(new_link, link)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"The checkpoint {final} could not be written ({error}); choose an --output_dir on a disk with "
            "space, or make space there and continue with --resume=true."
        ) from error
    return final


def last(output_dir: Path | None) -> Path:
    """The `pretrained_model` directory of a run's last checkpoint.

    Raises:
        ValueError: If no run is named, or it holds links out of its directory, where it goes on writing.
        FileNotFoundError: If the run has none.
    """
    if output_dir is None:
        raise ValueError("Which run should be resumed? Pass its directory as --output_dir.")
    require_inside(output_dir)
    path = output_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no checkpoint to resume from: expected {path}; remove {output_dir} if it is "
            "there, and start the run without --resume."
        )
    return path


def restore(checkpoint: Path, algorithm: GRPOAlgorithm) -> int:
    """Load optimizer and random state of a checkpoint; its weights are loaded with the policy.

    Args:
        checkpoint: Its directory.
        algorithm: Gets the optimizer's state and the step count.

    Returns:
        Iterations done.

    Raises:
        ValueError: If other parameters are trained now than were then, or the state cannot be read.
    """
    try:
        iteration, _, _ = load_training_state(checkpoint, algorithm.get_optimizers()["policy"], None)
        if type(iteration) is not int or iteration < 0:
            raise TypeError(f"`step` should be a count, got {iteration!r}")
    except UNREADABLE as error:
        raise ValueError(
            f"The training state in {checkpoint} cannot be read ({said(error)}); resume from another "
            f"checkpoint of the run by pointing {checkpoint.with_name(LAST_CHECKPOINT_LINK)} to it, or start "
            "a run from its weights (--policy.path)."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"The optimizer's state in {checkpoint} is not that of the parameters that are trained now "
            f"({error}); resume with the --algorithm.freeze and --policy.* flags of the run."
        ) from error
    algorithm.optimization_step = iteration
    return iteration


def decide_push(policy: PreTrainedConfig, overrides: Sequence[str]) -> None:
    """Push where the command line says, never where the warm start says that it was pushed itself.

    Args:
        policy: Config of the warm start, changed in place.
        overrides: The command line's `--policy.*` flags without that prefix, e.g. `--repo_id=you/policy`.
    """
    given = {flag.removeprefix("--").partition("=")[0] for flag in overrides}
    if "repo_id" not in given:
        policy.repo_id = None
    elif "push_to_hub" not in given:
        policy.push_to_hub = True


def push_to_hub(config: GRPOPipelineConfig, algorithm: GRPOAlgorithm) -> None:
    """Push policy, processors and card to `--policy.repo_id`, unless there is none or `push_to_hub` is off.

    Args:
        config: Of the run.
        algorithm: Whose policy and processors are pushed.

    Raises:
        OSError: If the Hub is out of reach or refuses.
    """
    actor = algorithm.actor
    repo_id = actor.policy.config.repo_id
    if not (repo_id and actor.policy.config.push_to_hub):
        return
    card = copy.copy(config)
    # LeRobot's model card names the dataset: here, the one that the warm start was trained on.
    card.dataset = DatasetConfig(repo_id=_warm_start_dataset(config))
    try:
        adapted = actor.policy if adapter_of(actor.policy) is not None else None
        actor.policy.push_model_to_hub(card, peft_model=adapted)
        actor.preprocessor.push_to_hub(repo_id)
        actor.postprocessor.push_to_hub(repo_id)
    except (OSError, httpx.HTTPError) as error:
        raise OSError(
            f"The policy could not be pushed to {repo_id} ({error}). It is in {last(config.output_dir)}; "
            f"`hf upload {repo_id} {last(config.output_dir)}` pushes it later."
        ) from error


def _warm_start_dataset(config: GRPOPipelineConfig) -> str:
    """Dataset of the warm start, as its training config says, else the environment's name."""
    train_config = Path(config.policy.pretrained_path) / TRAIN_CONFIG_NAME
    known = json.loads(train_config.read_text()).get("dataset") if train_config.is_file() else None
    return known["repo_id"] if known else config.env.task
