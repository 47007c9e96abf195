"""Ratios are 1 before an update, and on a small known problem they lead to the reward.

The problem: one step, one observation, reward −|a − target|² over the executed steps and real dimensions.
The policy: a small MLP, a flow or a diffusion, first trained on Gaussian actions, as the smallest warm start.
"""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from lerobot_smoothvla.flow.adapters.base import DiffusionAdapter
from lerobot_smoothvla.flow.adapters.scheduler import Chain
from lerobot_smoothvla.flow.noise import noise_factor
from lerobot_smoothvla.flow.ratio import FlowMatchingRatio, FlowSDERatio, PosteriorRatio
from lerobot_smoothvla.flow.sampling import gaussian_log_prob, integrate_ode
from lerobot_smoothvla.grpo.objective import clipped_objective

H, P, A, K, N_EXECUTED = 4, 3, 2, 4, 3
TARGET = torch.tensor([0.6, -0.4])
CASES = {
    "sde_one": ("flow", FlowSDERatio(level=0.5)),
    "sde_all": ("flow", FlowSDERatio(level=0.5, stochastic_steps="all", skip_last=False)),
    "sde_correlated": ("flow", FlowSDERatio(level=0.5, noise_length=1.5, skip_last=False)),
    "flow_matching": ("flow", FlowMatchingRatio(n_pairs=8, scale=6.0)),
    "ddpm_one": ("ddpm_noise", PosteriorRatio(level=0.3)),
    "ddpm_all": ("ddpm_noise", PosteriorRatio(level=0.3, stochastic_steps="all")),
    "ddim_one": ("ddim_clean", PosteriorRatio(level=0.4, skip_last=False)),
}
"""A kind of policy, and an estimator for it."""
each_estimator = pytest.mark.parametrize(("kind", "estimator"), CASES.values(), ids=CASES.keys())


@dataclass
class Context:
    features: torch.Tensor

    def repeat_interleave(self, n):
        return Context(self.features.repeat_interleave(n, dim=0))


class MLP(nn.Module):
    """Of a chunk and a time in [0, 1], given one observation number."""

    chunk_size, padded_action_dim, action_dim, num_steps, first_step = H, P, A, K, 0

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(1, 8)
        self.net = nn.Sequential(nn.Linear(H * P + 1 + 8, 64), nn.SiLU(), nn.Linear(64, H * P))

    def encode(self, batch):
        return Context(self.encoder(batch["observation.state"]))

    def forward(self, context, x, t):
        return self.net(torch.cat([x.flatten(1), t[:, None], context.features], dim=1)).view_as(x)


class MLPFlow(MLP):
    """v(x_t, t), trained by flow matching."""

    def loss(self, actions, eps):
        t = torch.rand(len(actions))
        x_t = t[:, None, None] * eps + (1 - t[:, None, None]) * actions
        return (self.velocity(self.encode(observe(len(actions))), x_t, t) - (eps - actions)).square().mean()

    def velocity(self, context, x_t, t):
        return self(context, x_t, t)

    def denoise(self, context, noise, generator):
        return integrate_ode(self, context, noise)


class MLPDiffusion(MLP):
    """ε̂ or the clean chunk at a scheduler's timesteps, trained on all of them, deployed on K."""

    def __init__(self, scheduler, predicts, n_timesteps):
        super().__init__()
        self.n_timesteps, self.predicts = n_timesteps, predicts
        self.scheduler = scheduler(
            n_timesteps, beta_schedule="squaredcos_cap_v2", prediction_type=predicts, clip_sample_range=1.5
        )
        self.chain = Chain.of(self.scheduler, K)

    def loss(self, actions, eps):
        timesteps = torch.randint(self.n_timesteps, (len(actions),))
        x = self.scheduler.add_noise(actions, eps, timesteps)
        prediction = self(self.encode(observe(len(actions))), x, timesteps / self.n_timesteps)
        return (prediction - (eps if self.predicts == "epsilon" else actions)).square().mean()

    def predict(self, context, x, step):
        return self(context, x, self.chain.timesteps[step] / self.n_timesteps)

    def posterior(self, prediction, x, step, min_std=0.0):
        return self.chain.posterior(prediction, x, step, min_std)

    denoise = DiffusionAdapter.denoise


KINDS = {
    "flow": MLPFlow,
    "ddpm_noise": lambda: MLPDiffusion(DDPMScheduler, "epsilon", 100),
    "ddim_clean": lambda: MLPDiffusion(DDIMScheduler, "sample", 20),
}


def observe(n):
    return {"observation.state": torch.ones(n, 1)}


def executed_of(n):
    return (torch.arange(H) < N_EXECUTED).expand(n, H)


def reward_of(actions):
    return -(actions[:, :N_EXECUTED, :A] - TARGET).square().mean((1, 2))


@pytest.fixture(scope="module")
def warm_starts():
    """Policies of each kind whose actions are about N(0, 0.4²)."""
    return {kind: warm_start(make) for kind, make in KINDS.items()}


def warm_start(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = make()
        optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
        for _ in range(600):
            loss = policy.loss(0.4 * torch.randn(256, H, P), torch.randn(256, H, P))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return policy


@pytest.fixture
def kind():
    return "flow"


@pytest.fixture
def policy(warm_starts, kind):
    return copy.deepcopy(warm_starts[kind])


def rollout(policy, estimator, n, seed=0):
    with torch.no_grad():
        context = policy.encode(observe(n))
        sample = estimator.sample(policy, context, torch.Generator().manual_seed(seed), batch_size=n)
        return sample, estimator.baseline(policy, context, sample.record)


def log_ratio_of(policy, estimator, record, baseline):
    n = len(baseline)
    return estimator.log_ratio(policy, policy.encode(observe(n)), record, baseline, executed_of(n))


def flat_gradient(policy, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


def deployed_reward(policy, n=2000, seed=123):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, H, P, generator=generator)
    return reward_of(policy.denoise(policy.encode(observe(n)), noise, generator)).mean()


def train(policy, estimator, iterations, advantages_of, **kwargs):
    """GRPO on the one-step problem: 64 rollouts an iteration, two epochs."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    deviation = 0.0
    for iteration in range(iterations):
        sample, baseline = rollout(policy, estimator, 64, seed=iteration)
        advantages = advantages_of(reward_of(sample.actions))
        for _ in range(2):
            log_ratio = log_ratio_of(policy, estimator, sample.record, baseline)
            stats = clipped_objective(
                log_ratio, advantages, torch.ones(64), clip_low=0.2, clip_high=0.28, **kwargs
            )
            optimizer.zero_grad()
            stats.loss.backward()
            optimizer.step()
            deviation = max(deviation, stats.ratio_deviation)
    return deviation


def normalised(reward):
    return (reward - reward.mean()) / (reward.std() + 0.01)


@each_estimator
def test_every_log_ratio_is_zero_before_the_first_update(policy, estimator):
    sample, baseline = rollout(policy, estimator, 32)
    batched = log_ratio_of(policy, estimator, sample.record, baseline)
    assert batched.abs().max() < 1e-4
    for b in range(32):
        row = {key: value[b : b + 1] for key, value in sample.record.items()}
        assert log_ratio_of(policy, estimator, row, baseline[b : b + 1]).abs().max() < 1e-4


@each_estimator
def test_rows_sampled_one_by_one_replay_as_a_batch(policy, estimator):
    rollouts = [rollout(policy, estimator, 1, seed) for seed in range(16)]
    record = {key: torch.cat([s.record[key] for s, _ in rollouts]) for key in rollouts[0][0].record}
    baseline = torch.cat([b for _, b in rollouts])
    assert log_ratio_of(policy, estimator, record, baseline).abs().max() < 1e-4


@each_estimator
def test_record_and_actions_have_a_row_per_chunk_and_repeat_with_the_seed(policy, estimator):
    first, baseline = rollout(policy, estimator, 5, seed=3)
    again, _ = rollout(policy, estimator, 5, seed=3)
    other, _ = rollout(policy, estimator, 5, seed=4)
    assert first.actions.shape == (5, H, P)
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.actions, other.actions)
    assert all(torch.equal(first.record[key], again.record[key]) for key in first.record)
    assert all(len(value) == 5 for value in [*first.record.values(), baseline])


@each_estimator
def test_gradient_reaches_every_parameter(policy, estimator):
    sample, baseline = rollout(policy, estimator, 16)
    log_ratio_of(policy, estimator, sample.record, baseline).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.parameters())


@each_estimator
def test_unexecuted_steps_and_padded_dimensions_do_not_count(policy, estimator):
    sample, baseline = rollout(policy, estimator, 8)
    garbage = baseline.clone()
    garbage[..., N_EXECUTED:] += 100
    assert log_ratio_of(policy, estimator, sample.record, garbage).abs().max() < 1e-4
    moved = copy.deepcopy(policy)
    with torch.no_grad():
        moved.net[-1].bias.view(H, P)[:, A:] += 5
    changed = log_ratio_of(moved, estimator, sample.record, baseline)
    torch.testing.assert_close(changed, torch.zeros_like(changed), atol=1e-4, rtol=0)


@each_estimator
def test_expected_gradient_points_to_the_reward(policy, estimator):
    # The reference differentiates the reward through the sampling that is deployed.
    reference = flat_gradient(policy, deployed_reward(policy, 20_000))
    sample, baseline = rollout(policy, estimator, 20_000)
    advantages = normalised(reward_of(sample.actions))
    log_ratio = log_ratio_of(policy, estimator, sample.record, baseline)
    stats = clipped_objective(log_ratio, advantages, torch.ones(20_000), clip_low=0.2, clip_high=0.28)
    assert torch.cosine_similarity(flat_gradient(policy, -stats.loss), reference, dim=0) > 0.7


@each_estimator
def test_reward_rises_over_a_few_dozen_updates(policy, estimator):
    before = deployed_reward(policy).item()
    train(policy, estimator, 30, normalised)
    assert deployed_reward(policy).item() > 0.5 * before


def test_a_last_step_that_no_ratio_holds_runs_away_where_the_network_is_its_mean(warm_starts):
    # Why a policy that predicts the clean chunk explores in its last step by default.
    policy = copy.deepcopy(warm_starts["ddim_clean"])
    before = deployed_reward(policy).item()
    train(policy, PosteriorRatio(level=0.3), 30, normalised)
    assert deployed_reward(policy).item() < 1.5 * before


def update_on_failures(policy, estimator, negative):
    """Deviation after 100 updates on one batch of which only the negative advantages are kept."""
    sample, baseline = rollout(policy, estimator, 64)
    advantages = normalised(reward_of(sample.actions)).clamp(max=0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(100):
        log_ratio = log_ratio_of(policy, estimator, sample.record, baseline)
        stats = clipped_objective(
            log_ratio, advantages, torch.ones(64), clip_low=0.2, clip_high=0.28, negative=negative
        )
        optimizer.zero_grad()
        stats.loss.backward()
        optimizer.step()
    return stats.ratio_deviation


@each_estimator
def test_quadratic_side_bounds_what_failures_can_do_to_the_policy(policy, estimator):
    assert update_on_failures(policy, estimator, "quadratic") < 0.35
    assert rollout(policy, estimator, 256)[0].actions.abs().max() < 3


@each_estimator
def test_clip_alone_does_not_hold_the_ratio_on_failures(policy, estimator):
    # Why `quadratic` is the default: momentum and the other terms carry a clipped term on.
    assert update_on_failures(policy, estimator, "clip") > 0.5


@each_estimator
def test_reward_rises_from_negative_advantages_alone(policy, estimator):
    before = deployed_reward(policy).item()
    deviation = train(policy, estimator, 30, lambda reward: normalised(reward).clamp(max=0))
    assert deployed_reward(policy).item() > 0.7 * before
    assert deviation < 1


@pytest.mark.parametrize("length", [0.0, 1.5])
def test_sde_ratio_is_the_density_ratio_of_its_transition(policy, length):
    estimator = FlowSDERatio(level=0.5, noise_length=length, stochastic_steps="all", skip_last=False)
    sample, baseline = rollout(policy, estimator, 2)
    with torch.no_grad():
        policy.net[-1].bias += 0.1
    found = log_ratio_of(policy, estimator, sample.record, baseline)
    factor = noise_factor(H, length)
    for k in range(K):
        t = 1 - k / K
        sigma2 = 0.5**2 * t / max(1 - t, 1 / K)
        log_probs = []
        for bias in (0.0, -0.1):
            x = sample.record["x"][:, k]
            v = policy.velocity(policy.encode(observe(2)), x, torch.full((2,), t)) + bias
            mean = x - v / K - (x + (1 - t) * v) * sigma2 / K / (2 * t)
            std = torch.full((2, 1, 1), (sigma2 / K) ** 0.5)
            log_prob = gaussian_log_prob(sample.record["x_next"][:, k], mean, std, factor, A)
            log_probs.append(log_prob[:, :N_EXECUTED].sum(-1))
        torch.testing.assert_close(found[:, k], log_probs[0] - log_probs[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["ddpm_noise"])
def test_steps_that_do_not_explore_have_the_white_noise_that_is_deployed(policy):
    white, correlated = (
        rollout(policy, PosteriorRatio(level=0.3, noise_length=length), 64)[0].record for length in (0.0, 3.0)
    )
    later = white["step"][:, 0] > 0
    assert later.any() and white["x"][later].equal(correlated["x"][later])
    assert not white["x_next"][later].equal(correlated["x_next"][later])


def test_one_stochastic_step_leaves_the_others_to_the_ode(policy):
    estimator = FlowSDERatio(level=0.5)
    sample, _ = rollout(policy, estimator, 64)
    assert set(sample.record["step"].flatten().tolist()) == set(range(K - 1))
    x, context = sample.record["x_next"][:, 0], policy.encode(observe(64))
    for b in range(64):
        row, x_b = Context(context.features[b : b + 1]), x[b : b + 1]
        for k in range(sample.record["step"][b].item() + 1, K):
            x_b = x_b - policy.velocity(row, x_b, torch.tensor([1 - k / K])) / K
        torch.testing.assert_close(x_b[0], sample.actions[b], atol=1e-5, rtol=1e-5)


def test_flow_matching_rollout_is_the_deployed_ode(policy):
    sample, _ = rollout(policy, FlowMatchingRatio(), 4, seed=9)
    noise = torch.randn(4, H, P, generator=torch.Generator().manual_seed(9))
    assert torch.equal(sample.actions, integrate_ode(policy, policy.encode(observe(4)), noise))


def test_flow_matching_times_follow_the_training_distribution(policy):
    t = rollout(policy, FlowMatchingRatio(n_pairs=64), 500)[0].record["t"]
    expected = 0.001 + 0.999 * torch.distributions.Beta(1.5, 1.0).mean
    assert t.min() >= 0.001
    assert t.max() <= 1
    assert t.mean().item() == pytest.approx(expected.item(), abs=0.01)


def test_flow_matching_log_ratio_is_the_fall_of_the_mean_squared_error(policy):
    estimator = FlowMatchingRatio(n_pairs=3, scale=7.0)
    sample, baseline = rollout(policy, estimator, 2)
    losses = []
    for bias in (0.0, 0.1):
        with torch.no_grad():
            policy.net[-1].bias += bias
        found = log_ratio_of(policy, estimator, sample.record, baseline)
        loss = torch.zeros(2, 3)
        for b in range(2):
            for m in range(3):
                t, eps, a = sample.record["t"][b, m], sample.record["eps"][b, m], sample.actions[b]
                v = policy.velocity(policy.encode(observe(1)), (t * eps + (1 - t) * a)[None], t[None])[0]
                loss[b, m] = 7.0 * (v - (eps - a))[:N_EXECUTED, :A].square().mean()
        losses.append(loss)
    torch.testing.assert_close(found, losses[0] - losses[1], rtol=1e-4, atol=1e-4)


def test_settings_without_a_density_or_a_term_are_rejected():
    with pytest.raises(ValueError, match="level.*got 0.*FlowMatchingRatio"):
        FlowSDERatio(level=0.0)
    with pytest.raises(ValueError, match="level.*got nan"):
        FlowSDERatio(level=math.nan)
    with pytest.raises(ValueError, match="length.*got -1"):
        FlowSDERatio(level=0.1, noise_length=-1)
    with pytest.raises(ValueError, match="stochastic_steps.*got 'two'"):
        FlowSDERatio(level=0.1, stochastic_steps="two")
    with pytest.raises(ValueError, match="n_pairs.*got 0"):
        FlowMatchingRatio(n_pairs=0)
    with pytest.raises(ValueError, match="scale.*got 0"):
        FlowMatchingRatio(scale=0.0)
