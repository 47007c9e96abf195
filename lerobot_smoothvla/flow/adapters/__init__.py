"""Adapters: one small module per LeRobot policy that puts it behind the seam of `flow.policy`."""

from importlib import import_module
from typing import Any

from lerobot_smoothvla.flow.adapters.base import PolicyAdapter

_ADAPTERS = {
    "smoothvla": "lerobot_smoothvla.flow.adapters.smolvla:SmolVLAAdapter",
    "smolvla": "lerobot_smoothvla.flow.adapters.smolvla:SmolVLAAdapter",
    "pi0": "lerobot_smoothvla.flow.adapters.pi0:Pi0Adapter",
    "pi05": "lerobot_smoothvla.flow.adapters.pi0:Pi05Adapter",
    "diffusion": "lerobot_smoothvla.flow.adapters.diffusion:DiffusionPolicyAdapter",
    "multi_task_dit": "lerobot_smoothvla.flow.adapters.multi_task_dit:MultiTaskDiTAdapter",
}


def register_adapter(policy_type: str, target: str) -> None:
    """Let `policy_type` be fine-tuned through an adapter of yours.

    Args:
        policy_type: LeRobot's name of the policy, as in `--policy.type`.
        target: `package.module:Class` of a `PolicyAdapter`; imported when it is first needed.
    """
    _ADAPTERS[policy_type] = target


def adapter_types() -> list[str]:
    """The policy types that have an adapter, sorted."""
    return sorted(_ADAPTERS)


def adapter_class(config: Any) -> type[PolicyAdapter]:
    """The adapter of a policy, by its config.

    Raises:
        ValueError: If it has none; the message names those that do and how to write one.
    """
    if config.type not in _ADAPTERS:
        raise ValueError(
            f"A policy of type '{config.type}' has no adapter; these have: {', '.join(adapter_types())}. "
            "docs/writing-an-adapter.md says how to write one."
        )
    module, _, name = _ADAPTERS[config.type].partition(":")
    return getattr(import_module(module), name).for_config(config)


def adapt(policy: Any) -> PolicyAdapter:
    """A LeRobot policy, with or without PEFT adapters around it, behind the seam.

    Raises:
        ValueError: If its type has no adapter.
        ImportError: If LeRobot's code is not what the adapter knows.
    """
    return adapter_class(policy.config)(policy)
