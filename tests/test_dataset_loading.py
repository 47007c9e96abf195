"""Datasets of a stranger; `test_fuzz` has any others."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import Code

from lerobot_smoothvla.dataset_loading import load_dataset
from lerobot_smoothvla.filters.configuration import _actions_of, _dataset
from lerobot_smoothvla.report.score import ScoreConfig, ScoreDatasetConfig, score_dataset
from lerobot_smoothvla.report.signal import PositionConfig


@pytest.fixture
def received(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A dataset that a test may spoil."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / "received"))


def change(root: Path, **entries: object) -> None:
    file = root / "meta/info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def score(root: Path) -> None:
    position = PositionConfig("observation.state", [0, 1, 2], "m")
    score_dataset(ScoreConfig(ScoreDatasetConfig("smoothvla/tiny", root), position, fps=20))


READERS = pytest.mark.parametrize("read", [score, lambda root: _actions_of(_dataset(root), (-1,))])


@READERS
def test_the_dataset_itself_is_read(received: Path, read: Callable[[Path], object]):
    read(received)


def test_a_dataset_of_the_hub_is_looked_at_as_one_in_a_directory(received: Path, monkeypatch):
    home = received.parent / "home"
    shutil.move(received, home / "stranger/set")
    monkeypatch.setattr("lerobot.datasets.dataset_metadata.HF_LEROBOT_HOME", home)
    assert len(load_dataset("stranger/set", None)) == 40
    change(home / "stranger/set", data_path="/etc/{chunk_index}.parquet")
    with pytest.raises(ValueError, match="called 'stranger/set' .* `data_path` should be a path in"):
        load_dataset("stranger/set", None)


@READERS
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"data_path": "../../{chunk_index}.parquet"},
            "`data_path` should be a path in the dataset's directory",
        ),
        ({"data_path": "/etc/{chunk_index}.parquet"}, "`data_path` should be a path in"),
        ({"data_path": "data/{chunk_index:999999999d}.parquet"}, "`data_path` should be a path in"),
        ({"video_path": "{video_key.__class__.__mro__}"}, "`video_path` should be a path in"),
        ({"video_path": "C:\\videos\\{video_key}.mp4"}, "`video_path` should be a path in"),
        (
            {"features": {"a": {"dtype": "float32", "shape": [10**12]}}},
            "`shape` of 'a' should be .* up to 100000",
        ),
        (
            {"features": {"a": {"dtype": "float32", "shape": [3], "names": 3}}},
            "`names` of 'a' should be a list",
        ),
        ({"features": {"a": 1}}, "feature 'a' should have a `dtype`"),
        ({"features": []}, "should be an object with `features`"),
        ({"fps": 1e-300}, "`fps` should be a number from 0.001 to 1e\\+06, got 1e-300"),
        ({"total_episodes": -1}, "`total_episodes` should be a count, got -1"),
        ({"robot_type": {}}, "`robot_type` should be a name"),
        ({"codebase_version": "v1.0"}, "cannot be read"),
    ],
)
def test_metadata_that_leads_elsewhere_or_nowhere_is_refused(
    received: Path, read: Callable[[Path], object], entries: dict, message: str
):
    change(received, **entries)
    with pytest.raises(
        ValueError, match=f"The dataset in '{received}' cannot be read: .*{message}|{message}"
    ):
        read(received)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/tasks.parquet", "data/chunk-000/file-000.parquet"])
def test_a_pickle_in_place_of_a_file_does_not_run(received: Path, tmp_path: Path, name: str):
    (received / name).write_bytes(pickle.dumps(Code(tmp_path / "it_ran")))
    with pytest.raises(ValueError, match=f"dataset in '{received}' cannot be read"):
        score(received)
    assert not (tmp_path / "it_ran").exists()


def test_a_link_out_of_the_dataset_is_refused(received: Path, tmp_path: Path):
    (received / "meta/info.json").rename(tmp_path / "info.json")
    (received / "meta/info.json").symlink_to(tmp_path / "info.json")
    with pytest.raises(ValueError, match="info.json' is a link out of its directory"):
        load_dataset("smoothvla/tiny", received)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["info.json", "received"]


def test_columns_that_the_metadata_does_not_have_are_one_paragraph(received: Path):
    info = json.loads((received / "meta/info.json").read_text())
    del info["features"]["observation.state"]
    info["features"]["observation.other"] = {"dtype": "float32", "shape": [8], "names": None}
    change(received, features=info["features"])
    position = PositionConfig("observation.other", [0, 1, 2], "m")
    with pytest.raises(ValueError, match=f"dataset in '{received}' cannot be read"):
        score_dataset(ScoreConfig(ScoreDatasetConfig("smoothvla/tiny", received), position, fps=20))
