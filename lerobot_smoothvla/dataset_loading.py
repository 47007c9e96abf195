"""A LeRobot dataset of anybody's: what it says about itself is looked at before LeRobot believes it."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import httpx
from datasets.exceptions import DatasetsError
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import CompatibilityError

from lerobot_smoothvla.checkpoint_safety import UNREADABLE, require_inside, said

FPS = (1e-3, 1e6)
"""What may be a frame rate, Hz: jerk takes its third power."""
_LARGEST_DIM = 100_000
_PATH = re.compile(
    r"(?:[^{}]|\{(?:chunk_index|file_index|video_key|episode_chunk|episode_index)(?::0?\dd)?\})*"
)


def load_dataset(repo_id: str, root: Path | None) -> LeRobotDataset:
    """A dataset without its videos.

    Args:
        repo_id: Its name on the Hub, or any name for one in `root`.
        root: Its directory, if it is on this machine.

    Raises:
        OSError: If it is neither on this machine nor in reach.
        ValueError: If it cannot be read, or leads out of its directory.
    """
    where = f"in '{root}'" if root else f"called '{repo_id}' on this machine"
    with readable(where):
        try:
            # Of one without a root LeRobot says where it is, and has then read no more than its metadata.
            directory = root or LeRobotDatasetMetadata(repo_id).root
            info = directory / "meta" / "info.json"
            if info.is_file():
                require_inside(directory)
                require_info(json.loads(info.read_text(encoding="utf-8")))
            return LeRobotDataset(repo_id, root=root, download_videos=False)
        except (OSError, httpx.HTTPError) as error:
            raise OSError(
                f"There is no dataset {where}, and the Hub does not give it either ({error}); pass the "
                "directory that holds `meta/info.json` as --dataset.root."
            ) from error


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Say of what cannot be read that it is the dataset.

    Args:
        where: It is, as in "The dataset {where}".

    Raises:
        ValueError: If something is not as its metadata says.
    """
    try:
        yield
    except (ValueError, CompatibilityError, DatasetsError, *UNREADABLE) as error:
        reason = said(error.__cause__ or error) if isinstance(error, DatasetsError) else said(error)
        raise ValueError(
            f"The dataset {where} cannot be read: {shorten(reason.rstrip('.'), 400)}. Its meta/info.json and "
            "its parquet files should be as LeRobot writes them; fetch or record it again."
        ) from error


def require_info(info: Any) -> None:
    """Reject a `meta/info.json` that is none, or that would lead LeRobot out of the dataset's directory.

    Raises:
        ValueError: If an entry is not what LeRobot writes; the message names it.
    """
    if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
        raise ValueError("meta/info.json should be an object with `features`.")
    for key, feature in info["features"].items():
        if not (isinstance(feature, dict) and isinstance(feature.get("dtype"), str)):
            raise ValueError(f"the feature '{key}' should have a `dtype`, got {feature!r:.100}.")
        shape, names = feature.get("shape"), feature.get("names")
        if not (isinstance(shape, list) and all(_is_count(n, 1, _LARGEST_DIM) for n in shape)):
            raise ValueError(
                f"the `shape` of '{key}' should be a list of counts up to {_LARGEST_DIM}, got {shape!r:.100}."
            )
        if not (names is None or isinstance(names, list | dict)):
            raise ValueError(
                f"the `names` of '{key}' should be a list or groups of them, got {names!r:.100}."
            )
    fps = info.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not FPS[0] <= fps <= FPS[1]:
        raise ValueError(f"`fps` should be a number from {FPS[0]:g} to {FPS[1]:g}, got {fps!r:.100}.")
    for key in ("total_episodes", "total_frames", "total_tasks"):
        if not _is_count(info.get(key, 0), 0, math.inf):
            raise ValueError(f"`{key}` should be a count, got {info[key]!r:.100}.")
    for key in ("robot_type", "codebase_version"):
        if not isinstance(info.get(key, ""), str | None):
            raise ValueError(f"`{key}` should be a name, got {info[key]!r:.100}.")
    for key in ("data_path", "video_path"):
        path = info.get(key) or ""
        if not isinstance(path, str) or not _PATH.fullmatch(path) or _leads_out(path):
            raise ValueError(
                f"`{key}` should be a path in the dataset's directory, as "
                f"'data/chunk-{{chunk_index:03d}}/file-{{file_index:03d}}.parquet', got {path!r:.100}."
            )


def _is_count(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _leads_out(path: str) -> bool:
    parts = path.replace("\\", "/").split("/")
    return ".." in parts or (path != "" and (parts[0] == "" or ":" in parts[0]))
