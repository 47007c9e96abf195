"""Settings by their dotted names, as flags have them, and in what two commands differ."""

import json
from collections.abc import Mapping
from typing import Any

import draccus


def settings_of(config: Any) -> dict[str, Any]:
    """All settings of a config dataclass, as its JSON has them."""
    return flattened(json.loads(json.dumps(draccus.encode(config))))


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; empty ones stay as they are."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= (
            flattened(value, f"{prefix}{name}.")
            if isinstance(value, dict) and value
            else {prefix + name: value}
        )
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The settings that are not the same, each with a text that says what it was and is."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return {name: f"--{name}={before.get(name)} there, {now.get(name)} here" for name in names}


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], what: str, flag: str) -> None:
    """Reject a directory that a command with other settings made.

    Args:
        before: Its settings.
        now: This command's.
        what: Is there, as in "{what} with other settings".
        flag: That names the directory.

    Raises:
        FileExistsError: If it did; the message says in what the settings differ.
    """
    if different := differences(before, now):
        raise FileExistsError(
            f"{what} with other settings ({', '.join(different.values())}); choose another {flag}, or "
            "delete it."
        )
