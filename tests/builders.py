"""Small policies with random weights that several test modules build; needs LeRobot, not this package."""

from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import PreTrainedPolicy, get_policy_class, make_pre_post_processors

IMAGE = PolicyFeature(FeatureType.VISUAL, (3, 64, 64))
LIBERO_INPUTS = {
    "observation.images.image": IMAGE,
    "observation.images.image2": IMAGE,
    "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
}
LIBERO_OUTPUTS = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
LIBERO_FEATURES: dict[str, Any] = {"input_features": LIBERO_INPUTS, "output_features": LIBERO_OUTPUTS}
LIBERO_STATS = {
    "observation.state": {"mean": torch.zeros(8), "std": torch.ones(8)},
    "action": {"mean": torch.zeros(7), "std": torch.ones(7)},
}
"""Those that change nothing."""
TINY_SMOOTHVLA: dict[str, Any] = {
    "vlm_model_name": "smoothvla_tiny",
    "load_vlm_weights": False,
    "chunk_size": 8,
    "n_action_steps": 8,
    "num_steps": 2,
    "max_action_dim": 7,
    "max_state_dim": 8,
    "resize_imgs_with_padding": (64, 64),
    "freeze_vision_encoder": False,
    "train_expert_only": False,
    "num_vlm_layers": 2,
    "device": "cpu",
    **LIBERO_FEATURES,
}
"""Settings of a `SmoothVLAConfig` that fits LIBERO."""


def save_checkpoint(
    path: Path,
    policy: PreTrainedPolicy | PreTrainedConfig,
    stats: dict[str, Any] | None = None,
    seed: int = 0,
) -> PreTrainedPolicy:
    """Write a checkpoint as LeRobot does: weights, config, processors.

    Args:
        path: Its directory.
        policy: Or a config, for random weights.
        stats: That the processors normalise with; `LIBERO_STATS` if None.
        seed: Of the random weights.
    """
    if isinstance(policy, PreTrainedConfig):
        torch.manual_seed(seed)
        policy = get_policy_class(policy.type)(policy).eval()
    processors = make_pre_post_processors(
        policy.config, dataset_stats=LIBERO_STATS if stats is None else stats
    )
    for part in (policy, *processors):
        part.save_pretrained(path)
    return policy
