"""The chain of a scheduler of diffusers, for rows at different denoising steps.

A scheduler steps one timestep at a time, the same for all rows; a replay has rows at any of them.
Dims: B batch, H steps a chunk, P action dimensions, K denoising steps.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from lerobot_smoothvla.flow.adapters.base import DiffusionAdapter


@dataclass(frozen=True)
class Chain:
    """Tables over a scheduler's K inference timesteps, each (K,), from noise to action.

    x_k = √ᾱ_k·x̂ + √(1−ᾱ_k)·ε̂, where x̂ is the clean chunk and ᾱ_K = 1.

    Attributes:
        timesteps: int64, the training timesteps that the network is asked at.
        alpha_bar: ᾱ_k.
        alpha_bar_next: ᾱ_{k+1}, of the step that the transition leads to.
        std: Of the deployed transition: the scheduler's own for DDPM, 0 for DDIM (η = 0) and at the end.
        is_ddpm: DDPM, otherwise DDIM.
        predicts_noise: The network predicts ε̂, otherwise x̂.
        clip: x̂ is cut to ± this; infinite where the scheduler does not clip.
    """

    timesteps: Tensor
    alpha_bar: Tensor
    alpha_bar_next: Tensor
    std: Tensor
    is_ddpm: bool
    predicts_noise: bool
    clip: float

    @classmethod
    def of(cls, scheduler: Any, num_steps: int, device: torch.device | None = None) -> Self:
        """The chain that a `DDPMScheduler` or `DDIMScheduler` runs in `num_steps` steps, on `device`."""
        config = scheduler.config
        scheduler = type(scheduler).from_config(config)
        scheduler.set_timesteps(num_steps)
        timesteps = scheduler.timesteps
        alpha_bar = scheduler.alphas_cumprod[timesteps]
        std = torch.zeros(num_steps)
        is_ddpm = isinstance(scheduler, DDPMScheduler)
        if is_ddpm:
            std[:-1] = torch.tensor([scheduler._get_variance(t) for t in timesteps[:-1]]) ** 0.5
        return cls(
            timesteps.to(device),
            alpha_bar.to(device),
            torch.cat([alpha_bar[1:], torch.ones(1)]).to(device),
            std.to(device),
            is_ddpm,
            config.prediction_type == "epsilon",
            config.clip_sample_range if config.clip_sample else torch.inf,
        )

    def posterior(
        self, prediction: Tensor, x: Tensor, step: Tensor, min_std: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean and std of p(x_next | x), with ᾱ = ᾱ_k and ᾱ' = ᾱ_{k+1}.

        - DDPM (arXiv 2006.11239, eq. 7): mean = √ᾱ'·β/(1−ᾱ)·x̂ + √α·(1−ᾱ')/(1−ᾱ)·x, α = ᾱ/ᾱ', β = 1 − α.
        - DDIM (arXiv 2010.02502, eq. 12): mean = √ᾱ'·x̂ + √(1−ᾱ'−std²)·ε̂: what is added as noise is taken
          from the direction of ε̂, so the marginal keeps its variance 1−ᾱ' as long as that exceeds std².

        std = max(the deployed one, min_std), as in DPPO (arXiv 2409.00588). In the last steps, where 1−ᾱ' <
        min_std², it adds variance, and with it there is a density in every step.

        Args:
            prediction: (B, H, P) what the network says of x.
            x: (B, H, P).
            step: (B,) k.
            min_std: Least std; 0 is the deployed transition.

        Returns:
            mean (B, H, P) and std (B, 1, 1), float32.
        """
        prediction, x = prediction.float(), x.float()
        a, a_next, std = (
            table[step][:, None, None] for table in (self.alpha_bar, self.alpha_bar_next, self.std)
        )
        std = std.clamp(min=min_std)
        if self.predicts_noise:
            eps, clean = prediction, (x - (1 - a).sqrt() * prediction) / a.sqrt()
        else:
            eps, clean = (x - a.sqrt() * prediction) / (1 - a).sqrt(), prediction
        clean = clean.clamp(-self.clip, self.clip)
        if self.is_ddpm:
            alpha = a / a_next
            of_clean = a_next.sqrt() * (1 - alpha) / (1 - a)
            of_x = alpha.sqrt() * (1 - a_next) / (1 - a)
            return of_clean * clean + of_x * x, std
        return a_next.sqrt() * clean + (1 - a_next - std.square()).clamp(min=0).sqrt() * eps, std


class ScheduledAdapter(DiffusionAdapter):
    """A policy that samples with DDPM or DDIM of diffusers."""

    num_steps_field = "num_inference_steps"

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Reject more steps than the scheduler has too; see `PolicyAdapter.check_config`."""
        super().check_config(config)
        steps, most = config.num_inference_steps, config.num_train_timesteps
        if steps is not None and not 1 <= steps <= most:
            raise ValueError(
                f"`num_inference_steps` should be between 1 and the {most} timesteps of training, got "
                f"{steps}; leave it out to use all of them."
            )

    @classmethod
    def noise_last_step(cls, config: Any) -> bool:
        """Yes where the network predicts the clean chunk: in the last step that is the action itself.

        Left out of the ratio, nothing would hold it while the other steps' updates move the same weights.
        What is predicted as noise has next to no weight in the last step.
        """
        return config.prediction_type == "sample"

    @property
    def num_steps(self) -> int:
        """K: all timesteps of training where the config does not say."""
        steps = self.config.num_inference_steps
        return self.config.num_train_timesteps if steps is None else steps

    @property
    @abstractmethod
    def scheduler(self) -> Any:
        """The policy's own."""

    @cached_property
    def chain(self) -> Chain:
        """Of the policy's scheduler, on the policy's device."""
        return Chain.of(self.scheduler, self.num_steps, next(self.policy.parameters()).device)

    def posterior(
        self, prediction: Tensor, x: Tensor, step: Tensor, min_std: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See `Chain.posterior`."""
        return self.chain.posterior(prediction, x, step, min_std)
