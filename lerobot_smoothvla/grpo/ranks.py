"""The processes of one run that share its learning, as `accelerate launch` starts them.

Each rolls out whole groups of its own and learns from them. Gradients are summed, so that all of them take
the step that one process would take with all groups. They talk over torch.distributed: gloo on CPUs, NCCL on
GPUs.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among its like; by default alone.

    Attributes:
        rank: Its index.
        size: How many they are.
        device: On which they exchange tensors.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the one that writes what a run leaves."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Which of `n` things, in their order, are this process's; those of all ranks follow one another."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def gather[T](self, item: T) -> list[T]:
        """Everybody's item, in the order of the ranks; all have to call it."""
        items = [item] * self.size
        if self.size > 1:
            dist.all_gather_object(items, item)
        return items

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over all ranks into each tensor; all have to call it, with the same shapes."""
        if self.size == 1:
            return
        for tensor in tensors:
            on_device = tensor.to(self.device)
            dist.all_reduce(on_device)
            tensor.copy_(on_device)


_SPLITTING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What splits a policy's weights, by the variable with which `accelerate launch` asks for it."""


def launched(device: str | None) -> Ranks:
    """The ranks that a launcher started this process among, by the variables that it sets; else alone.

    Args:
        device: Of the policy; its GPU is chosen by the launcher's `LOCAL_RANK`.

    Raises:
        ValueError: If the launcher is told to split the weights.
    """
    for variable, name in _SPLITTING.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise ValueError(
                f"`accelerate launch` is told to use {name}, which splits the weights of a policy, but every "
                "process acts in rollouts with all of them. Launch without it (--multi_gpu); where a policy "
                "does not fit, train an adapter (--peft.method_type=LORA) or freeze parts "
                "(--algorithm.freeze=[vision,vlm])."
            )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    state = PartialState(cpu=device == "cpu")
    return Ranks(state.process_index, state.num_processes, state.device)
