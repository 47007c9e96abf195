"""A convolutional vision stem that takes the place of SmolVLM's vision tower.

From scratch and on a few dozen demonstrations a transformer tower learns nothing where small convolutions do
(docs/performance.md). Dims: B batch, h × w pixels, N tokens of an image, E embedding width.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of each feature map: where something is, not what it looks like.

    Levine et al., End-to-End Training of Deep Visuomotor Policies, JMLR 17, 2016.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 2C) coordinates in [-1, 1]."""
        height, width = features.shape[-2:]
        attention = features.flatten(2).softmax(dim=-1).view_as(features)
        x = torch.linspace(-1, 1, width, device=features.device)
        y = torch.linspace(-1, 1, height, device=features.device)
        return torch.cat([(attention.sum(2) * x).sum(-1), (attention.sum(3) * y).sum(-1)], dim=-1)


class ConvStem(nn.Module):
    """Images to tokens: a grid of 4 × 4 features, and two tokens of keypoint coordinates.

    It answers to the calls that LeRobot makes to SmolVLM's vision model, so that everything around it is
    SmolVLA's own code.

    Args:
        channels: Of the input: RGB and one that tells the cameras apart.
        width: E, the language model's hidden size.
    """

    GRID = 4
    KEYPOINTS = 64

    def __init__(self, channels: int, width: int) -> None:
        """Build the stem."""
        super().__init__()
        self.trunk = nn.Sequential(
            _block(channels + 2, 32, stride=2),
            _block(32, 64, stride=2),
            _block(64, 64),
        )
        self.keypoints = nn.Sequential(nn.Conv2d(64, self.KEYPOINTS, 1), SpatialSoftmax())
        self.keypoint_tokens = nn.Linear(2 * self.KEYPOINTS, 2 * width)
        self.grid = nn.Sequential(_block(64, 128, stride=2), nn.AdaptiveAvgPool2d(self.GRID))
        self.grid_tokens = nn.Linear(128, width)
        self.position = nn.Parameter(0.02 * torch.randn(self.GRID**2 + 2, width))
        self.norm = nn.LayerNorm(width)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: LeRobot casts the images to it."""
        return self.position.dtype

    def forward(self, pixel_values: Tensor, patch_attention_mask: Tensor | None = None) -> SimpleNamespace:
        """(B, channels, h, w) in [-1, 1] to `last_hidden_state` (B, N, E) of norm about 1 a token."""
        batch, _, height, width = pixel_values.shape
        x = torch.linspace(-1, 1, width, device=pixel_values.device, dtype=pixel_values.dtype)
        y = torch.linspace(-1, 1, height, device=pixel_values.device, dtype=pixel_values.dtype)
        x, y = x.expand(batch, 1, height, width), y[:, None].expand(batch, 1, height, width)
        features = self.trunk(torch.cat([pixel_values, x, y], dim=1))
        grid = self.grid_tokens(self.grid(features).flatten(2).transpose(1, 2))
        keypoints = self.keypoint_tokens(self.keypoints(features)).unflatten(-1, (2, -1))
        tokens = self.norm(torch.cat([grid, keypoints], dim=1) + self.position)
        # LeRobot multiplies image embeddings by √E, as Gemma does.
        return SimpleNamespace(last_hidden_state=tokens / tokens.shape[-1] ** 0.5)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()
    )
