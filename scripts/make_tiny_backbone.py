"""Write the embedded backbone's directory: a small SmolVLM config, tokenizer and processor; no weights.

The tokenizer is a byte-level BPE over LIBERO's instructions, so those take about ten tokens and anything else
still has an encoding. Run it from the repository's root: `python scripts/make_tiny_backbone.py`.
"""

import json
from pathlib import Path

from libero.libero import benchmark
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

DIRECTORY = Path(__file__).parent.parent / "lerobot_smoothvla" / "backbones" / "smoothvla_tiny"
SPECIAL = {
    "pad_token": "<pad>",
    "eos_token": "<end_of_utterance>",
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
    "video_token": "<video>",
}
VOCABULARY = 512


def instructions() -> list[str]:
    """Every task string of the standard LIBERO suites."""
    suites = ("libero_object", "libero_spatial", "libero_goal", "libero_10", "libero_90")
    return [task.language + "\n" for name in suites for task in benchmark.get_benchmark_dict()[name]().tasks]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with SmolVLM's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(instructions(), trainer)
    roles = {name: token for name, token in SPECIAL.items() if name in ("pad_token", "eos_token")}
    extra = {name: token for name, token in SPECIAL.items() if name not in roles}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=extra, **roles)


def main() -> None:
    """Write the directory."""
    tokenizer = make_tokenizer()
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "max_position_embeddings": 512,
            "pad_token_id": tokenizer.pad_token_id,
        },
        # The vision tower is exchanged for a convolutional stem (modeling_smoothvla.py): keep this one small.
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 64,
            "patch_size": 32,
        },
        scale_factor=1,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    config.save_pretrained(DIRECTORY)
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(),
        image_seq_len=4,
    ).save_pretrained(DIRECTORY)
    for path in DIRECTORY.glob("*.json"):
        json.loads(path.read_text())
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
