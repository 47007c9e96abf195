"""Every command of the documentation: its program is there, and takes its flags."""

import importlib
import re
import shutil
import tomllib
from pathlib import Path

import environments  # noqa: F401  (the page's own environment, `slide`)
import pytest
from builders import TINY_SMOOTHVLA
from documented_commands import (
    CHECKPOINT_FLAG,
    COMMANDS,
    REPOSITORY,
    ROWS,
    Command,
    commands_in,
    rows_of,
)
from lerobot.async_inference.configs import PolicyServerConfig, RobotClientConfig
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.rollout.configs import RolloutConfig

from lerobot_smoothvla import selectors
from lerobot_smoothvla.cli.export import ExportConfig
from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.cli.report import named_runs
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.demos.record import DemosConfig
from lerobot_smoothvla.doctor.examine import DoctorConfig
from lerobot_smoothvla.evaluation.command import EvalCommandConfig
from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig
from lerobot_smoothvla.hub.push import PushConfig
from lerobot_smoothvla.report.build import ReportConfig
from lerobot_smoothvla.report.score import ScoreConfig

CONFIGS = {
    "smoothvla demos": DemosConfig,
    "smoothvla score": ScoreConfig,
    "smoothvla doctor": DoctorConfig,
    "smoothvla grpo": GRPOPipelineConfig,
    "smoothvla eval": EvalCommandConfig,
    "smoothvla report": ReportConfig,
    "smoothvla push": PushConfig,
    "smoothvla export": ExportConfig,
    "smoothvla serve": PolicyServerConfig,
    "lerobot-train": TrainPipelineConfig,
    "lerobot-eval": EvalPipelineConfig,
    "lerobot-rollout": RolloutConfig,
    "lerobot.async_inference.robot_client": RobotClientConfig,
}
LAUNCH = ("accelerate", "launch")
CLIENT = ("python", "-m", "lerobot.async_inference.robot_client")
MODULE = "lerobot_smoothvla.cli.main"


def parsed_by_us(command: Command) -> Command:
    """What of a launched command is ours, or a program of LeRobot's that has no name."""
    if command.words[:3] == CLIENT:
        return Command(command.page, (CLIENT[-1], *command.words[3:]))
    if command.words[:2] != LAUNCH:
        return command
    return Command(command.page, ("smoothvla", *command.words[command.words.index(MODULE) + 1 :]))


OURS = list(dict.fromkeys(parsed_by_us(c).words for c in COMMANDS if parsed_by_us(c).program in CONFIGS))
OTHERS = [command for command in COMMANDS if parsed_by_us(command).program not in CONFIGS]


def parse_command(command: Command, monkeypatch: pytest.MonkeyPatch) -> object:
    """What its program makes of it.

    The run that one goes on with is not there; its environment stands for its config.
    """
    arguments = [word for word in command.arguments if not word.startswith("--config_path=")]
    expanded = selectors.expand(command.program, arguments)
    if "--resume=true" in arguments:
        expanded.insert(0, "--env.type=libero")
    if command.program in ("smoothvla report", "smoothvla push"):
        expanded = named_runs(expanded)
    monkeypatch.setattr("sys.argv", [command.program, *expanded])
    return parse(CONFIGS[command.program])


@pytest.fixture(scope="module")
def with_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which every checkpoint that a command names has a config."""
    directory = tmp_path_factory.mktemp("commands")
    SmoothVLAConfig(**TINY_SMOOTHVLA)._save_pretrained(directory)
    for place in {found[1] for words in OURS for word in words if (found := CHECKPOINT_FLAG.fullmatch(word))}:
        (directory / place).mkdir(parents=True)
        shutil.copy(directory / "config.json", directory / place)
    (directory / "configs").symlink_to(REPOSITORY / "configs")
    return directory


@pytest.fixture
def here(with_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, with no dataset recorded or looked for, and with the robots that LeRobot knows."""
    importlib.import_module("lerobot.scripts.lerobot_rollout")
    importlib.import_module("lerobot_smoothvla.filters.guarded")
    monkeypatch.chdir(with_checkpoints)
    monkeypatch.setattr(selectors, "_hub_dataset_in_reach", lambda: True)
    monkeypatch.setattr(selectors, "_scripted_dataset", lambda _: ["--dataset.repo_id=you/scripted"])


def test_every_command_has_a_row_and_every_row_a_command():
    unknown = [f"{command.page}: {command}" for command in COMMANDS if not rows_of(command)]
    assert not unknown, "Say in documented_commands.py how these are run."
    assert {row for command in COMMANDS for row in rows_of(command)[:1]} == set(ROWS)


def test_commands_are_found_with_their_continued_lines_and_without_comments():
    text = "# A page\n```bash\na --b \\\n    --c  # why\n\nd 'e f'\n```\n```text\ng\n```\n"
    assert [command.words for command in commands_in(text, "")] == [("a", "--b", "--c"), ("d", "e f")]


@pytest.mark.parametrize("words", OURS, ids=lambda words: " ".join(words)[:60])
def test_its_program_takes_its_flags(words: tuple[str, ...], here, monkeypatch):
    assert parse_command(Command("", words), monkeypatch) is not None


@pytest.mark.parametrize(
    "command",
    ["smoothvla grpo env=pusht --algorithm.group_sise=8", "lerobot-train policy=smoothvla --stepz=1"],
)
def test_a_misspelt_flag_is_found(command: str, here, monkeypatch):
    with pytest.raises(ValueError, match="group_sise|stepz"):
        parse_command(Command("", tuple(command.split())), monkeypatch)


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_what_is_not_ours_names_what_there_is(command: Command):
    program, *arguments = command.words
    if program == "make":
        makefile = (REPOSITORY / "Makefile").read_text()
        for argument in arguments:
            target, is_variable, _ = argument.partition("=")
            assert re.search(rf"^{target} \?=" if is_variable else rf"^{target}:", makefile, re.MULTILINE)
    elif program == "pip":
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        extras = re.findall(r"[\w-]+", arguments[-1].strip(".[]"))
        assert extras and set(extras) <= set(project["optional-dependencies"])
        assert (REPOSITORY / "constraints.txt").is_file()
    elif program in ("python", ".venv/bin/python"):
        files = [argument for argument in arguments if argument.endswith(".py")]
        source = "".join((REPOSITORY / file).read_text() for file in files)
        flags = [argument for argument in arguments if argument.startswith("--")]
        assert files and all(f'"{flag}"' in source or f'"--no-{flag[2:]}"' in source for flag in flags)
    else:
        assert program in ("source", "ray")
