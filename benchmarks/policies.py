"""The policies that the benchmarks measure, with random weights, and chunks that they sampled."""

import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from builders import LIBERO_STATS, random_observation, save_checkpoint, write_smolvlm  # noqa: E402, F401
from builders_pi import byte_prompts  # noqa: E402
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
}
"""LIBERO's, with two cameras of 256 px."""
SIZES = ("tiny", "450m", "pi0", "pi05")
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


def make_actor(size: str, directory: Path, device: str = "cpu", lora_rank: int = 0, **settings: Any) -> Actor:
    """A policy in evaluation mode.

    Args:
        size: `tiny`, the preset `smoothvla_tiny` (2 M parameters); `450m`, SmolVLA with its defaults; or
            `pi0` and `pi05` as LeRobot has them, in bfloat16.
        directory: Where the backbone's config, or the tokenizer, is written.
        device: Where it is built, and acts.
        lora_rank: Of an adapter around it; 0 for none.
        settings: Of the policy's config.
    """
    torch.manual_seed(0)
    settings = FEATURES | {"device": device} | settings
    config: PreTrainedConfig
    if size == "tiny":
        preset = yaml.safe_load((ROOT / "configs" / "policy" / "smoothvla_tiny.yaml").read_text())
        config = SmoothVLAConfig(**{k: v for k, v in preset.items() if k != "type"} | settings)
    elif size == "450m":
        backbone = str(write_smolvlm(directory, **SMOLVLM_500M, weights=False))
        config = SmolVLAConfig(**{"vlm_model_name": backbone, "n_action_steps": 8} | settings)
    else:
        config = make_policy_config(size, **{"dtype": "bfloat16", "n_action_steps": 8} | settings)
    with torch.device(device):
        policy: Any = get_policy_class(config.type)(config)
    if lora_rank:
        config.pretrained_path = directory  # LeRobot puts an adapter around no other policy.
        policy = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": lora_rank})
        config.pretrained_path = None
    policy = policy.to(device).eval()
    if size in ("tiny", "450m"):
        return Actor(policy, *make_pre_post_processors(config))
    with byte_prompts(size, directory):
        return Actor(policy, *make_pre_post_processors(config, dataset_stats=LIBERO_STATS))


def seconds(run: Callable[[], Any], device: str = "cpu") -> float:
    """Of a call: CPU time of one thread, which other work hardly changes; on a GPU, until it is idle."""
    if not device.startswith("cuda"):
        begin = time.process_time()
        run()
        return time.process_time() - begin
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def peak(device: str = "cpu") -> float:
    """Most memory that the process has had, or tensors on a GPU since its peak was reset, GiB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def reset_peak(device: str) -> None:
    """Let `peak` of a GPU begin anew; that of a process cannot."""
    if device.startswith("cuda"):
        gc.collect()  # An adapter's networks refer to it.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
