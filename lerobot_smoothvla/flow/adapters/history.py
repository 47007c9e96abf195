"""Policies that read the last control steps: their observations, and the vector that comes of them.

Dims: B batch, N control steps that the policy sees, F features of the vector.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from lerobot.utils.constants import OBS_IMAGES
from torch import Tensor

from lerobot_smoothvla.flow.adapters.base import PolicyAdapter


@dataclass(frozen=True)
class Conditioning:
    """What the denoising network reads beside x: a `vector` (B, F) of the observations."""

    vector: Tensor

    def repeat_interleave(self, n: int) -> Self:
        """Each batch row n times in a row."""
        return type(self)(self.vector.repeat_interleave(n, dim=0))


class HistoryAdapter(PolicyAdapter):
    """A policy that sees N control steps and whose chunk begins at the first of them; nothing is padded."""

    needs_every_camera = True

    @property
    def chunk_size(self) -> int:
        """H, of which the first N − 1 steps lie in the past."""
        return self.config.horizon

    @property
    def padded_action_dim(self) -> int:
        """P = A."""
        return self.action_dim

    @property
    def first_step(self) -> int:
        """Index of the chunk's first step that is executed: the one of the last observation."""
        return self.config.n_obs_steps - 1

    def encode(self, batch: dict[str, Tensor]) -> Conditioning:
        """The policy's own encoders over all N observations. Differentiable.

        Args:
            batch: Preprocessed observations, each (B, N, ...), or (B, ...) where N is 1.
        """
        if self.config.n_obs_steps == 1:
            seen = self.config.input_features
            batch = {key: value[:, None] if key in seen else value for key, value in batch.items()}
        if cameras := [batch[key] for key in self.config.image_features]:
            batch = {**batch, OBS_IMAGES: torch.stack(cameras, dim=-4)}
        return Conditioning(self.condition(batch))

    @abstractmethod
    def condition(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, F) of observations (B, N, ...), the cameras stacked as (B, N, cameras, 3, h, w)."""
