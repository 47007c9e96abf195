"""Anything in place of a config, a selector, or what a checkpoint or a dataset says of itself: no traceback.

What a command may raise is what `cli.main` turns into one paragraph.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args, get_type_hints

import draccus
import numpy as np
import pytest
from builders import TINY_SMOOTHVLA, save_checkpoint
from draccus.utils import ParsingError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_smoothvla import selectors
from lerobot_smoothvla.checkpoint_loading import load_actor_config
from lerobot_smoothvla.checkpoint_safety import require_safe_processors
from lerobot_smoothvla.cli import parsing
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.dataset_loading import require_info
from lerobot_smoothvla.evaluation.command import EvalCommandConfig
from lerobot_smoothvla.evaluation.evaluate import EvaluationConfig
from lerobot_smoothvla.filters.configuration import ActionFilterConfig
from lerobot_smoothvla.grpo.configuration import GRPOConfig, GRPOPipelineConfig
from lerobot_smoothvla.presets import preset_names
from lerobot_smoothvla.redaction import require_no_token_in
from lerobot_smoothvla.report.build import ReportConfig
from lerobot_smoothvla.report.score import ScoreConfig, ScoreDatasetConfig, score_dataset
from lerobot_smoothvla.report.signal import PositionConfig
from lerobot_smoothvla.rollout.configuration import RolloutConfig

EXPECTED = (ValueError, OSError, ImportError)


def fuzz(n: int) -> Callable:
    """n inputs, of which none may take half a minute, on a busy machine too."""
    return settings(
        max_examples=n,
        deadline=timedelta(seconds=30),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["../../x", "/etc/passwd", "os.system", "{a.__class__}", "{chunk_index:9999999d}", "1e999"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=5,
)


def mutated(valid: Any) -> st.SearchStrategy[Any]:
    """A JSON value of which some entries, at any depth, are anything or missing."""

    @st.composite
    def mutate(draw: st.DrawFn) -> Any:
        value = json.loads(json.dumps(valid))
        for _ in range(draw(st.integers(1, 3))):
            place, key = {"": value}, ""
            while isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if key != "" and draw(st.booleans()):
                del place[key]
            elif key == "":
                value = draw(JSON)
            else:
                place[key] = draw(JSON)
        return value

    return mutate()


# --- selectors


NAMES = [name for group in ("policy", "env") for name in preset_names(group)]
FLAGS = [
    "--env.type",
    "--policy.path",
    "--resume",
    "--output_dir",
    "--config_path",
    "--help",
    "-h",
    "--x.token",
]
VALUES = st.sampled_from([*NAMES, "", "libero", "true", "include x.yaml", "\\x00", "a" * 5000]) | st.text(
    max_size=20
)
ARGUMENT = st.one_of(
    st.text(max_size=20),
    st.builds("{}={}".format, st.sampled_from(["policy", "env", "dataset", "algorithm", "polcy"]), VALUES),
    st.builds("{}={}".format, st.sampled_from(FLAGS), VALUES),
    st.sampled_from(FLAGS),
)
COMMANDS = ["smoothvla grpo", "smoothvla nonsense", "lerobot-eval", "lerobot-rollout", "lerobot-record"]


@fuzz(6500)
@given(st.sampled_from([*COMMANDS, "lerobot-train"]), st.lists(ARGUMENT, max_size=5))
def test_any_command_line_is_expanded_or_refused(command: str, arguments: list[str]):
    if command == "lerobot-train":
        arguments = ["--config_path=mine.yaml", *arguments]  # So that no dataset is recorded.
    for step in (
        lambda: selectors.expand(command, arguments),
        lambda: selectors.pop_algorithm(command, arguments),
        lambda: selectors.starts_libero(arguments),
        lambda: require_no_token_in(arguments),
    ):
        try:
            step()
        except EXPECTED as error:
            assert str(error)


@fuzz(300)
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | JSON.map(lambda x: json.dumps(x).encode())
)
def test_any_file_tells_an_environment_or_nothing(content: bytes):
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(content)
        file.flush()
        try:
            selectors.env_type([f"--config_path={file.name}"])
        except EXPECTED as error:
            assert str(error)


def test_a_deeply_nested_file_tells_nothing(tmp_path: Path):
    (tmp_path / "deep.yaml").write_text("[" * 100_000)
    assert selectors.env_type([f"--config_path={tmp_path}/deep.yaml"]) is None


# --- configs


@fuzz(1000)
@given(st.data())
def test_any_values_make_a_config_or_a_reason(data: st.DataObject):
    classes = [GRPOConfig, EvaluationConfig, RolloutConfig, ScoreConfig, PositionConfig, ReportConfig]
    config_class = data.draw(st.sampled_from([*classes, SmoothVLAConfig, ActionFilterConfig]))
    fields = sorted(get_type_hints(config_class))
    if config_class is ActionFilterConfig:
        kind = data.draw(st.sampled_from(sorted(ActionFilterConfig.get_known_choices())))
        fields = sorted(get_type_hints(ActionFilterConfig.get_choice_class(kind)))
    chosen = data.draw(
        st.dictionaries(
            st.sampled_from(fields or ["x"]), JSON | st.sampled_from([1, 0.5, "auto"]), max_size=3
        )
    )
    if config_class is ActionFilterConfig:
        chosen = {"type": kind, **chosen}
    try:
        draccus.decode(config_class, chosen)
    except (ParsingError, *EXPECTED) as error:
        assert str(error)


@pytest.fixture(scope="module")
def parse() -> Callable[..., Any]:
    """The command's parser; what is installed is looked up once."""
    parsing.register_third_party_plugins()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "register_third_party_plugins", lambda: None)

        def run(config_class: type, arguments: list[str]) -> None:
            patch.setattr(sys, "argv", ["smoothvla command", *arguments])
            try:
                parsing.parse(config_class)
            except (SystemExit, *EXPECTED) as stop:
                assert str(stop)

        yield run


def flags(config_class: type, *given: str) -> st.SearchStrategy[list[str]]:
    """Command lines of flags that there are, one level deep and two, with any values."""
    names = []
    for name, kind in get_type_hints(config_class).items():
        inner = next((t for t in (kind, *get_args(kind)) if hasattr(t, "__dataclass_fields__")), None)
        names += [name, *(f"{name}.{field}" for field in get_type_hints(inner or object))]
    values = st.one_of(
        JSON.map(lambda value: json.dumps(value)),
        st.text(max_size=12),
        st.sampled_from(
            ["-1", "0", "nan", "inf", "1e400", "[", "{", "true", "include x", "!!python/name:os"]
        ),
    )
    return st.lists(st.builds("--{}={}".format, st.sampled_from(names), values), max_size=3).map(
        lambda made: [*given, *made]
    )


@fuzz(80)
@given(arguments=flags(ScoreConfig, "--dataset.repo_id=you/data"))
def test_any_flags_of_a_score_are_read_or_refused(parse, arguments: list[str]):
    parse(ScoreConfig, arguments)


@fuzz(80)
@given(arguments=flags(ReportConfig, "--runs=[outputs]"))
def test_any_flags_of_a_report_are_read_or_refused(parse, arguments: list[str]):
    parse(ReportConfig, arguments)


@fuzz(8)
@given(arguments=flags(GRPOPipelineConfig, "--env.type=pusht"))
def test_any_flags_of_a_run_are_read_or_refused(parse, arguments: list[str]):
    parse(GRPOPipelineConfig, arguments)


@fuzz(3)
@given(arguments=flags(EvalCommandConfig, "--env.type=pusht"))
def test_any_flags_of_an_evaluation_are_read_or_refused(parse, arguments: list[str]):
    parse(EvalCommandConfig, arguments)


# --- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "checkpoint"
    save_checkpoint(path, SmoothVLAConfig(**TINY_SMOOTHVLA))
    return path


@fuzz(80)
@given(data=st.data())
def test_any_config_of_a_checkpoint_is_read_or_refused(
    checkpoint: Path, tmp_path_factory, data: st.DataObject
):
    valid = json.loads((checkpoint / "config.json").read_text())
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", directory)  # LeRobot leaves a file behind each time.
        changed = data.draw(mutated(valid))
        (Path(directory) / "config.json").write_text(json.dumps(changed))
        try:
            load_actor_config(directory)
        except EXPECTED as error:
            assert directory in str(error)


@fuzz(800)
@given(data=st.data())
def test_any_processors_of_a_checkpoint_are_safe_or_refused(checkpoint: Path, data: st.DataObject):
    valid = json.loads((checkpoint / "policy_preprocessor.json").read_text())
    changed = data.draw(mutated(valid) | JSON)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "policy_preprocessor.json").write_text(json.dumps(changed))
        try:
            require_safe_processors(directory)
        except ValueError as error:
            assert str(error).startswith(f"The processors of '{directory}' are not loaded")
            return
    for step in changed["steps"]:
        assert "registry_name" in step and "/" not in (step.get("state_file") or "")


# --- datasets


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One episode of ten frames."""
    root = tmp_path_factory.mktemp("fuzz") / "dataset"
    state = {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]}
    made = LeRobotDataset.create(
        "local/made",
        20,
        root=root,
        features={"observation.state": state},
        robot_type="panda",
        use_videos=False,
    )
    for index in range(10):
        made.add_frame({"observation.state": np.full(3, index, np.float32), "task": "a task"})
    made.save_episode()
    made.finalize()
    return root


@fuzz(1500)
@given(data=st.data())
def test_any_description_of_a_dataset_is_taken_or_refused(dataset: Path, data: st.DataObject):
    valid = json.loads((dataset / "meta/info.json").read_text())
    changed = data.draw(mutated(valid) | JSON)
    try:
        require_info(changed)
    except ValueError as error:
        assert len(str(error)) < 600
        return
    paths = [changed.get(key) or "" for key in ("data_path", "video_path")]
    assert not any(path.startswith("/") or ".." in path.split("/") for path in paths)


@fuzz(50)
@given(data=st.data())
def test_any_dataset_is_scored_or_refused(dataset: Path, data: st.DataObject):
    valid = json.loads((dataset / "meta/info.json").read_text())
    with tempfile.TemporaryDirectory() as directory:
        root = Path(shutil.copytree(dataset, Path(directory) / "dataset"))
        (root / "meta/info.json").write_text(json.dumps(data.draw(mutated(valid))))
        try:
            score = score_dataset(ScoreConfig(ScoreDatasetConfig("local/made", root)))
        except EXPECTED as error:
            assert str(error)
        else:
            assert len(score.recordings) == 1
