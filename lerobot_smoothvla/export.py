"""A fine-tuned checkpoint as a plain one: adapters merged, `smoothvla` as `smolvla`; and guarded."""

from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from safetensors import SafetensorError

from lerobot_smoothvla.checkpoint_loading import load_actor, read_config
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.filters.configuration import GuardConfig
from lerobot_smoothvla.filters.guard import MotionGuardStep, install


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        policy_type: Its type.
        guard: At the end of its post-processor, if there is one.
    """

    policy_type: str
    guard: MotionGuardStep | None


def export(path: str | Path, output_dir: Path, guard: GuardConfig | None = None) -> Exported:
    """Write the plain checkpoint of a fine-tuned one; whole or not at all.

    Args:
        path: Of the fine-tuned checkpoint, a directory or a model on the Hub.
        output_dir: Of the plain one; should not exist.
        guard: What its actions go through on an arm. With one, a checkpoint that cannot be plainer is written
            as it is otherwise.

    Raises:
        FileExistsError: If there is something at `output_dir`.
        FileNotFoundError: If there is no checkpoint at `path`, or an adapter's base is not where it was.
        OSError: If the plain one cannot be written.
        ValueError: If there is nothing to do, the checkpoint cannot be loaded, or the guard does not suit it.
    """
    if output_dir.exists():
        raise FileExistsError(f"The output directory {output_dir} exists; choose another --output_dir.")
    config = read_config(path)
    config.pretrained_path = Path(path)
    becomes_smolvla = isinstance(config, SmoothVLAConfig) and not config.embedded
    step = guard.step(config) if guard and guard.wanted else None
    if not (config.use_peft or becomes_smolvla or step):
        reason = (
            "its embedded backbone is in no LeRobot without this plugin; fine-tune from policy=smoothvla, "
            "whose backbone is a SmolVLM"
            if isinstance(config, SmoothVLAConfig)
            else "it has no adapter, and stock LeRobot loads it as it is"
        )
        raise ValueError(f"There is no plainer '{config.type}' checkpoint than '{path}': {reason}.")
    actor = load_actor(config)
    policy: Any = actor.policy
    if config.use_peft:
        policy = policy.merge_and_unload()
        policy.config.use_peft = False
    if becomes_smolvla:
        # The modules and their names are SmolVLA's already.
        settings = {f.name: getattr(config, f.name) for f in fields(SmolVLAConfig)}
        policy.config = SmolVLAConfig(**settings)
    if guard and step:
        install(step, guard.frozen_after, actor.preprocessor, actor.postprocessor)
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}.") as directory:
            partial = Path(directory) / output_dir.name
            for part in (policy, actor.preprocessor, actor.postprocessor):
                part.save_pretrained(partial)
            partial.rename(output_dir)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"The checkpoint {output_dir} could not be written ({error}); choose an --output_dir on a disk "
            "with space."
        ) from error
    return Exported(policy.config.type, step)
