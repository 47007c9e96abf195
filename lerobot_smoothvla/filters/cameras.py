"""Cameras whose image stands still. Units: s."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


class FrozenCameras:
    """Finds cameras that give one image, the same to the last bit, for longer than they may.

    The noise of a sensor makes each image of a real camera another one, also of a scene that stands still.
    That of a simulator is the same for as long as nothing moves.
    """

    def __init__(self, after: float) -> None:
        """Know no image yet.

        Args:
            after: How long an image may stay the same, s; 0 for ever.
        """
        self.after = after
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._last: dict[str, tuple[NDArray[Any], float]] = {}
        self._frozen: list[str] = []

    def look(self, images: Mapping[str, NDArray[Any]], now: float) -> list[str]:
        """The cameras that are frozen; a change of them is logged.

        Args:
            images: Of each camera.
            now: When they were got, s.
        """
        if self.after == 0:
            return []
        for camera, image in images.items():
            last = self._last.get(camera)
            if last is None or not np.array_equal(last[0], image):
                self._last[camera] = image.copy(), now
        frozen = [camera for camera in images if now - self._last[camera][1] > self.after]
        if frozen and frozen != self._frozen:
            logger.warning(
                f"Motion guard: {', '.join(frozen)} gave the same image for {self.after:g} s; the arm holds "
                "until it changes. Look after the camera; allow it (guard.frozen_after=0) if it is simulated."
            )
        elif self._frozen and not frozen:
            logger.info("Motion guard: every camera gives new images; the arm goes on.")
        self._frozen = frozen
        return frozen
