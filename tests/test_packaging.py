"""What a wheel and a source distribution hold, and that the wheel works where this repository is not."""

import json
import os
import re
import subprocess
import sys
import tarfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from zipfile import ZipFile

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("lerobot_smoothvla", "lerobot_policy_smoothvla")
UV = (sys.executable, "-m", "uv")


def files(directory: str) -> set[str]:
    """Of a directory of this repository, by their path in it."""
    found = (REPOSITORY / directory).rglob("*")
    return {str(f.relative_to(REPOSITORY)) for f in found if f.is_file() and f.parent.name != "__pycache__"}


def build(source: Path, kind: str, output: Path) -> Path:
    """The one distribution of a kind that hatchling makes of a source tree."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(output)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (distribution,) = output.iterdir()
    return distribution


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution's directory."""
    output = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(REPOSITORY, "sdist", output)) as archive:
        archive.extractall(output / "unpacked", filter="data")
    (directory,) = (output / "unpacked").iterdir()
    return directory


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return BytesParser().parsebytes(archive.read(name))


def test_the_wheel_holds_the_packages_the_presets_and_nothing_else(wheel: Path):
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    held = {name for name in names if ".dist-info/" not in name}
    presets = {f"lerobot_smoothvla/{name}" for name in files("configs")}
    assert len(presets) > 5
    assert held == {*files(PACKAGES[0]), *files(PACKAGES[1]), *presets}
    assert {name.partition("/")[2] for name in names if name not in held} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_source_distribution_holds_what_the_wheel_is_made_of_and_nothing_else(unpacked: Path):
    held = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    made_of = {*files(PACKAGES[0]), *files(PACKAGES[1]), *files("configs")}
    assert held == {*made_of, "README.md", "LICENSE", "pyproject.toml", ".gitignore", "PKG-INFO"}


def test_a_wheel_of_the_source_distribution_is_the_same(wheel: Path, unpacked: Path, tmp_path: Path):
    assert build(unpacked, "wheel", tmp_path).read_bytes() == wheel.read_bytes()


def test_the_version_is_that_of_the_changelog(metadata: Message):
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    assert newest is not None and metadata["Version"] == newest[1]


def test_the_metadata_says_what_a_package_index_shows(metadata: Message):
    assert metadata["Name"] == "lerobot_policy_smoothvla", "LeRobot discovers plugins by this prefix"
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.12"
    assert str(metadata.get_payload()).startswith("# SmoothVLA for LeRobot")


# --- installed, outside of the repository


class Environment:
    """A virtual environment, whose commands run in a directory and a home of their own."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "environment/bin"
        self.home = directory / "home"
        self.home.mkdir()
        subprocess.run([*UV, "venv", "-q", "-p", sys.executable, str(self.bin.parent)], check=True)

    def install(self, *requirements: str) -> None:
        pins = REPOSITORY / "constraints.txt"
        command = [*UV, "pip", "install", "-q", "-p", str(self.bin / "python"), "-c", str(pins)]
        subprocess.run([*command, *requirements], check=True)

    def __call__(self, program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        dropped = ("PYTHONPATH", "VIRTUAL_ENV", "LIBERO_CONFIG_PATH", "XDG_CACHE_HOME", "HF_HOME")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        return subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=self.home,
            env={**kept, "HOME": str(self.home), "HF_HUB_OFFLINE": "1", "COLUMNS": "400", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def said(self, program: str, *arguments: str, **environment: str) -> str:
        """By a command that succeeds."""
        done = self(program, *arguments, **environment)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Stock LeRobot, in which this package is not, and then the wheel."""
    made = Environment(tmp_path_factory.mktemp("outside"))
    made.install("lerobot")
    for package in PACKAGES:
        assert f"No module named '{package}'" in made("python", "-c", f"import {package}").stderr
    made.install(f"lerobot_policy_smoothvla[pusht,filters] @ {wheel.as_uri()}")
    return made


@pytest.mark.slow
def test_the_installed_wheel_is_what_runs(environment: Environment):
    where = environment.said("python", "-c", "import lerobot_smoothvla as s; print(s.__file__)")
    assert Path(where.strip()).is_relative_to(environment.bin.parent)
    assert environment.said("smoothvla", "--help").startswith("usage: smoothvla COMMAND")


@pytest.mark.slow
def test_lerobots_command_lists_the_policy_of_the_wheel(environment: Environment):
    said = environment.said("lerobot-train", "--help")
    (choices,) = (line for line in said.splitlines() if "--policy.type {" in line and "[" in line)
    assert "smoothvla" in choices.replace("}", ",").split(",")


@pytest.mark.slow
def test_a_preset_trains_without_the_repository(environment: Environment, tiny_dataset: Path, tmp_path: Path):
    environment.said(
        "lerobot-train",
        "policy=smoothvla_tiny",
        "--dataset.repo_id=smoothvla/tiny",
        f"--dataset.root={tiny_dataset}",
        "--steps=2",
        "--batch_size=2",
        "--num_workers=0",
        "--policy.device=cpu",
        f"--output_dir={tmp_path / 'sft'}",
    )
    config = tmp_path / "sft/checkpoints/last/pretrained_model/config.json"
    assert json.loads(config.read_text())["vlm_model_name"] == "smoothvla_tiny"


@pytest.mark.slow
def test_the_way_from_the_doctor_to_the_hub_and_a_guarded_checkpoint(
    environment: Environment, tmp_path: Path
):
    from builders import tiny_smoothvla_in
    from hub_server import FakeHub

    policy = f"--policy.path={tiny_smoothvla_in('pusht', tmp_path / 'policy')}"
    trained = f"--policy.path={tmp_path / 'grpo/checkpoints/last/pretrained_model'}"
    short = ("env=pusht", "--env.episode_length=12")
    group = ("--algorithm.n_groups=1", "--algorithm.group_size=2")
    examined = ("--doctor.n_starts=1", "--doctor.group_size=2", "--n_workers=0")
    limits = ("--guard.max_velocity=[100]", "--guard.max_acceleration=[1e3]", "--guard.max_jerk=[1e4]")

    def smoothvla(command: str, *arguments: str, to: str, **variables: str) -> None:
        environment.said("smoothvla", command, *arguments, f"--output_dir={tmp_path / to}", **variables)

    smoothvla("doctor", *short, policy, *examined, to="doctor")
    assert (tmp_path / "doctor/doctor.json").is_file()
    smoothvla("grpo", *short, policy, "--steps=1", "--n_workers=1", *group, to="grpo")
    assert len((tmp_path / "grpo/metrics.jsonl").read_text().splitlines()) == 1
    smoothvla("eval", *short, trained, "--eval.n_episodes=2", "--eval.n_workers=0", to="evaluation")
    info = json.loads((tmp_path / "evaluation/eval_info.json").read_text())
    assert info["policy"]["overall"]["n_episodes"] == 2
    smoothvla("export", trained, *limits, to="guarded")
    assert "smoothvla_motion_guard" in (tmp_path / "guarded/policy_postprocessor.json").read_text()
    runs = (str(tmp_path / "grpo"), str(tmp_path / "evaluation"))
    environment.said("smoothvla", "report", *runs)
    assert (tmp_path / "grpo/report.html").is_file()
    hub = FakeHub()
    try:
        environment.said("smoothvla", "push", *runs, "--repo_id=me/smooth", **hub.environment)
    finally:
        hub.close()
    assert {"README.md", "model.safetensors"} <= set(hub.repositories["me/smooth"].files())


@pytest.mark.slow
def test_a_dataset_is_scored(environment: Environment, tiny_dataset: Path):
    position = ("--position.key=observation.state", "--position.dims=[0,1,2]", "--position.unit=m")
    dataset = ("--dataset.repo_id=smoothvla/tiny", f"--dataset.root={tiny_dataset}")
    assert "2 episodes, 40 frames" in environment.said("smoothvla", "score", *dataset, *position)
    assert (environment.home / "outputs/score/tiny/score.html").is_file()
