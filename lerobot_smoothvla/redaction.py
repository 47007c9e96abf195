"""Tokens and passwords out of what is written and shown."""

import os
import re
from collections.abc import Iterable

_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
_SHORTEST = 8
"""A shorter value of a variable is no token, and might be a part of any word."""
_TOKEN = re.compile(r"\b(?:hf_|api_org_|wandb_v\d+_)[A-Za-z0-9]{20,}\w*")
_NAME = (
    r"(?:(?:api|access|secret|private)[_-]?key|(?:hf|hub|auth|access|api)[_-]?token|password|passwd|secret)"
)
_NAMED = re.compile(
    rf"(?i)((?:(?<![a-z0-9]){_NAME}|(?<!\w)token)=|--[\w.-]*?(?:{_NAME}|\.token)\s+)(?!\*\*\*)[^\s'\"]+"
)
_IN_URL = re.compile(r"(://)[^/\s@]+:[^/\s@]+@")


def redacted(text: str) -> str:
    """The text with `***` in place of tokens of the Hub and W&B, and of what a flag calls a password.

    Args:
        text: Anything; the values of `HF_TOKEN` and `WANDB_API_KEY` are found in it wherever they stand.
    """
    for value in _values():
        text = text.replace(value, "***")
    return _IN_URL.sub(r"\1***@", _NAMED.sub(r"\1***", _TOKEN.sub("***", text)))


def require_no_token_in(arguments: Iterable[str]) -> None:
    """Reject a command line with a token: other users see it, and configs, logs and pages keep it.

    Raises:
        ValueError: If there is one; the message shows the command line without it.
    """
    line = " ".join(arguments)
    if (shown := redacted(line)) != line:
        raise ValueError(f"The command line holds what looks like a token or a password: {shown}. {_INSTEAD}")


def require_no_token_in_config(config: object) -> None:
    """Reject a config with a token, which the run's checkpoints would take to the Hub.

    Raises:
        ValueError: If it has one.
    """
    text = repr(config)
    if _TOKEN.search(text) or any(value in text for value in _values()):
        raise ValueError(f"The config file holds what looks like a token. {_INSTEAD}")


def _values() -> list[str]:
    return [value for name in _VARIABLES if len(value := os.environ.get(name, "").strip()) >= _SHORTEST]


_INSTEAD = (
    "Take it out, and pass tokens in the environment (HF_TOKEN, WANDB_API_KEY), or log in once with "
    "`hf auth login` and `wandb login`."
)
