"""Covariance, whitening and smoothness of the noise over a chunk."""

import math
from functools import partial

import pytest
import torch

from lerobot_smoothvla.flow.noise import (
    RowGenerators,
    integers,
    noise_factor,
    normal,
    uniform,
    whiten,
)

H = 12


def test_length_zero_is_white():
    assert torch.equal(noise_factor(H), torch.eye(H))


@pytest.mark.parametrize("length", [0.5, 1.0, 3.0, 10.0, 50.0])
@pytest.mark.parametrize("chunk_size", [1, 8, 50])
def test_marginal_variance_is_one_at_every_step(chunk_size, length):
    factor = noise_factor(chunk_size, length)
    torch.testing.assert_close((factor @ factor.T).diagonal(), torch.ones(chunk_size))


def test_covariance_is_the_rbf_of_its_docstring():
    length, jitter = 3.0, 1e-2
    factor = noise_factor(H, length, jitter)
    covariance = factor @ factor.T
    for i in range(H):
        for j in range(H):
            expected = (math.exp(-((i - j) ** 2) / (2 * length**2)) + jitter * (i == j)) / (1 + jitter)
            assert covariance[i, j].item() == pytest.approx(expected, abs=1e-5)


def test_samples_have_the_covariance_and_independent_dimensions():
    factor = noise_factor(H, 3.0)
    noise = factor @ normal((20_000, H, 2), torch.Generator().manual_seed(0))
    empirical = torch.cov(noise.permute(1, 2, 0).reshape(2 * H, -1))
    expected = torch.kron(factor @ factor.T, torch.eye(2))
    torch.testing.assert_close(empirical, expected, atol=0.04, rtol=0)


def test_same_seed_gives_the_same_noise():
    draws = [noise_factor(H, 2.0) @ normal((3, H, 4), torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*draws)


def test_whitening_undoes_colouring_and_a_prefix_whitens_alone():
    factor = noise_factor(H, 3.0)
    z = torch.randn(5, H, 2, generator=torch.Generator().manual_seed(0))
    noise = factor @ z
    torch.testing.assert_close(whiten(noise, factor), z, atol=1e-3, rtol=0)
    torch.testing.assert_close(whiten(noise, factor)[:, :4], whiten(noise[:, :4], factor[:4, :4]))


def test_third_difference_of_correlated_noise_is_a_twentieth_of_white_noise():
    third_difference = torch.eye(H).diff(n=3, dim=0)
    white, smooth = ((third_difference @ noise_factor(H, length)).norm(dim=1) for length in (0.0, 3.0))
    torch.testing.assert_close(white, torch.full_like(white, math.sqrt(20)))
    assert (smooth / white).max() < 0.06


def test_negative_length_and_zero_jitter_are_rejected():
    with pytest.raises(ValueError, match="length.*got -1"):
        noise_factor(H, -1)
    with pytest.raises(ValueError, match="jitter.*got 0"):
        noise_factor(H, 1.0, 0.0)


@pytest.mark.parametrize("draw", [normal, uniform, partial(integers, 7)])
def test_a_row_with_its_own_generator_draws_what_it_draws_alone(draw):
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    together = draw((3, 4, 5), RowGenerators(generators()))
    alone = [draw((1, 4, 5), generator) for generator in generators()]
    assert torch.equal(together, torch.cat(alone)) and len({row.sum().item() for row in together}) == 3
