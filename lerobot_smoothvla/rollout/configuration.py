"""Where rollouts are run: `--rollout.*`."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from lerobot.utils.device_utils import is_torch_device_available

Backend = Literal["local", "ray"]
Inference = Literal["worker", "central"]


@dataclass
class RolloutConfig:
    """Where rollouts are run.

    Attributes:
        backend: `local`, processes of this machine, or `ray`, actors of a Ray cluster.
        address: Of an existing cluster, `auto` or `HOST:PORT`; without one, Ray is started on this machine.
        timeout_s: How long a rollout may take, s, with the building of its simulator; a worker that takes
            longer is taken to hang, and replaced.
        inference: Where the policy acts: a copy in every `worker`, or `central`, in the learner for all of
            them at once, for policies too large to copy.
        overlap: Roll the next iteration out while the policy learns from this one: with the weights before
            that, to which its ratios are then exact. Needs workers with copies of the policy.
        device: Where the workers' copies of the policy act, as `cpu` while the learner has the GPU; None for
            the policy's own device.
    """

    backend: Backend = "local"
    address: str | None = None
    timeout_s: float = 1800.0
    inference: Inference = "worker"
    overlap: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        """Reject what could not be run.

        Raises:
            ValueError: If there is no such backend, or settings do not go together.
            ImportError: If Ray is not installed.
        """
        if self.backend not in get_args(Backend):
            raise ValueError(
                f"`backend` should be one of {', '.join(get_args(Backend))}, got '{self.backend}'."
            )
        if self.inference not in get_args(Inference):
            raise ValueError(
                f"`inference` should be one of {', '.join(get_args(Inference))}, got '{self.inference}'."
            )
        if self.inference == "central" and self.backend == "ray":
            raise ValueError(
                "`inference=central` needs workers on this machine; leave --rollout.backend=ray out, or let "
                "each of its actors have a copy of the policy."
            )
        if self.overlap and self.inference == "central":
            raise ValueError(
                "`overlap` needs a copy of the policy in every worker, as the learner's changes meanwhile; "
                "leave --rollout.inference=central or --rollout.overlap=true out."
            )
        if self.device is not None and self.inference == "central":
            raise ValueError(
                f"`device` is of the workers' copies of the policy, got '{self.device}' with "
                "--rollout.inference=central, where they have none; leave one of them out."
            )
        if self.device is not None:
            self._require_device(self.device)
        if not self.timeout_s > 0:
            raise ValueError(f"`timeout_s` should be a positive number of seconds, got {self.timeout_s}.")
        if self.backend == "ray" and find_spec("ray") is None:
            raise ImportError(
                "Rollouts by Ray need the package 'ray', which is not installed; try "
                "`pip install 'lerobot_policy_smoothvla[ray]'`."
            )
        if self.backend == "local" and self.address is not None:
            raise ValueError(
                f"`address` is of a Ray cluster, got '{self.address}' for the backend 'local'; add "
                "--rollout.backend=ray."
            )

    def _require_device(self, device: str) -> None:
        """Reject one that does not exist, or not here where the workers are here."""
        try:
            torch.device(device)
            there = self.backend == "ray" or is_torch_device_available(device)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"`device` should be one of cpu, cuda, mps or xpu, got '{device}': {error}"
            ) from error
        if not there:
            raise ValueError(
                f"`device` should be one of this machine's, got '{device}'; try --rollout.device=cpu."
            )
