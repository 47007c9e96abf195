import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from lerobot.envs.factory import make_env_config

from lerobot_smoothvla.envs.tasks import selected_tasks
from lerobot_smoothvla.presets import GROUPS, configs_dir, preset_flags, preset_names, preset_path

REPOSITORY = Path(__file__).parents[1]
ALL_PRESETS = [(group, name) for group in GROUPS for name in preset_names(group)]


def test_every_promised_preset_exists():
    assert {"smoothvla", "smoothvla_tiny"} <= set(preset_names("policy"))
    suites = {"libero_object", "libero_spatial", "libero_goal", "libero_10", "libero_90"}
    assert suites | {"libero", "metaworld", "pusht", "aloha"} <= set(preset_names("env"))


@pytest.mark.parametrize(("group", "name"), ALL_PRESETS)
def test_flags_say_the_same_as_the_file(group: str, name: str):
    parsed = {}
    for flag in preset_flags(group, name):
        key, _, value = flag.removeprefix(f"--{group}.").partition("=")
        parsed[key] = yaml.safe_load(value)
    assert parsed == yaml.safe_load(preset_path(group, name).read_text())


@pytest.mark.parametrize("name", preset_names("env"))
def test_env_presets_name_tasks_that_there_are(name: str):
    settings = yaml.safe_load(preset_path("env", name).read_text())
    config = make_env_config(settings.pop("type"), **settings)
    assert config.type == name.partition("_")[0]
    assert selected_tasks(config)


def test_metaworld_is_all_50_tasks():
    settings = yaml.safe_load(preset_path("env", "metaworld").read_text())
    assert len(selected_tasks(make_env_config(settings.pop("type"), **settings))) == 50


def test_libero_is_all_four_standard_suites():
    suites = yaml.safe_load(preset_path("env", "libero").read_text())["task"].split(",")
    assert sorted(suites) == ["libero_10", "libero_goal", "libero_object", "libero_spatial"]


def test_an_unknown_preset_lists_those_there_are_and_the_nearest():
    with pytest.raises(ValueError, match="smoothvla, smoothvla_tiny.*Did you mean `policy=smoothvla_tiny`"):
        preset_path("policy", "smoothvla_tinny")


def test_a_preset_name_is_no_path():
    with pytest.raises(ValueError, match="There is no preset"):
        preset_path("policy", "../env/libero")


def test_an_editable_install_reads_the_repositorys_configs():
    assert configs_dir() == REPOSITORY / "configs"


def test_the_wheel_ships_the_presets_under_the_name_that_lerobot_discovers(tmp_path: Path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert "Name: lerobot_policy_smoothvla\n" in metadata
    assert {f"lerobot_smoothvla/configs/{group}/{name}.yaml" for group, name in ALL_PRESETS} <= names
    assert {"lerobot_policy_smoothvla/__init__.py", "lerobot_smoothvla/cli/main.py"} <= names
