"""Checkpoints in LeRobot's layout that are whole or not there, and resuming from the last one."""

import copy
import json
import logging
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
from lerobot.configs.train import TRAIN_CONFIG_NAME
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from lerobot_smoothvla.checkpoint_safety import UNREADABLE, WANDB, require_inside, said
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig
from lerobot_smoothvla.settings import differences, flattened, settings_of
from lerobot_smoothvla.writing import writing

_OF_A_RESUMPTION = (
    "resume",
    "output_dir",
    "checkpoint_path",
    "policy.pretrained_path",
    "policy.pretrained_revision",
)
"""Settings in which a resumed run differs from its beginning."""
_MAY_CHANGE = (
    *("steps", "save_freq", "log_freq", "job_name", "n_workers", "num_workers", "rollout.", "wandb."),
    *("save_checkpoint_to_hub", "policy.device", "policy.repo_id", "policy.push_to_hub", "policy.private"),
    *("policy.tags", "policy.license", "algorithm.microbatch_size"),
)
"""Beginnings of the names of settings that a resumed run may change: where and how long, not what."""


def save(config: GRPOPipelineConfig, algorithm: GRPOAlgorithm, iteration: int) -> Path:
    """Write `checkpoints/<iteration>` and point `checkpoints/last` to it.

    It is written under another name, flushed to the disk and then renamed, so a run that is killed meanwhile,
    or whose machine is, leaves the last whole checkpoint as it was.

    Args:
        config: Saved with it.
        algorithm: Whose policy, processors and optimizer are saved.
        iteration: Iterations done.

    Returns:
        The checkpoint's directory.

    Raises:
        WritingError: If it cannot be written; the last whole checkpoint is still there.
    """
    assert config.output_dir is not None
    final = get_step_checkpoint_dir(config.output_dir, config.steps, iteration)
    partial, replaced = (final.with_name(f".{final.name}.{state}") for state in ("partial", "replaced"))
    actor = algorithm.actor
    then = "and continue with --resume=true, or choose an --output_dir on another disk."
    with writing(f"The checkpoint {final}", config.output_dir, lambda: _size(algorithm), then, partial):
        for left_over in (partial, replaced):
            shutil.rmtree(left_over, ignore_errors=True)
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
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        new_link = final.with_name(f".{LAST_CHECKPOINT_LINK}")
        new_link.unlink(missing_ok=True)
        new_link.symlink_to(final.name)
        os.replace(new_link, final.with_name(LAST_CHECKPOINT_LINK))
        _flush(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    return final


def _flush(path: Path) -> None:
    """Let the disk have what was written to a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(algorithm: GRPOAlgorithm) -> int:
    """Bytes of a checkpoint: the weights, and two moments of those that are trained."""
    weights = algorithm.get_weights().values()
    trained = [p for group in algorithm.get_optimizers()["policy"].param_groups for p in group["params"]]
    return sum(w.nbytes for w in weights) + 2 * sum(p.nbytes for p in trained)


def last(output_dir: Path | None) -> Path:
    """The `pretrained_model` directory of a run's last checkpoint.

    Raises:
        ValueError: If no run is named, or it holds links out of its directory, where it goes on writing.
        FileNotFoundError: If the run has none.
    """
    if output_dir is None:
        raise ValueError("Which run should be resumed? Pass its directory as --output_dir.")
    require_inside(output_dir, but=[WANDB])
    path = output_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no checkpoint to resume from: expected {path}; remove {output_dir} if it is "
            "there, and start the run without --resume."
        )
    return path


def require_same_settings(config: GRPOPipelineConfig, checkpoint: Path) -> None:
    """Log what a resumed run changes, and reject what would make it another run.

    Args:
        config: Of the command.
        checkpoint: A `pretrained_model` directory of the run.

    Raises:
        ValueError: If a setting differs that the result depends on; the message says which and how.
    """
    before = flattened(json.loads((checkpoint / TRAIN_CONFIG_NAME).read_text(encoding="utf-8")))
    different = differences(before, settings_of(config))
    different = {name: text for name, text in different.items() if name not in _OF_A_RESUMPTION}
    changed = [text for name, text in different.items() if not name.startswith(_MAY_CHANGE)]
    if changed:
        raise ValueError(
            f"A resumed run goes on with its own settings, but {'; '.join(changed)}. Leave these flags out, "
            f"or begin another run from this checkpoint: --policy.path={checkpoint} and a new --output_dir."
        )
    if different:
        logging.info("Resumed with other settings: %s", "; ".join(different.values()))


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
