"""SmolVLA, and `smoothvla`, which is the same network.

Dims: B batch, H steps a chunk, P padded action dimensions, L prefix tokens.
"""

from typing import Any

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor

from lerobot_smoothvla.flow.adapters.base import FlowAdapter
from lerobot_smoothvla.flow.adapters.prefix import PrefixContext

_VLM = "model.vlm_with_expert.vlm."


class SmolVLAAdapter(FlowAdapter):
    """The VLM over images, instruction and state once; the action expert at every (x_t, t)."""

    uses = {
        "prepare_images": ("batch",),
        "prepare_state": ("batch",),
        "model.embed_prefix": ("images", "img_masks", "lang_tokens", "lang_masks", "state"),
        "model.vlm_with_expert.forward": ("attention_mask", "position_ids", "inputs_embeds", "use_cache"),
        "model.denoise_step": ("prefix_pad_masks", "past_key_values", "x_t", "timestep"),
    }
    parts = {
        "vision": (f"{_VLM}model.vision_model.", f"{_VLM}model.connector."),
        "vlm": (_VLM,),
        # It enters the VLM: as long as it is trained, the update differentiates the VLM.
        "state": ("model.state_proj.",),
    }

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Reject the conversion of Aloha's joints too; see `PolicyAdapter.check_config`."""
        super().check_config(config)
        if config.adapt_to_pi_aloha:
            raise ValueError(
                "`adapt_to_pi_aloha` converts actions outside of the flow, which GRPO does not replay; "
                "fine-tune a checkpoint without it (--policy.adapt_to_pi_aloha=false)."
            )

    def encode(self, batch: dict[str, Tensor]) -> PrefixContext:
        """Run the VLM over images, instruction and state once. Differentiable.

        Args:
            batch: Preprocessed observations, B rows.
        """
        model = self.policy.model
        images, image_masks = self.policy.prepare_images(batch)
        embeddings, pad_masks, attention_masks = model.embed_prefix(
            images,
            image_masks,
            batch[OBS_LANGUAGE_TOKENS],
            batch[OBS_LANGUAGE_ATTENTION_MASK],
            state=self.policy.prepare_state(batch),
        )
        _, cache = model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pad_masks, attention_masks),
            position_ids=torch.cumsum(pad_masks, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embeddings, None],
            use_cache=True,
        )
        return PrefixContext.from_cache(pad_masks, cache)

    def velocity(self, context: PrefixContext, x_t: Tensor, t: Tensor) -> Tensor:
        """v(x_t, t) of the action expert, (B, H, P) float32. Differentiable; the context stays as it was."""
        return self.policy.model.denoise_step(
            prefix_pad_masks=context.pad_masks, past_key_values=context.cache(), x_t=x_t, timestep=t
        )
