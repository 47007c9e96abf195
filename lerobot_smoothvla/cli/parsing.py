"""A command line as its config: LeRobot's parser, whose objections become one paragraph."""

import io
import json
import logging
import sys
from argparse import ArgumentError
from contextlib import redirect_stderr, suppress

import yaml
from draccus.utils import DecodingError, ParsingError
from lerobot.configs import parser
from lerobot.configs.parser import PluginLoadError
from lerobot.utils.import_utils import register_third_party_plugins

from lerobot_smoothvla.checkpoint_safety import UNREADABLE, said
from lerobot_smoothvla.redaction import require_no_token_in_config


def parse[Config](config_class: type[Config]) -> Config:
    """The config that `sys.argv` asks for, by LeRobot's rules (`--config_path`, `--policy.path`, `--help`).

    Args:
        config_class: Of the command.

    Raises:
        ValueError: If a flag is unknown, a value cannot be read or is rejected by its config, or is a token.
        SystemExit: After `--help`.
    """

    def parsed(config: Config) -> Config:
        return config

    parsed.__annotations__["config"] = config_class
    register_third_party_plugins()  # This package's policy is one of them.
    # No command decodes videos of a dataset; where torchcodec finds no FFmpeg, LeRobot prints pages about it.
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
    sys.argv[1:] = map(_readable_with_any_file, sys.argv[1:])
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr):
            config: Config = parser.wrap()(parsed)()
    except (ParsingError, ArgumentError) as error:
        reason = error if isinstance(error, DecodingError) else error.__cause__ or error
        raise ValueError(str(reason)) from error
    except (yaml.YAMLError, PluginLoadError, *UNREADABLE) as error:
        given = " ".join(sys.argv[1:])
        raise ValueError(f"The options {given} cannot be read: {said(error)}") from error
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # argparse prints the usage, some 1,600 lines of it, and then what is wrong.
        objection = stderr.getvalue().strip().rpartition("error: ")[2]
        raise ValueError(f"{objection}; `{sys.argv[0]} --help` lists the flags.") from stop
    sys.stderr.write(stderr.getvalue())
    require_no_token_in_config(config)
    return config


def _readable_with_any_file(argument: str) -> str:
    """The same flag with a list or mapping as JSON, which is YAML, too.

    Beside a config in JSON, draccus reads flags as JSON: `[vision,vlm]` would be a text, its letters a tuple.
    """
    name, _, value = argument.partition("=")
    if name.startswith("--") and value.startswith(("[", "{")):
        with suppress(yaml.YAMLError, TypeError, ValueError, RecursionError):  # Draccus says what is wrong.
            return f"{name}={json.dumps(yaml.safe_load(value))}"
    return argument
