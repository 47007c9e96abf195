"""Steps from noise to action: the ODE that is deployed, and the SDE of the same marginals that explores.

t = 1 is noise, t = 0 is the action; K Euler steps of size δ = 1/K.
Dims: B batch, H steps a chunk, P padded action dimensions, A ≤ P real ones.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lerobot_smoothvla.flow.noise import Randomness, normal, whiten
from lerobot_smoothvla.flow.policy import ChunkPolicy, Context, FlowPolicy


@dataclass(frozen=True)
class ChunkSample:
    """Sampled chunks and what replays them.

    Attributes:
        actions: (B, H, P) in the model's normalised, padded space.
        record: What `RatioEstimator.log_ratio` needs, each (B, ...); empty where nothing is to be replayed.
    """

    actions: Tensor
    record: dict[str, Tensor]

    def row(self, index: int) -> "ChunkSample":
        """One of the chunks, as a batch of 1, on the CPU."""
        rows = slice(index, index + 1)
        record = {name: value[rows].cpu() for name, value in self.record.items()}
        return ChunkSample(self.actions[rows].cpu(), record)


def time_grid(num_steps: int, device: torch.device | None = None) -> Tensor:
    """The times at which the velocity is asked, t_k = 1 − k·δ, rounded as in LeRobot's `euler_integrate`.

    Args:
        num_steps: K.
        device: Where the times are put.

    Returns:
        (K,) float32, from 1 down to δ.
    """
    dt = -1.0 / num_steps
    return torch.tensor([1.0 + step * dt for step in range(num_steps)], dtype=torch.float32, device=device)


def ode_step(x_t: Tensor, v: Tensor, delta: float) -> Tensor:
    """One Euler step towards the action, x' = x − δ·v; all of shape (B, H, P)."""
    return x_t - delta * v


def integrate_ode(policy: FlowPolicy, context: Context, noise: Tensor) -> Tensor:
    """The chunk that K Euler steps make of `noise`; bit-equal to LeRobot's `euler_integrate`.

    Args:
        policy: Gives v and K.
        context: Of B rows.
        noise: (B, H, P), x at t = 1.

    Returns:
        (B, H, P), x at t = 0. Differentiable.
    """
    x_t = noise
    for t in time_grid(policy.num_steps, noise.device):
        x_t = ode_step(x_t, policy.velocity(context, x_t, t.expand(len(noise))), 1.0 / policy.num_steps)
    return x_t


def initial_noise(policy: ChunkPolicy, generator: Randomness, batch_size: int) -> Tensor:
    """(B, H, P) standard normal, x at t = 1, on the generator's device."""
    return normal((batch_size, policy.chunk_size, policy.padded_action_dim), generator)


@dataclass(frozen=True)
class DeployedSampler:
    """What is deployed: the policy's own sampling from random noise. For evaluation; it records nothing."""

    @torch.no_grad()
    def sample(
        self, policy: ChunkPolicy, context: Context, generator: Randomness, batch_size: int = 1
    ) -> ChunkSample:
        """Chunks from noise that `generator` draws, on its device; see `RatioEstimator.sample`."""
        noise = initial_noise(policy, generator, batch_size)
        return ChunkSample(policy.denoise(context, noise, generator), {})


def flow_sde_step(x_t: Tensor, v: Tensor, t: Tensor, delta: float, level: float) -> tuple[Tensor, Tensor]:
    """One Flow-SDE step as a Gaussian: noise is added, and the drift takes as much away.

    σ = level·√(t / (1−t)), ε̂ = x_t + (1−t)·v, mean = x_t − δ·v − ε̂·σ²·δ / (2t), std = σ·√δ.
    At t = 1, where σ diverges, 1−t is taken at the next grid point, δ. To first order in δ the marginals are
    the ODE's. Flow-GRPO (arXiv 2505.05470), π_RL (arXiv 2510.25889).

    Args:
        x_t: (B, H, P).
        v: (B, H, P) velocity at (x_t, t).
        t: (B,) times, in (0, 1].
        delta: δ.
        level: Noise level; 0 gives the ODE step with std 0.

    Returns:
        mean (B, H, P) and std (B, 1, 1), both float32.
    """
    x_t, v, t = x_t.float(), v.float(), t.float()[:, None, None]
    variance_rate = level**2 * t / (1 - t).clamp(min=delta)
    eps_hat = x_t + (1 - t) * v
    mean = ode_step(x_t, v, delta) - eps_hat * variance_rate * delta / (2 * t)
    return mean, (variance_rate * delta).sqrt()


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor, factor: Tensor, action_dim: int) -> Tensor:
    """Log-density of each step of a chunk given those before it: log p(x_h | x_<h), x ~ N(mean, std²·L·Lᵀ).

    With z = L⁻¹·(x − mean)/std: Σ over the A real dimensions of −z_h²/2 − log(std·L_hh) − log(2π)/2. The sum
    over the first n steps is the exact log-density of those n steps.

    Args:
        x: (B, H, P) the sample.
        mean: (B, H, P).
        std: (B, 1, 1), positive.
        factor: (H, H) L, see `noise_factor`.
        action_dim: A; padded dimensions are left out.

    Returns:
        (B, H) float32.
    """
    z = whiten(((x - mean) / std)[..., :action_dim].float(), factor)
    log_std = std.float().log() + factor.diagonal().log()[:, None]
    return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
