"""The SmoothVLA policy: SmolVLA behind the seam that samplers and replays use.

Dims: B batch, H steps a chunk, P padded action dimensions, A real ones, L prefix tokens.
"""

from typing import Any

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor, nn

# The tokenizer step of the embedded backbone must be registered before a checkpoint's processors are loaded.
from lerobot_smoothvla import processor_smoothvla  # noqa: F401
from lerobot_smoothvla.backbones.conv_stem import ConvStem
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.flow.adapters.prefix import PrefixContext
from lerobot_smoothvla.flow.adapters.smolvla import SmolVLAAdapter


class SmoothVLAPolicy(SmolVLAPolicy):
    """SmolVLA with `encode` and `velocity`: a `FlowPolicy` (flow/policy.py).

    Weights of any SmolVLA load into it, since its modules and their names are SmolVLA's.
    """

    config_class = SmoothVLAConfig
    name = "smoothvla"

    def __init__(self, config: SmoothVLAConfig, **kwargs: Any) -> None:
        """Build the policy; the embedded backbone gets its convolutional stem here."""
        super().__init__(config.with_backbone_path(), **kwargs)
        self.config = self.model.config = config
        if config.embedded:
            vlm = self.model.vlm_with_expert
            vlm.get_vlm_model().vision_model = ConvStem(4, vlm.config.text_config.hidden_size)
            vlm.get_vlm_model().connector = nn.Identity()
            vlm.set_requires_grad()

    def prepare_images(self, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """SmolVLA's image preparation; the embedded backbone gets a fourth channel that tells cameras apart.

        Returns:
            Per camera, images (B, 3 or 4, h, w) in [-1, 1] and masks (B,).
        """
        images, masks = super().prepare_images(batch)
        if self.config.embedded:
            images = [
                torch.cat([image, torch.full_like(image[:, :1], index)], dim=1)
                for index, image in enumerate(images)
            ]
        return images, masks

    def forward(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, dict[str, Any]]:
        """SmolVLA's flow-matching loss, with `flow_samples` pairs (t, ε) per observation.

        Args:
            batch: Preprocessed observations, actions (B, H, A) and, where cut off, `action_is_pad`.
            noise: (B·flow_samples, H, P) ε, drawn if None.
            time: (B·flow_samples,) t, drawn if None.
            reduction: "mean", or "none" for one loss per observation.
        """
        n = self.config.flow_samples
        if n == 1:
            return super().forward(batch, noise, time, reduction)
        actions = self.prepare_action(batch).repeat_interleave(n, dim=0)
        noise = self.model.sample_noise(actions.shape, actions.device) if noise is None else noise
        t = self.model.sample_time(len(actions), actions.device) if time is None else time
        x_t = t[:, None, None] * noise + (1 - t[:, None, None]) * actions
        v = self.velocity(self.encode(batch).repeat_interleave(n), x_t, t)
        errors = (v - (noise - actions))[..., : self.config.action_feature.shape[0]].square().mean(-1)
        errors = errors.unflatten(0, (-1, n)).mean(1)
        padded = batch.get("action_is_pad")
        valid = torch.ones_like(errors) if padded is None else (~padded).float()
        per_sample = (errors * valid).sum(1) / valid.sum(1).clamp(min=1)
        loss = per_sample if reduction == "none" else (errors * valid).sum() / valid.sum().clamp(min=1)
        return loss, {"loss": loss.mean().item()}

    def encode(self, batch: dict[str, Tensor]) -> PrefixContext:
        """Run the VLM over images, instruction and state once; see `SmolVLAAdapter.encode`."""
        return SmolVLAAdapter(self).encode(batch)

    def velocity(self, context: PrefixContext, x_t: Tensor, t: Tensor) -> Tensor:
        """v(x_t, t) of the action expert; see `SmolVLAAdapter.velocity`."""
        return SmolVLAAdapter(self).velocity(context, x_t, t)
