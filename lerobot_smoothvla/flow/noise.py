"""Gaussian noise over an action chunk, white or correlated along its time axis.

White noise over a chunk is itself jerk: its third difference has √20 times its std, correlated noise of
length 3 about a twentieth of that.

Dims: B batch, H steps a chunk, P padded action dimensions. Action dimensions are independent of one another.
"""

import torch
from torch import Tensor


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
    if length < 0:
        raise ValueError(f"`length` should be 0 (white) or a positive number of control steps, got {length}.")
    if jitter <= 0:
        raise ValueError(f"`jitter` should be positive, as RBF covariances are near singular, got {jitter}.")
    if length == 0:
        return torch.eye(chunk_size, device=device)
    steps = torch.arange(chunk_size, dtype=torch.float64)
    rbf = torch.exp(-0.5 * ((steps[:, None] - steps) / length).square())
    covariance = (rbf + jitter * torch.eye(chunk_size, dtype=torch.float64)) / (1 + jitter)
    return torch.linalg.cholesky(covariance).to(device, torch.float32)


def sample_noise(factor: Tensor, batch_size: int, dim: int, generator: torch.Generator) -> Tensor:
    """L·z with z ~ N(0, I).

    Args:
        factor: (H, H) L.
        batch_size: B.
        dim: P.
        generator: On the device of `factor`.

    Returns:
        (B, H, P) float32.
    """
    z = torch.randn(batch_size, len(factor), dim, generator=generator, device=generator.device)
    return factor @ z


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
