"""The chain is the scheduler's own, bit by bit, for rows at any step; exploring keeps DDIM's marginals."""

from itertools import product
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from lerobot_smoothvla.flow.adapters.scheduler import Chain

B, H, P = 3, 4, 2
SCHEDULERS = (DDPMScheduler, DDIMScheduler)
SETTINGS = list(product(SCHEDULERS, ("epsilon", "sample"), (None, 0.5), ((20, 20), (20, 7), (100, 10))))
"""Scheduler, what the network predicts, clip of the clean chunk, timesteps of training and inference."""
each_setting = pytest.mark.parametrize(("kind", "predicts", "clip", "steps"), SETTINGS)


def scheduler_of(kind: Any, predicts: str, clip: float | None, steps: tuple[int, int]) -> Any:
    """As LeRobot builds it."""
    scheduler = kind(
        num_train_timesteps=steps[0],
        beta_schedule="squaredcos_cap_v2",
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        prediction_type=predicts,
    )
    scheduler.set_timesteps(steps[1])
    return scheduler


def draw(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What a network says, and the x that it was asked at."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, H, P, generator=generator), torch.randn(n, H, P, generator=generator)


@each_setting
def test_a_deployed_step_is_the_schedulers_own_bit_by_bit(kind, predicts, clip, steps):
    scheduler = scheduler_of(kind, predicts, clip, steps)
    chain = Chain.of(scheduler, steps[1])
    assert torch.equal(chain.timesteps, scheduler.timesteps)
    prediction, x = draw(B)
    for k, t in enumerate(scheduler.timesteps):
        own = scheduler.step(prediction, t, x, generator=torch.Generator().manual_seed(k)).prev_sample
        mean, std = chain.posterior(prediction, x, torch.full((B,), k))
        noise = torch.randn(B, H, P, generator=torch.Generator().manual_seed(k))
        assert torch.equal(mean + std * noise, own), k
    assert not std.any(), "the last step draws no noise"


@each_setting
def test_rows_at_different_steps_are_what_each_is_alone(kind, predicts, clip, steps):
    chain = Chain.of(scheduler_of(kind, predicts, clip, steps), steps[1])
    order = torch.randperm(steps[1], generator=torch.Generator().manual_seed(1))
    prediction, x = draw(steps[1])
    for min_std in (0.0, 0.1):
        mean, std = chain.posterior(prediction, x, order, min_std)
        assert (mean.shape, std.shape) == (x.shape, (len(order), 1, 1))
        for row, k in enumerate(order):
            one = slice(row, row + 1)
            alone = chain.posterior(prediction[one], x[one], k[None], min_std)
            assert torch.equal(mean[one], alone[0])
            assert torch.equal(std[one], alone[1])


@pytest.mark.parametrize("steps", [(20, 20), (100, 10)])
@pytest.mark.parametrize("predicts", ["epsilon", "sample"])
def test_exploring_ddim_is_the_scheduler_with_that_noise(predicts, steps):
    """Its η scales the std of DDPM: an η that gives the least std must give the same mean."""
    scheduler = scheduler_of(DDIMScheduler, predicts, 0.5, steps)
    chain = Chain.of(scheduler, steps[1])
    prediction, x = draw(B)
    noise = draw(B, seed=1)[0]
    for k, t in enumerate(scheduler.timesteps[:-1]):
        min_std = 0.6 * scheduler._get_variance(t, t - steps[0] // steps[1]).sqrt()
        own = scheduler.step(prediction, t, x, eta=0.6, variance_noise=noise).prev_sample
        mean, std = chain.posterior(prediction, x, torch.full((B,), k), min_std.item())
        torch.testing.assert_close(mean + std * noise, own, rtol=1e-6, atol=1e-6)


def test_exploring_ddim_adds_no_variance_where_the_marginal_has_room():
    """With a perfect network x_k = √ᾱ_k·clean + √(1−ᾱ_k)·ε leads to the same for k + 1."""
    chain = Chain.of(scheduler_of(DDIMScheduler, "epsilon", None, (100, 10)), 10)
    clean = torch.full((1, H, P), 0.3)
    min_std = 0.1
    for k in range(10):
        a, a_next = chain.alpha_bar[k], chain.alpha_bar_next[k]
        mean, std = chain.posterior(
            torch.ones(1, H, P), a.sqrt() * clean + (1 - a).sqrt(), torch.tensor([k]), min_std
        )
        of_eps = (mean - a_next.sqrt() * clean).mean()
        expected = max((1 - a_next).item(), min_std**2)
        assert (of_eps**2 + std.mean() ** 2).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_exploring_has_at_least_the_least_std_in_every_step(kind):
    chain = Chain.of(scheduler_of(kind, "epsilon", 1.0, (20, 20)), 20)
    prediction, x = draw(20)
    deployed, widened = (chain.posterior(prediction, x, torch.arange(20), m) for m in (0.0, 0.1))
    assert torch.equal(widened[1], deployed[1].clamp(min=0.1))
    assert (widened[1] == 0.1).any()
    if kind is DDPMScheduler:
        assert torch.equal(widened[0], deployed[0])
        assert (widened[1] > 0.1).any()


def test_the_policys_scheduler_stays_as_it_is():
    scheduler = scheduler_of(DDPMScheduler, "epsilon", 1.0, (20, 5))
    before = scheduler.timesteps.clone()
    Chain.of(scheduler, 10)
    assert torch.equal(scheduler.timesteps, before)
