"""What a stranger's files may hold, looked at before anything is made of them.

LeRobot and PEFT read more than numbers from a checkpoint: classes by their module's path, files by any path,
tokenizers that come with code of their own. What is rejected here would run code or leave the folder.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from lerobot.processor import ProcessorStepRegistry
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME
from safetensors import SafetensorError

WANDB = "wandb"
"""W&B's own in an output directory, with links to its logs; nobody here reads it."""
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SafetensorError,
    TypeError,
)
"""What libraries raise over content that they did not expect, beside a ValueError that says why."""

_LEROBOTS_STEPS = (
    "absolute_actions_processor",
    "device_processor",
    "normalizer_processor",
    "pi0_new_line_processor",
    "pi05_prepare_state_tokenizer_processor_step",
    "relative_actions_processor",
    "rename_observations_processor",
    "smolvla_new_line_processor",
    "to_batch_processor",
    "tokenizer_processor",
    "unnormalizer_processor",
)
"""Of the policies with an adapter; others fetch models, some with code (`action_tokenizer_processor`)."""


def said(error: BaseException) -> str:
    """An error's message, with its type where that does not speak for itself."""
    if isinstance(error, ValueError | RuntimeError | SafetensorError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def require_file(path: str, name: str, revision: str | None = None) -> Path:
    """Where a file of a checkpoint is; pi0 and pi05 only print that it is missing, and go on without.

    Args:
        path: A directory, or a model on the Hub.
        name: Of the file.
        revision: On the Hub.

    Raises:
        FileNotFoundError: If there is none.
    """
    if Path(path).is_dir():
        file = Path(path) / name
        if not file.is_file():
            raise FileNotFoundError(f"The checkpoint '{path}' is not whole: expected {file}.")
        return file
    try:
        return Path(hf_hub_download(path, name, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"The Hub's model '{path}' has no {name} ({error}).") from error


def require_inside(directory: Path, but: Collection[str] = ()) -> None:
    """Reject a directory that holds links out of it, which could be read or written through.

    In the Hub's cache, links from a snapshot to the blobs beside it are its own.

    Args:
        directory: That is going to be read.
        but: Names in it that are not going to be.

    Raises:
        ValueError: If there is one, or something that is neither a file nor a directory.
    """
    root = directory.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parents[1] / "blobs")
    for folder, directories, files in os.walk(root):
        if Path(folder) == root:
            directories[:] = [name for name in directories if name not in but]
        for entry in (Path(folder) / name for name in (*directories, *files)):
            target = Path(os.path.realpath(entry))
            if not any(target.is_relative_to(place) for place in allowed):
                raise ValueError(
                    f"'{entry}' is a link out of its directory, to '{target}'. A stranger's link may lead to "
                    "any file of yours; if it is your own, replace it by a copy of what it leads to."
                )
            if target.exists() and not (target.is_file() or target.is_dir()):
                raise ValueError(f"'{entry}' should be a file or a directory, and is neither; remove it.")


def require_safe_processors(path: str, revision: str | None = None) -> None:
    """Reject processors of a checkpoint that LeRobot would import from any module or read from any path.

    Args:
        path: A directory, or a model on the Hub.
        revision: On the Hub.

    Raises:
        ValueError: If there are some; the message names the step.
    """
    for name in (POLICY_PREPROCESSOR_DEFAULT_NAME, POLICY_POSTPROCESSOR_DEFAULT_NAME):
        try:
            file = require_file(path, f"{name}.json", revision)
        except FileNotFoundError:
            continue  # LeRobot knows older formats, and says how to migrate.
        try:
            for step in json.loads(file.read_text(encoding="utf-8"))["steps"]:
                _require_safe_step(step)
        except (ValueError, *UNREADABLE) as error:
            raise ValueError(
                f"The processors of '{path}' are not loaded: in {name}.json {said(error)}. Get the "
                "checkpoint from somebody you trust, or save its processors again with LeRobot."
            ) from error


def _require_safe_step(step: dict[str, Any]) -> None:
    name, state_file = step.get("registry_name"), step.get("state_file")
    if name is None:
        raise ValueError(
            f"a step names a class, '{step['class']}', where only names in LeRobot's registry of processor "
            "steps are allowed, as importing a class runs its module"
        )
    known = ProcessorStepRegistry.list()
    if name not in known:
        raise ValueError(f"a step is called '{name}', which is none of {', '.join(sorted(known))}")
    # A plugin's step is code that the user has installed.
    of_a_plugin = ProcessorStepRegistry.get(name).__module__.partition(".")[0] != "lerobot"
    if not of_a_plugin and name not in _LEROBOTS_STEPS:
        raise ValueError(
            f"a step is called '{name}', which may fetch code and is of none of the policies that can be "
            f"fine-tuned: they have {', '.join(_LEROBOTS_STEPS)}"
        )
    if state_file is not None and (
        PureWindowsPath(state_file).name != state_file or not state_file.endswith(".safetensors")
    ):
        raise ValueError(
            f"the step '{name}' keeps its state in '{state_file}', which should be the name of a safetensors "
            "file in the same directory"
        )


def require_safe_adapter(path: str, adapter: Any) -> None:
    """Reject an adapter that PEFT would import modules or load further adapters for.

    Args:
        path: Where it was read, for the message.
        adapter: Its `peft.PeftConfig`.

    Raises:
        ValueError: If it is one.
    """
    if not hasattr(adapter, "r") or getattr(adapter, "megatron_config", None):
        kind = f"of type {getattr(adapter.peft_type, 'value', adapter.peft_type)}"
        raise ValueError(
            f"The adapter '{path}' should be a LoRA or another with a rank `r`, without `megatron_config`, "
            f"which imports a module of the file's choice, got one {kind}; train one with --peft.* flags."
        )
