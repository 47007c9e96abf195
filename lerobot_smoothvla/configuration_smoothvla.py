"""Configuration of the SmoothVLA policy: SmolVLA's, plus how it explores."""

from copy import copy
from dataclasses import dataclass
from typing import Self

from lerobot.configs import PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from lerobot_smoothvla.backbones import backbone_path

EMBEDDED_BACKBONE = "smoothvla_tiny"
"""Name of the small backbone that is shipped with this package."""


@PreTrainedConfig.register_subclass("smoothvla")
@dataclass
class SmoothVLAConfig(SmolVLAConfig):
    """SmolVLA's architecture with the exploration settings that RL rollouts use.

    With `vlm_model_name="smoothvla_tiny"` the VLM is the embedded backbone (convolutional vision stem, about
    two million parameters with the expert, no download); any other name is a SmolVLM on the Hub or on disk.

    Attributes:
        flow_samples: (t, ε) pairs per observation in a supervised step. They share one encoding, so more of
            them cost little beside loading and encoding the images; 1 is SmolVLA's own training.
        noise_level: `a` in the stochastic integrator's σ = a·√(t/(1−t)); 0 is the plain ODE.
        noise_length: Correlation length of the exploration noise along the chunk, control steps; 0 is white.
        stochastic_steps: "one" random Euler step per chunk is stochastic (π_RL), or "all".
        noise_last_step: Whether the last Euler step may be stochastic: its noise is in the actions as it is.
    """

    flow_samples: int = 1
    noise_level: float = 0.2
    noise_length: float = 0.0
    stochastic_steps: str = "one"
    noise_last_step: bool = False

    def __post_init__(self) -> None:
        """Reject exploration settings that cannot be sampled from.

        Raises:
            ValueError: If a noise setting is out of its range.
        """
        super().__post_init__()
        if self.flow_samples < 1:
            raise ValueError(f"`flow_samples` should be at least 1, got {self.flow_samples}.")
        if self.flow_samples > 1 and self.adapt_to_pi_aloha:
            raise ValueError("`adapt_to_pi_aloha` needs `flow_samples` 1, SmolVLA's own training.")
        if self.noise_level < 0 or self.noise_length < 0:
            raise ValueError(
                "`noise_level` and `noise_length` should be at least 0, "
                f"got {self.noise_level} and {self.noise_length}."
            )
        if self.stochastic_steps not in ("one", "all"):
            raise ValueError(f"`stochastic_steps` should be 'one' or 'all', got '{self.stochastic_steps}'.")

    @property
    def embedded(self) -> bool:
        """Whether the backbone is the one shipped with this package."""
        return self.vlm_model_name == EMBEDDED_BACKBONE

    def with_backbone_path(self) -> Self:
        """A copy whose `vlm_model_name` is what `from_pretrained` can load."""
        resolved = copy(self)
        resolved.vlm_model_name = backbone_path(self.vlm_model_name)
        return resolved
