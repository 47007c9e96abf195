"""Integrators against LeRobot's, densities against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from lerobot_smoothvla.flow.noise import noise_factor
from lerobot_smoothvla.flow.sampling import (
    flow_sde_step,
    gaussian_log_prob,
    integrate_ode,
    ode_step,
    time_grid,
)

B, H, P, A = 3, 6, 5, 2


class CurvedFlow:
    """A velocity that depends on everything; no context."""

    chunk_size, padded_action_dim, action_dim = H, P, A

    def __init__(self, num_steps):
        self.num_steps = num_steps

    def velocity(self, context, x_t, t):
        return torch.sin(3 * x_t) + t[:, None, None] * x_t.roll(1, dims=-1)


@pytest.fixture
def x():
    return torch.randn(B, H, P, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_steps", [1, 3, 5, 7, 10])
def test_ode_is_bit_equal_to_lerobot(num_steps, x):
    from lerobot.policies.common.flow_matching import euler_integrate

    policy = CurvedFlow(num_steps)
    expected = euler_integrate(lambda x_t, t: policy.velocity(None, x_t, t), x, num_steps)
    assert torch.equal(integrate_ode(policy, None, x), expected)


@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_sde_without_noise_is_the_ode(num_steps, x):
    delta = 1 / num_steps
    for t in time_grid(num_steps):
        v = CurvedFlow(num_steps).velocity(None, x, t.expand(B))
        mean, std = flow_sde_step(x, v, t.expand(B), delta, level=0.0)
        assert torch.equal(mean, ode_step(x, v, delta))
        assert not std.any()


@pytest.mark.parametrize("t", [1.0, 0.75, 0.5, 0.25])
def test_sde_step_is_the_formula_of_its_docstring(t, x):
    delta, level, v = 0.25, 0.3, torch.cos(x)
    mean, std = flow_sde_step(x, v, torch.full((B,), t), delta, level)
    sigma = level * math.sqrt(t / (1 - t if t < 1 else delta))
    expected = x - delta * v - (x + (1 - t) * v) * sigma**2 * delta / (2 * t)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(std, torch.full((B, 1, 1), sigma * math.sqrt(delta)))


def test_sde_keeps_the_marginal_of_the_ode():
    # The exact velocity of actions N(0, s²): x_t ~ N(0, t² + (1−t)²s²), v = E[ε − a | x_t].
    s, num_steps, generator = 0.5, 400, torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, 1, generator=generator)
    for t in time_grid(num_steps):
        v = x * (t - (1 - t) * s**2) / (t**2 + (1 - t) ** 2 * s**2)
        mean, std = flow_sde_step(x, v, t.expand(len(x)), 1 / num_steps, level=0.5)
        x = mean + std * torch.randn(x.shape, generator=generator)
    assert x.std().item() == pytest.approx(s, rel=0.05)


@pytest.mark.parametrize("length", [0.0, 3.0])
@pytest.mark.parametrize("n_executed", [1, 4, H])
def test_log_prob_of_an_executed_prefix_equals_multivariate_normal(length, n_executed, x):
    factor = noise_factor(H, length, jitter=1e-2)
    mean, std = torch.cos(x), torch.tensor([0.1, 0.5, 2.0])[:, None, None]
    sample = mean + 0.3 * torch.sin(7 * x)
    log_prob = gaussian_log_prob(sample, mean, std, factor, A)[:, :n_executed].sum(-1)
    covariance = (factor @ factor.T)[:n_executed, :n_executed]
    for b in range(B):
        expected = sum(
            MultivariateNormal(mean[b, :n_executed, a], std[b] ** 2 * covariance).log_prob(
                sample[b, :n_executed, a]
            )
            for a in range(A)
        )
        torch.testing.assert_close(log_prob[b], expected, rtol=1e-4, atol=1e-3)


def test_white_log_prob_of_a_step_is_the_sum_of_normals_over_real_dimensions(x):
    mean, std = torch.cos(x), torch.full((B, 1, 1), 0.7)
    log_prob = gaussian_log_prob(x, mean, std, noise_factor(H), A)
    torch.testing.assert_close(log_prob, Normal(mean, std).log_prob(x)[..., :A].sum(-1))
