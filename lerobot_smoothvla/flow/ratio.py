"""How much likelier a chunk is under the updated policy than under the one that sampled it.

`sample` acts and records, `baseline` takes the old policy's values before the first update, `log_ratio`
compares. An estimator with R terms a chunk gives R log-ratios, and PPO's clip acts on each.

Dims: B batch, H steps a chunk, P padded action dimensions, A ≤ P real ones, R terms a chunk, K steps of noise
to action.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lerobot_smoothvla.flow.noise import Randomness, integers, noise_factor, normal, uniform
from lerobot_smoothvla.flow.policy import ChunkPolicy, Context, DiffusionPolicy, FlowPolicy
from lerobot_smoothvla.flow.sampling import (
    ChunkSample,
    DeployedSampler,
    flow_sde_step,
    gaussian_log_prob,
    initial_noise,
    ode_step,
    time_grid,
)


class RatioEstimator(ABC):
    """Samples chunks and estimates the probability ratio of the executed part of each."""

    @property
    def least_steps(self) -> int:
        """What K has to be at least."""
        return 1

    @abstractmethod
    def sample(
        self, policy: Any, context: Context, generator: Randomness, batch_size: int = 1
    ) -> ChunkSample:
        """Chunks to execute, without gradient.

        Args:
            policy: The policy that acts.
            context: Of B rows.
            generator: Source of all randomness, on the policy's device.
            batch_size: B.
        """

    @abstractmethod
    def baseline(self, policy: Any, context: Context, record: dict[str, Tensor]) -> Tensor:
        """The old policy's value of every term at every step, (B, R, H), without gradient."""

    @abstractmethod
    def log_ratio(
        self,
        policy: Any,
        context: Context,
        record: dict[str, Tensor],
        baseline: Tensor,
        executed: Tensor,
    ) -> Tensor:
        """Log-ratio of each term, differentiable; 0 as long as the policy is the one of the baseline.

        Args:
            policy: The policy being updated.
            context: Of B rows, encoded by it.
            record: From `sample`.
            baseline: (B, R, H) from `baseline`.
            executed: (B, H) bool, the steps that were run, contiguous from the policy's `first_step` on.

        Returns:
            (B, R).
        """


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std²·L·Lᵀ) along the chunk, L from `noise_factor`; mean (B, H, P), std (B, 1, 1)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class StepwiseRatio(RatioEstimator):
    """Exact log-probabilities of Gaussian denoising steps.

    A term is a stochastic step x → x_next; its log-ratio is Σ over the executed steps and the A real
    dimensions of log p_new(x_next | x) − log p_old(x_next | x). What the unexecuted rest of the chunk adds is
    left out: it has no part in the reward but noise.

    Record: `x`, `x_next` (B, R, H, P), `step` (B, R) int64 denoising step indices, `log_prob` (B, R, H).

    Attributes:
        level: Noise level; the subclass says of what.
        stochastic_steps: `one` random step a chunk (R = 1), the rest as deployed, or `all` of them.
        noise_length: Correlation length of the noise along the chunk, control steps; 0 is white.
        skip_last: Leave the last step as deployed, as its noise goes straight into the actions.

    Raises:
        ValueError: If `level` is not positive, `stochastic_steps` is unknown, or `noise_length` is negative.
    """

    level: float
    stochastic_steps: Literal["one", "all"] = "one"
    noise_length: float = 0.0
    skip_last: bool = True

    def __post_init__(self) -> None:
        """Reject what has no density."""
        if not 0 < self.level < math.inf:
            raise ValueError(
                f"`level` should be positive, got {self.level}; "
                "for noise-free rollouts use `FlowMatchingRatio`."
            )
        if self.stochastic_steps not in ("one", "all"):
            raise ValueError(f"`stochastic_steps` should be 'one' or 'all', got {self.stochastic_steps!r}.")
        noise_factor(1, self.noise_length)

    @property
    def least_steps(self) -> int:
        """One that explores, beside the last where that may not."""
        return 1 + self.skip_last

    @abstractmethod
    def predict(self, policy: Any, context: Context, x: Tensor, step: Tensor) -> Tensor:
        """What the network says of x (B, H, P) at step k of (B,). Differentiable."""

    @abstractmethod
    def exploring(self, policy: Any, prediction: Tensor, x: Tensor, step: Tensor) -> Gaussian:
        """Where the step leads from x with exploration, by what the network said. Differentiable."""

    @abstractmethod
    def deployed(self, policy: Any, prediction: Tensor, x: Tensor, step: Tensor) -> Gaussian:
        """Where it leads without."""

    @torch.no_grad()
    def sample(
        self, policy: ChunkPolicy, context: Context, generator: Randomness, batch_size: int = 1
    ) -> ChunkSample:
        """Denoise, exploring in the chosen steps; see `RatioEstimator.sample`."""
        device = generator.device
        steps = self._draw_steps(policy.num_steps, batch_size, generator)
        factor = noise_factor(policy.chunk_size, self.noise_length, device=device)
        x = initial_noise(policy, generator, batch_size)
        points, gaussians = [x], []
        for k in range(policy.num_steps):
            step = torch.full((batch_size,), k).to(device)
            prediction = self.predict(policy, context, x, step)
            exploring = self.exploring(policy, prediction, x, step)
            deployed = self.deployed(policy, prediction, x, step)
            white = normal(x.shape, generator)
            explored = exploring.mean + exploring.std * (factor @ white)
            stochastic = (steps == k).any(1)[:, None, None]
            x = torch.where(stochastic, explored, deployed.mean + deployed.std * white)
            points.append(x)
            gaussians.append(exploring)
        rows, path = torch.arange(batch_size, device=device)[:, None], torch.stack(points, dim=1)
        x_next = path[rows, steps + 1]
        mean, std = (
            torch.stack([getattr(gaussian, name) for gaussian in gaussians], dim=1)[rows, steps].flatten(0, 1)
            for name in ("mean", "std")
        )
        log_prob = gaussian_log_prob(x_next.flatten(0, 1), mean, std, factor, policy.action_dim)
        record = {
            "x": path[rows, steps],
            "x_next": x_next,
            "step": steps,
            "log_prob": log_prob.unflatten(0, steps.shape),
        }
        return ChunkSample(x, record)

    def baseline(self, policy: ChunkPolicy, context: Context, record: dict[str, Tensor]) -> Tensor:
        """The log-probabilities that the rollout recorded, (B, R, H)."""
        return record["log_prob"]

    def log_ratio(
        self,
        policy: ChunkPolicy,
        context: Context,
        record: dict[str, Tensor],
        baseline: Tensor,
        executed: Tensor,
    ) -> Tensor:
        """Σ over executed steps of log p_new − log p_old; see `RatioEstimator.log_ratio`."""
        shape = record["step"].shape
        x, x_next, step = (record[name].flatten(0, 1) for name in ("x", "x_next", "step"))
        prediction = self.predict(policy, context.repeat_interleave(shape[1]), x, step)
        exploring = self.exploring(policy, prediction, x, step)
        factor = noise_factor(policy.chunk_size, self.noise_length, device=x.device)
        log_prob = gaussian_log_prob(x_next, exploring.mean, exploring.std, factor, policy.action_dim)
        return ((log_prob.unflatten(0, shape) - baseline) * executed[:, None]).sum(-1)

    def _draw_steps(self, num_steps: int, batch_size: int, generator: Randomness) -> Tensor:
        """Indices of the stochastic denoising steps, (B, R)."""
        n_candidates = num_steps - self.skip_last
        if self.stochastic_steps == "all":
            return torch.arange(n_candidates, device=generator.device).repeat(batch_size, 1)
        return integers(n_candidates, (batch_size, 1), generator)


@dataclass(frozen=True)
class FlowSDERatio(StepwiseRatio):
    """Flow-SDE steps of a flow policy (π_RL, arXiv 2510.25889); `level` is that of `flow_sde_step`."""

    def predict(self, policy: FlowPolicy, context: Context, x: Tensor, step: Tensor) -> Tensor:
        """The velocity."""
        return policy.velocity(context, x, time_grid(policy.num_steps, x.device)[step])

    def exploring(self, policy: FlowPolicy, prediction: Tensor, x: Tensor, step: Tensor) -> Gaussian:
        """The SDE's step."""
        t = time_grid(policy.num_steps, x.device)[step]
        return Gaussian(*flow_sde_step(x, prediction, t, 1.0 / policy.num_steps, self.level))

    def deployed(self, policy: FlowPolicy, prediction: Tensor, x: Tensor, step: Tensor) -> Gaussian:
        """The ODE's step."""
        return Gaussian(ode_step(x, prediction, 1.0 / policy.num_steps), x.new_zeros(len(x), 1, 1))


@dataclass(frozen=True)
class PosteriorRatio(StepwiseRatio):
    """Posterior steps of a diffusion policy (DPPO, arXiv 2409.00588); `level` is the least std that explores.

    In the policy's normalised action space, where actions lie in about [−1, 1].
    """

    def predict(self, policy: DiffusionPolicy, context: Context, x: Tensor, step: Tensor) -> Tensor:
        """The noise or the clean chunk, by the policy."""
        return policy.predict(context, x, step)

    def exploring(self, policy: DiffusionPolicy, prediction: Tensor, x: Tensor, step: Tensor) -> Gaussian:
        """The scheduler's posterior, widened."""
        return Gaussian(*policy.posterior(prediction, x, step, self.level))

    def deployed(self, policy: DiffusionPolicy, prediction: Tensor, x: Tensor, step: Tensor) -> Gaussian:
        """The scheduler's posterior."""
        return Gaussian(*policy.posterior(prediction, x, step))


@dataclass(frozen=True)
class FlowMatchingRatio(RatioEstimator):
    """The flow-matching loss in place of the log-likelihood; rollouts are the plain ODE that is deployed.

    A term is a pair (t, ε), drawn once with the chunk a: ℓ = scale · mean of (v(x_t, t) − (ε − a))² over the
    executed steps and the A real dimensions, x_t = t·ε + (1−t)·a; log-ratio = ℓ_old − ℓ_new, per pair.
    FPO (arXiv 2507.21053) and FPO++, which takes the ratio per pair and not of the mean.

    Record: `chunk` (B, H, P), `t` (B, R), `eps` (B, R, H, P).

    Attributes:
        n_pairs: R.
        scale: Sets the trust region, not the step (Adam does not see it): a clip of c lets the mean squared
            velocity error move by c / scale. The default with c = 0.05 allows 0.01, a tenth of the error of
            the demo's warm start; n·A would make it the sum over n executed steps, as in FPO++.

    Raises:
        ValueError: If `n_pairs` is less than one or `scale` is not positive.
    """

    n_pairs: int = 8
    scale: float = 5.0

    def __post_init__(self) -> None:
        """Reject estimators without a term."""
        if self.n_pairs < 1:
            raise ValueError(f"`n_pairs` should be at least 1, got {self.n_pairs}.")
        if self.scale <= 0:
            raise ValueError(f"`scale` should be positive, got {self.scale}; 1 gives the mean squared error.")

    @torch.no_grad()
    def sample(
        self, policy: FlowPolicy, context: Context, generator: Randomness, batch_size: int = 1
    ) -> ChunkSample:
        """Integrate the ODE and draw the pairs; see `RatioEstimator.sample`.

        t ~ 0.001 + 0.999·Beta(1.5, 1), as in SmolVLA's training; Beta(1.5, 1) is u^(2/3) with u uniform.
        """
        chunk = DeployedSampler().sample(policy, context, generator, batch_size).actions
        u = uniform((batch_size, self.n_pairs), generator)
        eps = normal((batch_size, self.n_pairs, *chunk.shape[1:]), generator)
        return ChunkSample(chunk, {"chunk": chunk, "t": 0.001 + 0.999 * u ** (2 / 3), "eps": eps})

    @torch.no_grad()
    def baseline(self, policy: FlowPolicy, context: Context, record: dict[str, Tensor]) -> Tensor:
        """Losses of the present weights, (B, R, H)."""
        return self._losses(policy, context, record)

    def log_ratio(
        self,
        policy: FlowPolicy,
        context: Context,
        record: dict[str, Tensor],
        baseline: Tensor,
        executed: Tensor,
    ) -> Tensor:
        """ℓ_old − ℓ_new over the executed steps; see `RatioEstimator.log_ratio`."""
        gain = (baseline - self._losses(policy, context, record)) * executed[:, None]
        return gain.sum(-1) / executed.sum(-1, keepdim=True).clamp(min=1)

    def _losses(self, policy: FlowPolicy, context: Context, record: dict[str, Tensor]) -> Tensor:
        """Scaled squared velocity error of each pair at each step of the chunk, (B, R, H)."""
        chunk, t, eps = record["chunk"][:, None], record["t"], record["eps"]
        x_t = t[..., None, None] * eps + (1 - t[..., None, None]) * chunk
        v = policy.velocity(context.repeat_interleave(t.shape[1]), x_t.flatten(0, 1), t.flatten())
        error = v.float().unflatten(0, t.shape) - (eps - chunk)
        return self.scale * error[..., : policy.action_dim].square().mean(-1)
