"""Fixtures that several test modules share. Everything is real but small, and nothing asks the Hub."""

import os
from pathlib import Path

import numpy as np
import pytest

from lerobot_smoothvla.envs.assets import prepare_libero, require_gl

TASKS = ("pick up the red cube", "pick up the blue cube")


def pytest_configure() -> None:
    """Runs before any test module is imported: LIBERO and the Hub's client read the environment on import."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    prepare_libero(allow_download=False)
    require_gl()


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a LeRobotDataset (`smoothvla/tiny`) with LIBERO's keys: 2 tasks, 20 frames of each."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("datasets") / "tiny"
    image = {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channel"]}
    dataset = LeRobotDataset.create(
        repo_id="smoothvla/tiny",
        fps=10,
        root=root,
        features={
            "observation.images.image": image,
            "observation.images.image2": image,
            "observation.state": {"dtype": "float32", "shape": (8,), "names": None},
            "action": {"dtype": "float32", "shape": (7,), "names": None},
        },
        use_videos=False,
    )
    rng = np.random.default_rng(0)
    for task in TASKS:
        for _ in range(20):
            dataset.add_frame(
                {
                    "observation.images.image": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
                    "observation.images.image2": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
                    "observation.state": rng.standard_normal(8).astype(np.float32),
                    "action": rng.uniform(-1, 1, 7).astype(np.float32),
                    "task": task,
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture(scope="session")
def tiny_smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with a random SmolVLM (0.1 M parameters), its processor and a byte tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )
    from transformers.models.smolvlm import SmolVLMVisionConfig

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
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, pad_token="<pad>", eos_token="<end>", extra_special_tokens=extra
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
    )
    vision = SmolVLMVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
    )
    config = SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    directory = tmp_path_factory.mktemp("backbones") / "smolvlm"
    SmolVLMForConditionalGeneration(config).save_pretrained(directory)
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor()).save_pretrained(directory)
    return directory
