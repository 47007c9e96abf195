"""pi0 and pi05: PaliGemma over images and prompt, a Gemma action expert that attends to its keys and values.

Dims: B batch, H steps a chunk, P padded action dimensions, S padded state dimensions, L prefix tokens.
"""

from typing import Any

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor

from lerobot_smoothvla.flow.adapters.base import FlowAdapter
from lerobot_smoothvla.flow.adapters.prefix import PrefixContext

_VLM = "model.paligemma_with_expert.paligemma."


class Pi05Adapter(FlowAdapter):
    """PaliGemma over images and a prompt with the state once; the action expert at every (x_t, t)."""

    uses = {
        "_preprocess_images": ("batch",),
        "model.embed_prefix": ("images", "img_masks", "tokens", "masks"),
        "model.paligemma_with_expert.forward": (
            "attention_mask",
            "position_ids",
            "past_key_values",
            "inputs_embeds",
            "use_cache",
        ),
        "model.paligemma_with_expert.paligemma.model.language_model.forward": (),
        "model.denoise_step": ("prefix_pad_masks", "past_key_values", "x_t", "timestep"),
    }
    num_steps_field = "num_inference_steps"
    frozen_in_bf16 = False
    parts = {"vlm": (_VLM,), "vision": (f"{_VLM}model.vision_tower.", f"{_VLM}model.multi_modal_projector.")}

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Reject LeRobot's checkpointing and compilation too; see `PolicyAdapter.check_config`."""
        super().check_config(config)
        if config.gradient_checkpointing:
            raise ValueError(
                f"`gradient_checkpointing=true` of {config.type} does nothing in evaluation mode, in which "
                "GRPO updates, and in training mode drops the prefix's keys and values, which the action "
                "expert needs; pass --policy.gradient_checkpointing=false, and to save the same memory "
                "--algorithm.gradient_checkpointing=true, which keeps them."
            )
        if config.compile_model:
            raise ValueError(
                f"`compile_model=true` compiles methods of {config.type} that are not called here (its own "
                "sampling and loss); pass --policy.compile_model=false."
            )

    def encode(self, batch: dict[str, Tensor]) -> PrefixContext:
        """Run PaliGemma over images and prompt once. Differentiable.

        Args:
            batch: Preprocessed observations, B rows.
        """
        model = self.policy.model
        images, image_masks = self.policy._preprocess_images(batch)
        embeddings, pad_masks, attention_masks = model.embed_prefix(
            images, image_masks, batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        )
        # As LeRobot does before each pass: of the implementations only this one takes the masks as they are.
        model.paligemma_with_expert.paligemma.model.language_model.config._attn_implementation = "eager"
        _, cache = model.paligemma_with_expert.forward(
            attention_mask=prepare_attention_masks_4d(make_att_2d_masks(pad_masks, attention_masks)),
            position_ids=torch.cumsum(pad_masks, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embeddings, None],
            use_cache=True,
        )
        return PrefixContext.from_cache(pad_masks, cache, self._state(batch))

    def velocity(self, context: PrefixContext, x_t: Tensor, t: Tensor) -> Tensor:
        """v(x_t, t) of the action expert, (B, H, P) float32. Differentiable; the context stays as it was."""
        state = {} if context.state is None else {"state": context.state}
        return self.policy.model.denoise_step(
            **state,
            prefix_pad_masks=context.pad_masks,
            # Read once, into a cache of the step's own: the third entry is a layer's sliding window.
            past_key_values=[(keys, values, None) for keys, values in context.keys_values],
            x_t=x_t,
            timestep=t,
        )

    def _state(self, batch: dict[str, Tensor]) -> Tensor | None:
        """What the action expert reads beside the prefix, (B, S), if anything."""
        return None


class Pi0Adapter(Pi05Adapter):
    """As pi05, but it is the action expert that reads the state."""

    uses = {
        **Pi05Adapter.uses,
        "prepare_state": ("batch",),
        "model.embed_prefix": ("images", "img_masks", "lang_tokens", "lang_masks"),
        "model.denoise_step": ("state", "prefix_pad_masks", "past_key_values", "x_t", "timestep"),
    }

    def _state(self, batch: dict[str, Tensor]) -> Tensor:
        return self.policy.prepare_state(batch)
