"""LIBERO's scenes, shifted: conditions that a policy has not met in training.

How far is the shift's magnitude; the direction is drawn from the kind of shift and the start, so a larger
magnitude goes further the same way. Units: m and rad, but that a camera turns by degrees.
"""

import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lerobot_smoothvla.episode import Start

ShiftKind = Literal["none", "camera", "light", "arm", "placement"]

MAGNITUDES = {"camera": (0.05, "m"), "light": (0.3, "share"), "arm": (0.1, "rad"), "placement": (0.03, "m")}
"""Of each kind the default magnitude and its unit."""


@dataclass(frozen=True)
class Shift:
    """A shifted condition.

    Attributes:
        kind: What is shifted; see `envs.scene.Scene`.
        magnitude: How far, in the kind's unit (`MAGNITUDES`).

    Raises:
        ValueError: If the kind does not exist, or the magnitude is out of its range.
    """

    kind: ShiftKind
    magnitude: float

    def __post_init__(self) -> None:
        """Reject what cannot be done."""
        if self.kind not in MAGNITUDES:
            raise ValueError(f"`shift` should be one of {', '.join(get_args(ShiftKind))}, got '{self.kind}'.")
        limit = 1.0 if self.kind == "light" else np.inf
        if not 0 < self.magnitude <= limit:
            raise ValueError(
                f"The magnitude of a shift of the {self.kind} should be above 0 and at most {limit} "
                f"{self.unit}, got {self.magnitude}; leave --eval.shift out for none."
            )

    @classmethod
    def of(cls, kind: ShiftKind, magnitude: float | None = None) -> "Shift | None":
        """The shift of a kind, by its default magnitude where none is given; None for "none".

        Raises:
            ValueError: As the class.
        """
        if kind == "none":
            return None
        if magnitude is None and kind in MAGNITUDES:
            magnitude, _ = MAGNITUDES[kind]
        return cls(kind, magnitude or 0.0)

    @property
    def unit(self) -> str:
        """Of the magnitude."""
        return MAGNITUDES[self.kind][1]

    def generator(self, start: Start) -> np.random.Generator:
        """Draws the direction; the same in every process and every run."""
        return np.random.default_rng(zlib.crc32(repr((self.kind, start)).encode()))
