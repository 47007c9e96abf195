"""The seam between a flow-matching policy and everything that samples from it or replays it.

t = 1 is noise, t = 0 is the action: x_t = t·ε + (1−t)·a, v = ε − a (LeRobot's convention).
Dims: B batch, H steps a chunk, P padded action dimensions, A ≤ P real ones, K Euler steps.
"""

from typing import Protocol, Self

from torch import Tensor


class FlowContext(Protocol):
    """What a policy has computed from one batch of observations, e.g. the prefix's key/value cache."""

    def repeat_interleave(self, n: int) -> Self:
        """Each batch row n times in a row: B rows become B·n, so several (x_t, t) share one encoding."""
        ...


class FlowPolicy(Protocol):
    """A policy whose action chunk is the end point of a flow."""

    chunk_size: int
    """H"""
    padded_action_dim: int
    """P"""
    action_dim: int
    """A"""
    num_steps: int
    """K, Euler steps from noise to action"""

    def encode(self, batch: dict[str, Tensor]) -> FlowContext:
        """Observations, preprocessed, to a context of B rows. Differentiable."""
        ...

    def velocity(self, context: FlowContext, x_t: Tensor, t: Tensor) -> Tensor:
        """v(x_t, t), (B, H, P) float32, of (B, H, P) and (B,). Differentiable; leaves the context alone."""
        ...
