"""Named presets: the YAML files under `configs/`, addressed as GROUP=NAME (`policy=smoothvla`)."""

import difflib
from pathlib import Path

import yaml

GROUPS = ("policy", "env")


def configs_dir() -> Path:
    """Where the presets lie: inside the package as a wheel ships it, else the repository's `configs/`."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "configs"


def preset_names(group: str) -> list[str]:
    """Names of the presets of `group`, sorted."""
    return sorted(path.stem for path in (configs_dir() / group).glob("*.yaml"))


def preset_path(group: str, name: str) -> Path:
    """The file of one preset.

    Raises:
        ValueError: If there is no such preset; the message lists those there are.
    """
    names = preset_names(group)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean `{group}={close[0]}`?" if close else ""
        raise ValueError(f"There is no preset `{group}={name}`; `{group}=` takes {', '.join(names)}.{hint}")
    return configs_dir() / group / f"{name}.yaml"


def preset_flags(group: str, name: str) -> list[str]:
    """One preset as LeRobot flags, e.g. `--env.type=libero`.

    Flags, unlike `--env="include FILE"`, are also seen by LeRobot's scoped `--help`, and need no file where
    a remote job runs.

    Raises:
        ValueError: If there is no such preset.
    """
    settings: dict[str, object] = yaml.safe_load(preset_path(group, name).read_text(encoding="utf-8"))
    return [f"--{group}.{key}={_as_text(value)}" for key, value in settings.items()]


def _as_text(value: object) -> str:
    """A value as YAML reads it back: not JSON's `2e-05`, which is a string to YAML."""
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
