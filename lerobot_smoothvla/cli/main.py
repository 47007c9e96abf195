"""`smoothvla COMMAND`: finds the command, expands selectors, turns expected errors into one paragraph."""

import contextlib
import importlib
import os
import sys

from lerobot_smoothvla.envs.assets import prepare_libero, require_gl
from lerobot_smoothvla.interruption import Interrupted, interruptible
from lerobot_smoothvla.redaction import redacted, require_no_token_in
from lerobot_smoothvla.selectors import env_type, expand, wants_help

COMMANDS = {
    "demos": "record demonstrations of LIBERO or Meta-World tasks with a scripted expert",
    "grpo": "fine-tune a policy with GRPO and the jerk reward",
    "doctor": "examine a run, with the flags of `grpo`, before hours are spent on it",
    "eval": "measure success and smoothness on given starts, or compare two checkpoints",
    "report": "show runs, evaluations and comparisons as one HTML page",
    "score": "measure the smoothness of a dataset's episodes, and find the worst moments",
    "push": "push a run's checkpoint to the Hub, with a model card made from the run and its evaluations",
    "export": "make a plain LeRobot checkpoint of a fine-tuned one (adapters merged), or one with a guard",
    "serve": "run LeRobot's policy server for `smoothvla` too, with its flags",
    "demo": "run the whole path: demonstrations, supervised training, GRPO, comparison",
    "study": "compare success alone with the jerk reward over several seeds, tasks and conditions",
}
# The doctor says itself what is missing.
_NEEDS_NO_SIMULATOR = ("doctor", "export", "push", "report", "score", "serve")


def usage() -> str:
    """What `smoothvla --help` prints."""
    lines = [f"  {name:<8}{purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(["usage: smoothvla COMMAND [policy=NAME] [env=NAME] [--flag=value ...]", "", *lines])


def main() -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 where the doctor finds a failure, 2 after an error that the message explains, 3 if
        that is of the push alone and the training is done, 128 and the signal's number when interrupted
        (Ctrl-C: 130).
    """
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"smoothvla: error: there is no command `{command}`.\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        require_no_token_in(arguments)
        with interruptible():
            return _run(command, rest)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("SMOOTHVLA_DEBUG") == "1":
            raise
        reason = redacted(" ".join(str(error).split())) or type(error).__name__
        with contextlib.suppress(OSError):  # Whoever read it may be gone, which then is the reason.
            print(f"smoothvla {command}: error: {reason} (SMOOTHVLA_DEBUG=1 shows where.)", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except Interrupted as interruption:
        return 128 + interruption.number


def _run(command: str, arguments: list[str]) -> int:
    sys.argv = [f"smoothvla {command}", *expand(f"smoothvla {command}", arguments)]
    if env_type(sys.argv[1:]) not in (None, "libero", "libero_plus"):
        pass  # The command itself prepares any other environment, once its config is known.
    elif wants_help(arguments):  # LIBERO asks its question on import, so its config is needed even now.
        with contextlib.suppress(OSError, ImportError):
            prepare_libero(allow_download=False)
    elif command not in _NEEDS_NO_SIMULATOR:
        prepare_libero()
        require_gl()
    return importlib.import_module(f"lerobot_smoothvla.cli.{command}").main() or 0


if __name__ == "__main__":
    sys.exit(main())
