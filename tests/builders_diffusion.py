"""Small diffusion policies with random weights; needs LeRobot, not this package."""

from pathlib import Path
from typing import Any

import torch
from builders import LIBERO_FEATURES, byte_tokenizer, save_checkpoint
from lerobot.policies import PreTrainedPolicy

UNIT_RANGE = {"min": -torch.ones(1), "max": torch.ones(1)}
GREY = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
LIBERO_STATS = {
    "observation.state": {key: value.expand(8) for key, value in UNIT_RANGE.items()},
    "action": {key: value.expand(7) for key, value in UNIT_RANGE.items()},
    "observation.images.image": GREY,
    "observation.images.image2": GREY,
}
"""State and action as they are: these policies normalise by the range."""
TINY_CHAIN: dict[str, Any] = {
    "horizon": 8,
    "n_action_steps": 4,
    "num_train_timesteps": 20,
    "num_inference_steps": 5,
    "device": "cpu",
    **LIBERO_FEATURES,
}


def tiny_diffusion(directory: Path, **settings: Any) -> PreTrainedPolicy:
    """ResNet-18, the smallest that the policy takes (11 M parameters), and a UNet of 0.1 M."""
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    settings = {**TINY_CHAIN, "use_separate_rgb_encoder_per_camera": False, **settings}
    config = DiffusionConfig(
        crop_shape=(60, 60),
        pretrained_backbone_weights=None,
        use_group_norm=True,
        spatial_softmax_num_keypoints=8,
        down_dims=(16, 32),
        n_groups=4,
        diffusion_step_embed_dim=16,
        **settings,
    )
    return save_checkpoint(directory, config, LIBERO_STATS)


def write_tiny_clip(directory: Path) -> Path:
    """Write a random CLIP (0.1 M parameters) and a byte tokenizer into `directory`.

    The policy loads CLIP by name, and only where the name contains "clip": a directory stands in for the
    Hub's, which the tests do not ask.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = byte_tokenizer()
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 32,
    }
    text = {
        **size,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32,
        "bos_token_id": 0,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**size, "image_size": 48, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(
        directory
    )
    CLIPImageProcessor(size=48, crop_size=48).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_multi_task_dit(directory: Path, **settings: Any) -> PreTrainedPolicy:
    """On a random CLIP beside it, with random instead of zero gates: else its chunk sees no observation."""
    from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
    from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy

    torch.manual_seed(0)
    clip = str(write_tiny_clip(directory / "clip"))
    config = MultiTaskDiTConfig(
        vision_encoder_name=clip,
        text_encoder_name=clip,
        image_crop_shape=(48, 48),
        tokenizer_max_length=24,
        hidden_dim=32,
        num_layers=2,
        num_heads=2,
        timestep_embed_dim=16,
        **{**TINY_CHAIN, **settings},
    )
    policy = MultiTaskDiTPolicy(config).eval()
    for block in policy.noise_predictor.transformer_blocks:
        torch.nn.init.normal_(block.adaLN_modulation[-1].weight, std=0.1)
    return save_checkpoint(directory, policy, LIBERO_STATS)


def tiny_diffusion_ddim(directory: Path) -> PreTrainedPolicy:
    """The UNet with DDIM and a network that predicts the clean chunk."""
    return tiny_diffusion(directory, noise_scheduler_type="DDIM", prediction_type="sample")


def tiny_multi_task_dit_flow(directory: Path) -> PreTrainedPolicy:
    """The transformer as a flow."""
    return tiny_multi_task_dit(directory, objective="flow_matching", num_integration_steps=3)
