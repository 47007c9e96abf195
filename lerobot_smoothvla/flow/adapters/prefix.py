"""What a VLM has made of one batch of observations, for the action expert to attend to.

Dims: B batch, L prefix tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class PrefixContext:
    """The VLM's answer to one batch of observations.

    Attributes:
        pad_masks: (B, L) bool, which prefix tokens are real.
        keys_values: Per layer, keys and values (B, heads, L, head_dim).
        state: (B, S) what else the expert reads beside the prefix, or None.
    """

    pad_masks: Tensor
    keys_values: tuple[tuple[Tensor, Tensor], ...]
    state: Tensor | None = None

    @classmethod
    def from_cache(cls, pad_masks: Tensor, cache: Any, state: Tensor | None = None) -> Self:
        """The context of a cache that transformers filled."""
        return cls(pad_masks, tuple((layer.keys, layer.values) for layer in cache.layers), state)

    def cache(self) -> DynamicCache:
        """A cache of its own for one pass of the expert, which may append to it."""
        cache = DynamicCache()
        for keys, values in self.keys_values:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values  # `update` would copy them.
            cache.layers.append(layer)
        return cache

    def repeat_interleave(self, n: int) -> Self:
        """Each batch row n times in a row."""
        return self._map(lambda rows: rows.repeat_interleave(n, dim=0))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(
            change(self.pad_masks),
            tuple((change(keys), change(values)) for keys, values in self.keys_values),
            None if self.state is None else change(self.state),
        )
