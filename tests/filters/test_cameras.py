"""Which cameras stand still: by their images to the last bit, and by the time."""

import logging

import numpy as np
import pytest

from lerobot_smoothvla.filters.cameras import FrozenCameras

FRONT, WRIST = (np.zeros((2, 2, 3), np.uint8) for _ in range(2))


def test_a_camera_is_frozen_once_its_image_was_the_same_for_longer_than_it_may():
    cameras = FrozenCameras(0.5)
    found = [cameras.look({"front": FRONT}, now) for now in (0.0, 0.4, 0.5, 0.6)]
    assert found == [[], [], [], ["front"]]
    assert cameras.look({"front": FRONT + 1}, 0.7) == []
    assert cameras.look({"front": FRONT + 1}, 1.1) == [], "since 0.7 s"


def test_one_value_of_an_image_is_enough_and_a_camera_answers_for_itself():
    cameras = FrozenCameras(0.5)
    image = WRIST.copy()
    cameras.look({"front": FRONT, "wrist": image}, 0.0)
    image[0, 0, 0] += 1  # A driver may write into the same memory.
    assert cameras.look({"front": FRONT, "wrist": image}, 1.0) == ["front"]


def test_zero_lets_the_still_scene_of_a_simulator_be():
    cameras = FrozenCameras(0)
    assert [cameras.look({"front": FRONT}, now) for now in (0.0, 100.0)] == [[], []]


def test_an_episode_begins_without_what_was_seen_before():
    cameras = FrozenCameras(0.5)
    cameras.look({"front": FRONT}, 0.0)
    cameras.reset()
    assert cameras.look({"front": FRONT}, 10.0) == []


def test_it_is_said_once_when_cameras_freeze_and_when_they_go_on(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    cameras = FrozenCameras(0.5)
    for now in (0.0, 1.0, 1.1, 1.2):
        cameras.look({"front": FRONT, "wrist": WRIST}, now)
    cameras.look({"front": FRONT + 1, "wrist": WRIST + 1}, 1.3)
    frozen, goes_on = (record.message for record in caplog.records)
    assert "front, wrist gave the same image for 0.5 s; the arm holds" in frozen
    assert "guard.frozen_after=0" in frozen and "the arm goes on" in goes_on
