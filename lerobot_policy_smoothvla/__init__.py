"""The name by which LeRobot discovers the plugin; under a LeRobot command it also expands group selectors.

LeRobot imports this first in `main`, before it parses `sys.argv`. See `lerobot_smoothvla.selectors`.
Where robots are loaded by then, as under the commands that drive one, the guarded one is registered.
"""

import contextlib
import sys

import lerobot_smoothvla  # noqa: F401
from lerobot_smoothvla import selectors
from lerobot_smoothvla.envs.assets import libero_root, prepare_libero, require_gl


def _take_over(command: str) -> None:
    """Rewrite `sys.argv` for LeRobot's parser, and make LIBERO start without a question.

    Raises:
        SystemExit: With one paragraph if a selector is wrong or LIBERO cannot run; after GRPO with its code.
    """
    try:
        algorithm, arguments = selectors.pop_algorithm(command, sys.argv[1:])
        if algorithm is not None:
            from lerobot_smoothvla.cli.main import main

            sys.argv = ["smoothvla", algorithm, *arguments]
            raise SystemExit(main())
        sys.argv[1:] = selectors.expand(command, arguments)
        if selectors.wants_help(arguments):
            print(selectors.help_line())
        elif selectors.starts_libero(sys.argv[1:]):
            prepare_libero()
            require_gl()
        elif libero_root() is not None:
            # A resumed run may still need it; any other must not fail by it.
            with contextlib.suppress(OSError):
                prepare_libero(allow_download=False)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"{command}: error: {error}") from error


if "lerobot.robots.config" in sys.modules:
    from lerobot_smoothvla.filters import guarded  # noqa: F401

if (_command := selectors.lerobot_command(sys.argv[0])) is not None:
    _take_over(_command)
