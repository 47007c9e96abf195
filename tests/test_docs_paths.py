"""The commands of every page run in their order, small, with the simulated arm and a Hub on loopback."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from arm_rollouts import arm_checkpoint
from builders import tiny_smolvla, tiny_smoothvla, tiny_smoothvla_in
from documented_commands import CHECKPOINT_FLAG, COMMANDS, PAGES, REPOSITORY, Command, rows_of, written
from hub_commands import Commands
from hub_server import FakeHub, Repository
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from run_directories import evaluation, write_evaluation, write_training_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUN = {page.name: [] for page in PAGES}
for _command in COMMANDS:
    if not rows_of(_command)[0].reason:
        RUN[_command.page].append(_command)
SOURCES = {
    "smoothvla": "import sys\nfrom lerobot_smoothvla.cli.main import main\nsys.exit(main())",
    "lerobot-train": "from lerobot.scripts.lerobot_train import main\nmain()",
    "lerobot-eval": "from lerobot.scripts.lerobot_eval import main\nmain()",
    "lerobot-rollout": "from lerobot.scripts.lerobot_rollout import main\nmain()",
    "python": "import os, sys\nos.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
}
KINDS = {"random_smolvla": "smolvla"}
"""Of checkpoints that are no `smoothvla` for LIBERO."""
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


def arm_dataset(root: Path) -> None:
    """Demonstrations of an arm: two episodes of 15 s in slow waves, degrees."""
    vector = {"dtype": "float32", "shape": (6,), "names": [f"{joint}.pos" for joint in JOINTS]}
    features = {"action": vector, "observation.state": vector}
    dataset = LeRobotDataset.create("you/your_dataset", 30, features, root, "so101_follower")
    for phase in (0.0, 1.0):
        for time in np.arange(450) / 30:
            wave = np.full(6, 60 + 50 * np.sin(time + phase), np.float32)
            dataset.add_frame({"action": wave, "observation.state": wave, "task": "wave"})
        dataset.save_episode()
    dataset.finalize()


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reader has: policies of four kinds, and demonstrations of an arm."""
    path = tmp_path_factory.mktemp("material")
    tiny_smoothvla(path / "libero")
    tiny_smolvla(path / "smolvla")
    arm_checkpoint(path / "arm")
    tiny_smoothvla_in("slide", path / "slide")
    arm_dataset(path / "demonstrations")
    return path


@pytest.fixture(scope="module")
def listening() -> Iterator[FakeHub]:
    hub = FakeHub()
    yield hub
    hub.close()


@pytest.fixture
def hub(listening: FakeHub, material: Path) -> FakeHub:
    """With the policies that are there at the beginning; `you` is its user `me`."""
    listening.repositories.clear()
    for name, source in (("me/your_policy", "arm"), ("me/smolvla_libero", "smolvla")):
        files = {file.name: file.read_bytes() for file in (material / source).iterdir() if file.is_file()}
        listening.repositories[name] = Repository()
        listening.repositories[name].commit("main", files)
    return listening


@pytest.fixture(scope="module")
def commands(
    listening: FakeHub, material: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Commands]:
    """Real processes, which find the simulated arm and the page's environment as plugins."""
    plugins, datasets = (tmp_path_factory.mktemp(name) for name in ("plugins", "datasets"))
    (plugins / "lerobot_env_slide.py").write_text("import environments\n")
    (plugins / "lerobot_env_slide-0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: lerobot_env_slide\nVersion: 0\n"
    (plugins / "lerobot_env_slide-0.dist-info" / "METADATA").write_text(metadata)
    shutil.copytree(material / "demonstrations", datasets / "me/your_dataset")
    path = [plugins, REPOSITORY / "tests/simulated_arm", REPOSITORY / "tests", REPOSITORY]
    search = os.pathsep.join([*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])])
    places = {"PYTHONPATH": search, "HF_LEROBOT_HOME": str(datasets)}
    started = Commands({**listening.environment, **places}, plugins)
    yield started
    started.close()


def lay_out(page: str, directory: Path, material: Path, tiny_dataset: Path) -> None:
    """What a page takes as given: policies that no command before has trained, datasets, and results."""
    for shipped in ("benchmarks", "configs", "docs"):
        (directory / shipped).symlink_to(REPOSITORY / shipped)
    shutil.copytree(tiny_dataset, directory / "LIBERO_DATASET")
    shutil.copytree(material / "demonstrations", directory / "DATASET_ROOT")
    for index, command in enumerate(RUN[page]):
        made = written(RUN[page][:index])
        for path in {found[1] for word in command.words if (found := CHECKPOINT_FLAG.fullmatch(word))}:
            given = not path.startswith("you/") and not any(path.startswith(there) for there in made)
            if given and not (directory / path).exists():
                kind = "slide" if page == "environments.md" else KINDS.get(path, "libero")
                shutil.copytree(material / kind, directory / path)
    if page == "reading-the-report.md":
        write_training_run(directory / "outputs/grpo", [0.25, 0.5])
        write_evaluation(directory / "outputs/evaluation", policy=evaluation([True, False]))


@pytest.mark.parametrize("page", [page for page, found in RUN.items() if found])
def test_the_commands_of_a_page_run_in_their_order(
    page: str, commands: Commands, hub: FakeHub, material: Path, tiny_dataset: Path, tmp_path: Path
):
    lay_out(page, tmp_path, material, tiny_dataset)
    commands.cwd = tmp_path
    done: list[Command] = []
    for command in RUN[page]:
        words = [word.replace("=you/", "=me/") for word in rows_of(command)[0].shrunk(command)]
        for place in written([command]) if "--resume=true" not in words else []:
            # Of what the page shows in two ways, the second begins anew.
            if any(place in written([before]) for before in done if before.program == command.program):
                shutil.rmtree(tmp_path / place)
        result = commands.python(SOURCES[words[0]], *words)
        assert result.code == 0, f"{command}\n{' '.join(words)}\n{result.said}"
        done.append(command)
    shown = {name for command in done for name in re.findall(r"--output_dir=(\S+)", str(command))}
    assert all((tmp_path / name).is_dir() for name in shown)
