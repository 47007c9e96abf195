"""Pre- and post-processors of the SmoothVLA policy: SmolVLA's, with the embedded backbone's tokenizer."""

from dataclasses import dataclass
from typing import Any

import torch
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline, ProcessorStepRegistry, TokenizerProcessorStep
from transformers import AutoTokenizer

from lerobot_smoothvla.backbones import backbone_path
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig

Processors = tuple[PolicyProcessorPipeline[Any, Any], PolicyProcessorPipeline[Any, Any]]


@dataclass
@ProcessorStepRegistry.register(name="smoothvla_tokenizer")
class BackboneTokenizerStep(TokenizerProcessorStep):
    """LeRobot's tokenizer step that finds an embedded backbone by name, so checkpoints hold no path."""

    def __post_init__(self) -> None:
        """Load the tokenizer of the backbone `tokenizer_name`."""
        self.input_tokenizer = AutoTokenizer.from_pretrained(backbone_path(str(self.tokenizer_name)))


def make_smoothvla_pre_post_processors(
    config: SmoothVLAConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> Processors:
    """SmolVLA's processors for this config; found by LeRobot's factory under this name.

    Args:
        config: The policy's configuration.
        dataset_stats: Statistics that observations and actions are normalised with.

    Returns:
        The pre-processor (observation to model input) and the post-processor (model output to action).
    """
    if not config.embedded:
        return make_smolvla_pre_post_processors(config, dataset_stats)
    # SmolVLA's factory loads the tokenizer by its name: let it find the directory, then keep the name.
    named = BackboneTokenizerStep(
        tokenizer_name=config.vlm_model_name,
        padding=config.pad_language_to,
        padding_side="right",
        max_length=config.tokenizer_max_length,
    )
    resolved = config.with_backbone_path()
    preprocessor, postprocessor = make_smolvla_pre_post_processors(resolved, dataset_stats)
    preprocessor.steps = [
        named if isinstance(step, TokenizerProcessorStep) else step for step in preprocessor.steps
    ]
    return preprocessor, postprocessor
