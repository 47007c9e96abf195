"""Checkpoints in LeRobot's layout that are whole or not there, and resuming from the last one."""

import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import httpx
from huggingface_hub.errors import HFValidationError
from lerobot.common.train_utils import (
    get_step_checkpoint_dir,
    load_training_state,
    resolve_resume_checkpoint,
    save_checkpoint,
)
from lerobot.configs import PreTrainedConfig
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR
from safetensors import SafetensorError

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
        # LeRobot leaves it out of an adapter's checkpoint in a run without --peft flags. The revision is the
        # warm start's: whoever loads this one from the Hub would ask for it there.
        own = copy.copy(actor.policy.config)
        own.pretrained_revision = None
        own.save_pretrained(partial / PRETRAINED_MODEL_DIR)
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
        ValueError: If no run is named.
        FileNotFoundError: If the run has none.
    """
    if output_dir is None:
        raise ValueError("Which run should be resumed? Pass its directory as --output_dir.")
    path = output_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no checkpoint to resume from: expected {path}; remove {output_dir} if it is "
            "there, and start the run without --resume."
        )
    return path


def fetch(repo_id: str, output_dir: Path | None) -> Path:
    """Bring the last checkpoint that a run has pushed into a fresh output directory.

    Args:
        repo_id: Where the run pushed its checkpoints to (`--save_checkpoint_to_hub=true`).
        output_dir: Where it goes on.

    Returns:
        The checkpoint's `pretrained_model`.

    Raises:
        FileExistsError: If there is a checkpoint in `output_dir` already.
        OSError: If the Hub has no checkpoint, or is out of reach.
        ValueError: If no output directory is named.
    """
    if output_dir is None:
        raise ValueError(f"Where should the run of {repo_id} go on? Pass a fresh directory as --output_dir.")
    if (output_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK).exists():
        raise FileExistsError(
            f"The run in {output_dir} has a checkpoint already; leave --config_path out to go on with it, or "
            "pass a fresh --output_dir."
        )
    try:
        return resolve_resume_checkpoint(repo_id, output_dir) / PRETRAINED_MODEL_DIR
    except (OSError, httpx.HTTPError, HFValidationError) as error:
        raise OSError(
            f"There is no run to resume at --config_path={repo_id}: it is no file or directory, and the Hub "
            f"has no checkpoint there or is out of reach ({error})."
        ) from error


def restore(checkpoint: Path, algorithm: GRPOAlgorithm) -> int:
    """Load optimizer and random state of a checkpoint; its weights are loaded with the policy.

    Args:
        checkpoint: Its directory.
        algorithm: Gets the optimizer's state and the step count.

    Returns:
        Iterations done.

    Raises:
        ValueError: If other parameters are trained now than were then.
    """
    try:
        iteration, _, _ = load_training_state(checkpoint, algorithm.get_optimizers()["policy"], None)
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
