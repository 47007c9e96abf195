"""The seam between a policy and everything that samples from it or replays it.

t = 1 is noise, t = 0 is the action: x_t = t·ε + (1−t)·a, v = ε − a (LeRobot's convention).
Dims: B batch, H steps a chunk, P padded action dimensions, A ≤ P real ones, K denoising steps.
"""

from typing import Protocol, Self

from torch import Tensor

from lerobot_smoothvla.flow.noise import Randomness


class Context(Protocol):
    """What a policy has computed from one batch of observations, e.g. the prefix's key/value cache."""

    def repeat_interleave(self, n: int) -> Self:
        """Each batch row n times in a row: B rows become B·n, so several (x_t, t) share one encoding."""
        ...


class ChunkPolicy(Protocol):
    """A policy that makes an action chunk of noise, in K steps."""

    @property
    def chunk_size(self) -> int:
        """H."""
        ...

    @property
    def padded_action_dim(self) -> int:
        """P."""
        ...

    @property
    def action_dim(self) -> int:
        """A."""
        ...

    @property
    def num_steps(self) -> int:
        """K."""
        ...

    @property
    def first_step(self) -> int:
        """Index of the chunk's first step that is executed; those before it lie in the past."""
        ...

    def encode(self, batch: dict[str, Tensor]) -> Context:
        """Observations, preprocessed, to a context of B rows. Differentiable."""
        ...

    def denoise(self, context: Context, noise: Tensor, generator: Randomness) -> Tensor:
        """The chunk (B, H, P) that the deployed policy makes of `noise`, (B, H, P)."""
        ...


class FlowPolicy(ChunkPolicy, Protocol):
    """A policy whose action chunk is the end point of a flow."""

    def velocity(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        """v(x_t, t), (B, H, P) float32, of (B, H, P) and (B,). Differentiable; leaves the context alone."""
        ...


class DiffusionPolicy(ChunkPolicy, Protocol):
    """A policy whose action chunk is the end point of a Markov chain with Gaussian transitions."""

    def predict(self, context: Context, x: Tensor, step: Tensor) -> Tensor:
        """What the network says of x (B, H, P) at denoising step k of (B,), 0 to K − 1.

        Differentiable; leaves the context alone.
        """
        ...

    def posterior(
        self, prediction: Tensor, x: Tensor, step: Tensor, min_std: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean (B, H, P) and std (B, 1, 1), float32, of p(x_next | x).

        With `min_std` 0 it is the transition that is deployed; otherwise its std is at least that.
        """
        ...
