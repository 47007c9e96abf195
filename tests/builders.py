"""Small policies with random weights that several test modules build; needs LeRobot, not this package."""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.configs.default import PeftConfig
from lerobot.policies import PreTrainedPolicy, get_policy_class, make_pre_post_processors

IMAGE = PolicyFeature(FeatureType.VISUAL, (3, 64, 64))
LIBERO_INPUTS = {
    "observation.images.image": IMAGE,
    "observation.images.image2": IMAGE,
    "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
}
LIBERO_OUTPUTS = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
LIBERO_FEATURES: dict[str, Any] = {"input_features": LIBERO_INPUTS, "output_features": LIBERO_OUTPUTS}
TASK = "pick up the milk"
LIBERO_STATS = {
    key: {"mean": torch.zeros(n), "std": torch.ones(n), "q01": -torch.ones(n), "q99": torch.ones(n)}
    for key, n in (("observation.state", 8), ("action", 7))
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
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
TINY_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}


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


def byte_tokenizer() -> Any:
    """A tokenizer of single bytes, with SmolVLM's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {
        "pad_token": "<pad>",
        "eos_token": "<end>",
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special.values(), *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    extra = {name: special[name] for name in list(special)[2:]}
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, pad_token="<pad>", eos_token="<end>", extra_special_tokens=extra
    )


def write_smolvlm(
    directory: Path,
    text: dict[str, Any] = TINY_TEXT,
    vision: dict[str, Any] = TINY_VISION,
    scale_factor: int = 2,
    weights: bool = True,
) -> Path:
    """Write a SmolVLM of these sizes, its processor and a byte tokenizer.

    Args:
        directory: Where to.
        text: Settings of its `LlamaConfig`.
        vision: Settings of its `SmolVLMVisionConfig`.
        scale_factor: Of its pixel shuffle.
        weights: Random ones (0.1 M parameters in the smallest size); False writes the config alone.
    """
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )
    from transformers.models.smolvlm import SmolVLMVisionConfig

    tokenizer = byte_tokenizer()
    config = SmolVLMConfig(
        text_config=LlamaConfig(**{"vocab_size": len(tokenizer), "pad_token_id": 0, **text}),
        vision_config=SmolVLMVisionConfig(**vision),
        scale_factor=scale_factor,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    (SmolVLMForConditionalGeneration(config) if weights else config).save_pretrained(directory)
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor()).save_pretrained(directory)
    return directory


def tiny_smoothvla(directory: Path) -> PreTrainedPolicy:
    """On the embedded backbone."""
    import lerobot_policy_smoothvla  # noqa: F401
    from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig

    return save_checkpoint(directory, SmoothVLAConfig(**TINY_SMOOTHVLA))


def tiny_smoothvla_in(env_type: str, directory: Path) -> Path:
    """The checkpoint of one that fits the environment, with actions near the middle of its arena."""
    import lerobot_policy_smoothvla  # noqa: F401
    from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig

    cases = {
        "pusht": (2, "observation.image", 64, 256.0, 100.0),
        "aloha": (14, "observation.images.top", 64, 0.0, 0.3),
        "slide": (1, "observation.image", 16, 0.0, 1.0),
    }
    dim, camera, pixels, middle, spread = cases[env_type]
    image = PolicyFeature(FeatureType.VISUAL, (3, pixels, pixels))
    settings = {
        **TINY_SMOOTHVLA,
        "max_state_dim": dim,
        "max_action_dim": dim,
        "input_features": {camera: image, "observation.state": PolicyFeature(FeatureType.STATE, (dim,))},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (dim,))},
    }
    stats = {
        key: {"mean": torch.full((dim,), middle), "std": torch.full((dim,), spread)}
        for key in ("observation.state", "action")
    }
    save_checkpoint(directory, SmoothVLAConfig(**settings), stats)
    return directory


def tiny_smolvla(directory: Path) -> PreTrainedPolicy:
    """On a random SmolVLM beside it; all of it trainable, with padded actions."""
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    config = SmolVLAConfig(
        vlm_model_name=str(write_smolvlm(directory / "smolvlm")),
        load_vlm_weights=False,
        train_expert_only=False,
        freeze_vision_encoder=False,
        num_vlm_layers=2,
        chunk_size=6,
        n_action_steps=4,
        num_steps=3,
        max_action_dim=10,
        max_state_dim=12,
        resize_imgs_with_padding=(64, 64),
        tokenizer_max_length=16,
        device="cpu",
        **LIBERO_FEATURES,
    )
    return save_checkpoint(directory, config)


def built_by(module: str, name: str) -> Callable[[Path], PreTrainedPolicy]:
    """A builder of another module, which itself needs this one."""

    def build(directory: Path) -> PreTrainedPolicy:
        return getattr(import_module(module), name)(directory)

    return build


POLICIES: dict[str, Callable[[Path], PreTrainedPolicy]] = {
    "smoothvla": tiny_smoothvla,
    "smolvla": tiny_smolvla,
    "pi0": built_by("builders_pi", "tiny_pi0"),
    "pi05": built_by("builders_pi", "tiny_pi05"),
    "diffusion": built_by("builders_diffusion", "tiny_diffusion"),
    "diffusion-ddim": built_by("builders_diffusion", "tiny_diffusion_ddim"),
    "multi_task_dit": built_by("builders_diffusion", "tiny_multi_task_dit"),
    "multi_task_dit-flow": built_by("builders_diffusion", "tiny_multi_task_dit_flow"),
}
"""Each writes a checkpoint that fits LIBERO into a directory and returns its policy in evaluation mode."""

TOLERANCE = {"multi_task_dit-flow": 2e-6}
"""Largest difference of an adapter's noise-free chunk to the policy's own on the CPU, where it is not 0.

The times of multi_task_dit are rounded from the other end: its actions are of order 2, so this is a last bit.
"""

_PI_IDLE = (
    # No token is ever predicted; LeRobot keeps both heads apart from the embedding.
    "paligemma.lm_head.weight",
    "gemma_expert.lm_head.weight",
    # The prefix's last hidden state leads nowhere: the expert reads keys and values only.
    "language_model.layers.1.self_attn.q_proj.weight",
    "language_model.layers.1.self_attn.o_proj.weight",
    "language_model.layers.1.mlp.gate_proj.weight",
    "language_model.layers.1.mlp.up_proj.weight",
    "language_model.layers.1.mlp.down_proj.weight",
    "language_model.layers.1.post_attention_layernorm.weight",
    "language_model.norm.weight",
)
# CLIP's last normalisation is of its pooled output, and the policy reads the class token before it.
_CLIP_IDLE = ("post_layernorm.weight", "post_layernorm.bias")
WITHOUT_GRADIENT: dict[str, tuple[str, ...]] = {
    "pi0": _PI_IDLE,
    "pi05": _PI_IDLE,
    "multi_task_dit": _CLIP_IDLE,
    "multi_task_dit-flow": _CLIP_IDLE,
}
"""Trainable tensors that no loss reaches, by the end of their names, where there are any."""

for _module in os.environ.get("POLICY_BUILDERS", "").split():
    import_module(_module)  # Adds policies of another package to these; see docs/writing-an-adapter.md.

_WITHOUT_DEFAULT_TARGETS = ("diffusion", "multi_task_dit")
LORA = {
    name: PeftConfig(
        r=4, target_modules="all-linear" if name.split("-")[0] in _WITHOUT_DEFAULT_TARGETS else None
    )
    for name in POLICIES
}
"""Settings of an adapter for every policy; one without default targets names its own."""


def prepare(policy_type: str) -> None:
    """Let this process load small policies of a type whose sizes LeRobot fixes."""
    if policy_type in ("pi0", "pi05"):
        from builders_pi import shrink

        shrink(policy_type)


def random_observation(config: PreTrainedConfig, n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """n observations that fit a policy, as an `Episode` keeps them: images uint8."""
    generator = torch.Generator().manual_seed(seed)
    history = () if config.n_obs_steps == 1 else (config.n_obs_steps,)
    return {
        key: torch.randint(0, 256, (n, *history, *feature.shape), generator=generator, dtype=torch.uint8)
        if feature.type is FeatureType.VISUAL
        else torch.randn(n, *history, *feature.shape, generator=generator)
        for key, feature in config.input_features.items()
    }


def act(policy: PreTrainedPolicy, preprocessor: Any, postprocessor: Any) -> torch.Tensor:
    """The first action of an episode by LeRobot's own interface, always with the same noise."""
    observation = {
        key: value.float() / 255 if value.dtype == torch.uint8 else value
        for key, value in random_observation(policy.config, 1).items()
    }
    if policy.config.n_obs_steps > 1:  # The policy keeps the history itself.
        observation = {key: value[:, -1] for key, value in observation.items()}
    policy.reset()
    torch.manual_seed(5)
    with torch.no_grad():
        return postprocessor(policy.select_action(preprocessor({**observation, "task": [TASK]})))
