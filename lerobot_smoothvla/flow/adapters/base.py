"""What every adapter shares: where its policy's parts are, and a check that they are still there.

Dims: B batch, H steps a chunk, P padded action dimensions, A ≤ P real ones, K denoising steps.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import reduce
from typing import Any, ClassVar

import torch
from lerobot.__version__ import __version__ as lerobot_version
from lerobot.policies import PreTrainedPolicy
from torch import Tensor

from lerobot_smoothvla.flow.noise import Randomness, normal
from lerobot_smoothvla.flow.policy import Context
from lerobot_smoothvla.flow.sampling import integrate_ode


class PolicyAdapter(ABC):
    """A LeRobot policy as a `ChunkPolicy`.

    Attributes:
        known_versions: Of LeRobot, with which the adapter has been tested.
        uses: Methods of the policy that are not LeRobot's public interface, by dotted path, with the names of
            the parameters that the adapter passes.
        num_steps_field: The policy config's field that holds K.
        parts: The policy's parts ("vision", "vlm"), each with the prefixes of its parameters' names; the
            longest prefix wins, and what matches none is the "expert".
        ratios: The ratio estimators that suit it (`--algorithm.ratio`), the default first.
        frozen_in_bf16: Whether frozen weights may be stored in bfloat16 without a difference to the result,
            as autocast rounds them anyway: not where the policy itself looks at their type.
        needs_every_camera: Whether the policy cannot act where one of its cameras is missing.
    """

    known_versions: ClassVar[str] = "0.6.1"
    uses: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    num_steps_field: ClassVar[str] = "num_steps"
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    ratios: ClassVar[tuple[str, ...]]
    frozen_in_bf16: ClassVar[bool] = True
    needs_every_camera: ClassVar[bool] = False

    def __init__(self, policy: PreTrainedPolicy) -> None:
        """Wrap a policy, which stays as it is.

        Raises:
            ImportError: If LeRobot's code is not what the adapter knows.
        """
        # PEFT puts its layers into the policy's own modules: the policy inside acts with them.
        self.policy: Any = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        self.config: Any = self.policy.config
        for path, parameters in self.uses.items():
            self._require(path, parameters)

    def _require(self, path: str, parameters: tuple[str, ...]) -> None:
        """Reject a policy without the method `path` or one that takes other parameters."""
        method = reduce(lambda owner, name: getattr(owner, name, None), path.split("."), self.policy)
        taken = inspect.signature(method).parameters if callable(method) else {}
        if not callable(method) or (missing := [name for name in parameters if name not in taken]):
            what = f"does not take {', '.join(missing)}" if callable(method) else "is not there"
            raise ImportError(
                f"The adapter of '{self.config.type}' calls `{path}`, which in LeRobot {lerobot_version} "
                f"{what}. It is known to work with LeRobot {self.known_versions}: install that, or mend the "
                f"adapter in {inspect.getfile(type(self))}."
            )

    @classmethod
    def for_config(cls, config: Any) -> "type[PolicyAdapter]":
        """The adapter of a config, where a policy type needs several."""
        return cls

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Reject settings of the policy that cannot be fine-tuned; before its weights are loaded.

        Raises:
            ValueError: If one cannot.
        """
        if config.n_action_steps < 1:
            raise ValueError(
                f"`n_action_steps` should be at least 1, got {config.n_action_steps}: the steps of "
                "every chunk that are executed."
            )

    @classmethod
    def noise_last_step(cls, config: Any) -> bool:
        """Whether the last denoising step explores too, unless the user says otherwise."""
        return False

    @property
    def chunk_size(self) -> int:
        """H."""
        return self.config.chunk_size

    @property
    def padded_action_dim(self) -> int:
        """P."""
        return self.config.max_action_dim

    @property
    def action_dim(self) -> int:
        """A."""
        return self.config.action_feature.shape[0]

    @property
    def num_steps(self) -> int:
        """K."""
        return getattr(self.config, self.num_steps_field)

    @property
    def first_step(self) -> int:
        """Index of the chunk's first step that is executed."""
        return 0

    @abstractmethod
    def encode(self, batch: dict[str, Tensor]) -> Any:
        """See `ChunkPolicy.encode`."""

    @abstractmethod
    def denoise(self, context: Any, noise: Tensor, generator: Randomness) -> Tensor:
        """See `ChunkPolicy.denoise`."""

    def to_actions(self, chunks: Tensor) -> Tensor:
        """What the policy's post-processor takes, (B, n, A), of chunks (B, H, P): from `first_step` on."""
        return chunks[:, self.first_step :, : self.action_dim]

    @classmethod
    def part_of(cls, parameter: str) -> str:
        """The part of the policy that a parameter belongs to, by its name in the policy."""
        matches = [
            (len(prefix), part)
            for part, prefixes in cls.parts.items()
            for prefix in prefixes
            if parameter.startswith(prefix)
        ]
        return max(matches, default=(0, "expert"))[1]

    def freeze(self, parts: Collection[str]) -> None:
        """Leave the parts of these names untrained.

        Raises:
            ValueError: If the policy has no such part.
        """
        known = (*self.parts, "expert")
        if unknown := sorted(set(parts) - set(known)):
            raise ValueError(
                f"A policy of type '{self.config.type}' has no part {', '.join(unknown)} to freeze; it has "
                f"{', '.join(known)} (--algorithm.freeze=[{known[0]}])."
            )
        for name, parameter in self.policy.named_parameters():
            if self.part_of(name) in parts:
                parameter.requires_grad_(False)


class FlowAdapter(PolicyAdapter):
    """A LeRobot policy as a `FlowPolicy`."""

    ratios = ("flow_matching", "flow_sde")

    @abstractmethod
    def velocity(self, context: Any, x_t: Tensor, t: Tensor) -> Tensor:
        """See `FlowPolicy.velocity`."""

    def denoise(self, context: Context, noise: Tensor, generator: Randomness) -> Tensor:
        """K Euler steps of the ODE, without further noise."""
        return integrate_ode(self, context, noise)


class DiffusionAdapter(PolicyAdapter):
    """A LeRobot policy as a `DiffusionPolicy`."""

    ratios = ("posterior",)

    @abstractmethod
    def predict(self, context: Any, x: Tensor, step: Tensor) -> Tensor:
        """See `DiffusionPolicy.predict`."""

    @abstractmethod
    def posterior(
        self, prediction: Tensor, x: Tensor, step: Tensor, min_std: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See `DiffusionPolicy.posterior`."""

    def denoise(self, context: Any, noise: Tensor, generator: Randomness) -> Tensor:
        """K steps of the deployed chain."""
        x = noise
        for k in range(self.num_steps):
            step = torch.full((len(x),), k, device=x.device)
            mean, std = self.posterior(self.predict(context, x, step), x, step)
            x = mean + std * normal(x.shape, generator)
        return x
