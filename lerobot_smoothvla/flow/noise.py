"""Gaussian noise over an action chunk, white or correlated along its time axis.

White noise over a chunk is itself jerk: its third difference has √20 times its std, correlated noise of
length 3 about a twentieth of that.

Dims: B batch, H steps a chunk, P padded action dimensions. Action dimensions are independent of one another.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class RowGenerators:
    """A generator for each row of a batch, so that what a row draws does not depend on the others.

    Attributes:
        device: Of all of them.
    """

    def __init__(self, rows: Sequence[torch.Generator]) -> None:
        """Take the generators of B ≥ 1 rows."""
        self._rows = rows
        self.device = rows[0].device

    def draw(self, one: Callable[[torch.Generator], Tensor]) -> Tensor:
        """(B, ...) of what `one` draws with each generator, (1, ...)."""
        return torch.cat([one(generator) for generator in self._rows])


Randomness = torch.Generator | RowGenerators
"""Where noise comes from: one generator for all rows of a batch, or one for each."""


def normal(shape: Sequence[int], randomness: Randomness) -> Tensor:
    """(B, ...) standard normal, float32, on the device of its source."""
    if isinstance(randomness, RowGenerators):
        return randomness.draw(lambda generator: normal((1, *shape[1:]), generator))
    return torch.randn(*shape, generator=randomness, device=randomness.device)


def uniform(shape: Sequence[int], randomness: Randomness) -> Tensor:
    """(B, ...) uniform in [0, 1), float32, on the device of its source."""
    if isinstance(randomness, RowGenerators):
        return randomness.draw(lambda generator: uniform((1, *shape[1:]), generator))
    return torch.rand(*shape, generator=randomness, device=randomness.device)


def integers(end: int, shape: Sequence[int], randomness: Randomness) -> Tensor:
    """(B, ...) uniform in 0, …, `end` − 1, on the device of its source."""
    if isinstance(randomness, RowGenerators):
        return randomness.draw(lambda generator: integers(end, (1, *shape[1:]), generator))
    return torch.randint(end, tuple(shape), generator=randomness, device=randomness.device)


def noise_factor(
    chunk_size: int, length: float = 0.0, jitter: float = 1e-3, device: torch.device | None = None
) -> Tensor:
    """Cholesky factor L of the noise's covariance over a chunk, of unit marginal variance.

    Σ = L·Lᵀ, Σ_ij = (exp(−(i−j)² / (2·length²)) + jitter·[i=j]) / (1 + jitter); Σ = I where `length` is 0.
    The jitter is a white part of the noise. Less of it is smoother, but √jitter bounds from below what is
    left of a step's std once the steps before it are known, hence how far a change of the mean can move the
    log-density.

    Args:
        chunk_size: H.
        length: Correlation length in control steps; 0 is white.
        jitter: Variance of the white part relative to the correlated one.
        device: Where L is put.

    Returns:
        (H, H) float32, lower triangular.

    Raises:
        ValueError: If `length` is negative or `jitter` is not positive.
    """
    if not 0 <= length < math.inf:
        raise ValueError(f"`length` should be 0 (white) or a positive number of control steps, got {length}.")
    if jitter <= 0:
        raise ValueError(f"`jitter` should be positive, as RBF covariances are near singular, got {jitter}.")
    if length == 0:
        return torch.eye(chunk_size, device=device)
    steps = torch.arange(chunk_size, dtype=torch.float64)
    rbf = torch.exp(-0.5 * ((steps[:, None] - steps) / length).square())
    covariance = (rbf + jitter * torch.eye(chunk_size, dtype=torch.float64)) / (1 + jitter)
    return torch.linalg.cholesky(covariance).to(device, torch.float32)


def whiten(noise: Tensor, factor: Tensor) -> Tensor:
    """L⁻¹·noise, the z that it came from.

    L is lower triangular, so the first n entries of z depend on the first n steps only, and they whiten the
    leading n × n block of Σ, the marginal covariance of those steps.

    Args:
        noise: (..., H, P).
        factor: (H, H) L.

    Returns:
        (..., H, P).
    """
    return torch.linalg.solve_triangular(factor, noise, upper=False)
