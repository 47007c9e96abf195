"""How an adapter's networks are run: in which precision, and what is kept for the backward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lerobot_smoothvla.flow.adapters.base import PolicyAdapter

_NETWORKS = ("encode", "velocity", "predict")
_ROUNDED_BY_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class Execution:
    """What rollouts and replay must share, for their ratios to be 1 before the first update.

    Attributes:
        bf16: Matrix products in bfloat16 by autocast; velocities and predictions come out as float32.
        gradient_checkpointing: Keep the inputs of each network for the backward pass, and run it again there.
    """

    bf16: bool = False
    gradient_checkpointing: bool = False

    def apply[Adapter: PolicyAdapter](self, adapter: Adapter) -> Adapter:
        """Let the adapter run its networks so, wherever they are called from."""
        for name in _NETWORKS:
            if hasattr(adapter, name):
                setattr(adapter, name, self._run(getattr(adapter, name), adapter.config.device))
        return adapter

    def _run(self, network: Callable[..., Any], device: str) -> Callable[..., Any]:
        @wraps(network)
        def run(*inputs: Any) -> Any:
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.bf16):
                if self.gradient_checkpointing and torch.is_grad_enabled():
                    # Updates run in evaluation mode: there is no randomness to repeat.
                    output = checkpoint(network, *inputs, use_reentrant=False, preserve_rng_state=False)
                else:
                    output = network(*inputs)
            return output.float() if isinstance(output, Tensor) else output

        return run


def store_frozen_in_bf16(policy: nn.Module) -> None:
    """Halve the memory of frozen weights that autocast rounds to bfloat16 at every use.

    What is trained stays float32, as bfloat16 would round a step of 5e-6 away, and so does what enters sums
    and norms.
    """
    modules = list(policy.modules())
    others = {
        id(p) for m in modules if not isinstance(m, _ROUNDED_BY_AUTOCAST) for p in m.parameters(recurse=False)
    }
    for module in modules:
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad and id(parameter) not in others:
                parameter.data = parameter.data.to(torch.bfloat16)
