"""PEFT around a policy: a new adapter (LoRA or its kin), or the one of a checkpoint on the base it names.

What acts is LeRobot's policy with the adapter's layers in its own modules; the `PeftModel` around it passes
all else on to it. `peft` is an extra and imported where it is needed.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

from lerobot.configs.default import PeftConfig
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.random_utils import seeded_context

from lerobot_smoothvla.checkpoint_safety import UNREADABLE, require_safe_adapter, said

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_adapter(policy: PreTrainedPolicy, settings: PeftConfig, seed: int) -> Any:
    """Put a new adapter around a policy, which freezes all else.

    Args:
        policy: Loaded from its config's `pretrained_path`, which becomes the adapter's base.
        settings: LeRobot's `--peft.*` flags.
        seed: Of the adapter's random weights: a run that starts again starts from the same ones.

    Returns:
        A `PeftModel`.

    Raises:
        ImportError: If `peft` is not installed.
        ValueError: If the settings do not suit the policy.
    """
    _require_peft()
    given = {key: value for key, value in asdict(settings).items() if value is not None}
    try:
        _require_modules(policy, settings.full_training_modules or [])
        with seeded_context(seed):
            wrapped: Any = policy.wrap_with_peft(peft_cli_overrides=given)
    except (ValueError, TypeError, KeyError, re.error) as error:
        flags = " ".join(f"--peft.{key}={value}" for key, value in given.items())
        raise ValueError(
            f"No adapter can be put around this policy of type '{policy.config.type}' with {flags} "
            f"({type(error).__name__}: {error}). `method_type` should be LORA or another that takes `r`; "
            "`target_modules` a list of ends of module names ('[q_proj,v_proj]'), a regular expression for "
            "whole ones, or all-linear."
        ) from error
    adapter = adapter_of(wrapped)
    adapter.base_model_name_or_path = _absolute(adapter.base_model_name_or_path)
    adapter.revision = policy.config.pretrained_revision
    return wrapped


def read_adapter(path: str, revision: str | None = None) -> Any:
    """The `peft.PeftConfig` of a checkpoint, with its base as it is found from any directory.

    Args:
        path: A directory with an adapter, or a model on the Hub.
        revision: Of the adapter on the Hub; its base has one of its own.

    Raises:
        ImportError: If `peft` is not installed.
        ValueError: If the adapter names no base, or its config cannot be read.
    """
    peft = _require_peft()
    try:
        adapter = peft.PeftConfig.from_pretrained(path, revision=revision)
    except (ValueError, *UNREADABLE) as error:
        raise ValueError(
            f"The {ADAPTER_CONFIG} of '{path}' cannot be read: {said(error)}; fetch or save it again."
        ) from error
    require_safe_adapter(path, adapter)
    if not adapter.base_model_name_or_path:
        raise ValueError(
            f"The adapter '{path}' does not name its base: `base_model_name_or_path` in its {ADAPTER_CONFIG} "
            "should be the directory or the Hub's name of the policy that it was trained on; write it there."
        )
    adapter.base_model_name_or_path = _absolute(adapter.base_model_name_or_path)
    return adapter


def load_adapter(policy: PreTrainedPolicy, path: str, adapter: Any, revision: str | None = None) -> Any:
    """The adapter of a checkpoint on its base, trainable as LeRobot loads it.

    Args:
        policy: The base.
        path: The checkpoint.
        adapter: Of `read_adapter`.
        revision: Of the adapter on the Hub.

    Returns:
        A `PeftModel`.

    Raises:
        RuntimeError: If the adapter's weights do not fit the base.
    """
    peft_model = _require_peft().PeftModel
    return peft_model.from_pretrained(policy, path, config=adapter, revision=revision, is_trainable=True)


def adapter_of(policy: Any) -> Any:
    """The `peft.PeftConfig` that a policy is wrapped with, or None."""
    return getattr(policy, "peft_config", {}).get("default")


def with_structure(policy: PreTrainedPolicy, adapter: Any) -> Any:
    """A policy that takes the weights of one wrapped with `adapter`; as it is for None."""
    return policy if adapter is None else _require_peft().PeftModel(policy, adapter)


def _require_modules(policy: PreTrainedPolicy, ends: Sequence[str]) -> None:
    """Reject ends of module names that are none of the policy's: PEFT leaves them out without a word."""
    names = sorted((name for name, _ in policy.named_modules()), key=lambda name: name.count("."))
    if missing := [end for end in ends if not any(name.endswith(end) for name in names)]:
        known = dict.fromkeys(name.rpartition(".")[2] for name in names if name)
        raise ValueError(
            f"`full_training_modules` should be ends of module names, and none ends in {', '.join(missing)}; "
            f"there are {shorten(', '.join(known), 400)}"
        )


def _absolute(base: str) -> str:
    """A directory by its real path: a relative one is lost elsewhere, `checkpoints/last` moves on."""
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def _require_peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            f"Adapters need the package `peft`, which cannot be imported ({error}); install it with "
            "`pip install 'lerobot_policy_smoothvla[peft]'`."
        ) from error
    return peft
