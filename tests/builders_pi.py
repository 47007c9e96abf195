"""Small pi0 and pi05 policies: LeRobot fixes the real ones' sizes, so they are set where it builds them."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from builders import LIBERO_FEATURES, LIBERO_STATS, byte_tokenizer, save_checkpoint
from lerobot.policies import PreTrainedPolicy, get_policy_class, make_policy_config
from lerobot.policies.pi_gemma import PaliGemmaForConditionalGenerationWithPiGemma, PiGemmaForCausalLM
from lerobot.processor import TokenizerProcessorStep

WIDTHS = {"gemma_2b": 48, "gemma_300m": 32}
VOCABULARY = 264
"""At least that of the byte tokenizer."""
TINY_PI: dict[str, Any] = {
    "chunk_size": 6,
    "n_action_steps": 4,
    "num_inference_steps": 3,
    "max_action_dim": 10,
    "max_state_dim": 12,
    "image_resolution": (28, 28),
    "device": "cpu",
    **LIBERO_FEATURES,
}
PROMPT_LENGTH = {"pi0": 24, "pi05": 96}
"""In bytes; pi05's holds the digits of the state."""


def modeling_of(policy_type: str) -> Any:
    """LeRobot's module of the policy's network."""
    return import_module(f"lerobot.policies.{policy_type}.modeling_{policy_type}")


def shrink(policy_type: str) -> None:
    """Let this process build small networks of the type: other sizes, nothing else. `reload` undoes it."""
    modeling = modeling_of(policy_type)

    def small_gemma(variant: str) -> Any:
        # LeRobot counts on 8 heads.
        return modeling.GemmaConfig(
            width=WIDTHS[variant], depth=2, mlp_dim=64, num_heads=8, num_kv_heads=1, head_dim=8
        )

    def small_paligemma(config: Any) -> Any:
        vision, text = config.vision_config, config.text_config
        vision.hidden_size, vision.intermediate_size = 16, 32
        vision.num_hidden_layers, vision.num_attention_heads = 1, 2
        vision.projection_dim = text.hidden_size
        text.vocab_size = VOCABULARY
        return PaliGemmaForConditionalGenerationWithPiGemma(config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = VOCABULARY
        return PiGemmaForCausalLM(config)

    modeling.get_gemma_config = small_gemma
    modeling.PaliGemmaForConditionalGenerationWithPiGemma = small_paligemma
    modeling.PiGemmaForCausalLM = small_expert


@contextmanager
def byte_prompts(policy_type: str, directory: Path) -> Iterator[None]:
    """Processors that are made meanwhile tokenize bytes, as PaliGemma's tokenizer is on the Hub."""
    byte_tokenizer().save_pretrained(directory)
    processor = import_module(f"lerobot.policies.{policy_type}.processor_{policy_type}")

    def step(**settings: Any) -> TokenizerProcessorStep:
        return TokenizerProcessorStep(**{**settings, "tokenizer_name": str(directory)})

    with patch.object(processor, "TokenizerProcessorStep", step):
        yield


def tiny_pi(
    directory: Path, policy_type: str, stats: dict[str, Any] = LIBERO_STATS, **settings: Any
) -> PreTrainedPolicy:
    """Of about 0.1 M parameters; all of it trainable, with padded states and actions."""
    shrink(policy_type)
    settings = {**TINY_PI, "tokenizer_max_length": PROMPT_LENGTH[policy_type], **settings}
    torch.manual_seed(0)
    policy = get_policy_class(policy_type)(make_policy_config(policy_type, **settings)).eval()
    for name, parameter in policy.named_parameters():
        if name.endswith("norm.dense.weight"):  # LeRobot makes them 0, and the expert deaf to the time.
            torch.nn.init.normal_(parameter, std=0.02)
    with byte_prompts(policy_type, directory / "tokenizer"):
        return save_checkpoint(directory, policy, stats)


def tiny_pi0(directory: Path) -> PreTrainedPolicy:
    """See `tiny_pi`."""
    return tiny_pi(directory, "pi0")


def tiny_pi05(directory: Path) -> PreTrainedPolicy:
    """See `tiny_pi`."""
    return tiny_pi(directory, "pi05")
