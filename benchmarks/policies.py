"""The policies that the benchmarks measure, with random weights, and chunks that they sampled."""

import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from builders import random_observation, write_smolvlm  # noqa: E402, F401
from episodes import sampled_group  # noqa: E402, F401

from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig  # noqa: E402
from lerobot_smoothvla.rollout.engine import Actor  # noqa: E402

IMAGE = PolicyFeature(FeatureType.VISUAL, (3, 256, 256))
FEATURES: dict[str, Any] = {
    "input_features": {
        "observation.images.image": IMAGE,
        "observation.images.image2": IMAGE,
        "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
    },
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))},
    "device": "cpu",
}
"""LIBERO's, with two cameras of 256 px."""
SIZES = ("tiny", "450m")
SMOLVLM_500M: dict[str, Any] = {
    "text": {
        "vocab_size": 49280,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
    },
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    },
    "scale_factor": 4,
}
"""Of SmolVLM2-500M."""


def make_actor(size: str, directory: Path, **settings: Any) -> Actor:
    """A policy in evaluation mode.

    Args:
        size: `tiny`, the preset `smoothvla_tiny` (2 M parameters), or `450m`, SmolVLA with its defaults.
        directory: Where the backbone's config is written.
        settings: Of the policy's config.
    """
    torch.manual_seed(0)
    config: PreTrainedConfig
    if size == "tiny":
        preset = yaml.safe_load((ROOT / "configs" / "policy" / "smoothvla_tiny.yaml").read_text())
        config = SmoothVLAConfig(**{k: v for k, v in preset.items() if k != "type"} | FEATURES | settings)
    else:
        backbone = str(write_smolvlm(directory, **SMOLVLM_500M, weights=False))
        config = SmolVLAConfig(**{"vlm_model_name": backbone, "n_action_steps": 8} | FEATURES | settings)
    policy = get_policy_class(config.type)(config)
    return Actor(policy.eval(), *make_pre_post_processors(config))
