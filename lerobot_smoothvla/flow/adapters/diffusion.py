"""Diffusion Policy: a UNet over the chunk that denoises by DDPM or DDIM.

Dims: B batch, H steps a chunk, P action dimensions, K denoising steps.
"""

from typing import Any

from torch import Tensor

from lerobot_smoothvla.flow.adapters.history import Conditioning, HistoryAdapter
from lerobot_smoothvla.flow.adapters.scheduler import ScheduledAdapter


class DiffusionPolicyAdapter(HistoryAdapter, ScheduledAdapter):
    """Cameras and states to one vector once; the UNet at every denoising step."""

    uses = {
        "diffusion._prepare_global_conditioning": ("batch",),
        "diffusion.unet.forward": ("x", "timestep", "global_cond"),
        "diffusion.noise_scheduler.set_timesteps": ("num_inference_steps",),
    }
    parts = {"vision": ("diffusion.rgb_encoder.",)}

    @property
    def scheduler(self) -> Any:
        """The policy's own."""
        return self.policy.diffusion.noise_scheduler

    def condition(self, batch: dict[str, Tensor]) -> Tensor:
        """See `HistoryAdapter.condition`."""
        return self.policy.diffusion._prepare_global_conditioning(batch)

    def predict(self, context: Conditioning, x: Tensor, step: Tensor) -> Tensor:
        """The UNet's answer at x (B, H, P), at step k of (B,); see `DiffusionPolicy.predict`."""
        return self.policy.diffusion.unet(x, self.chain.timesteps[step], global_cond=context.vector)
