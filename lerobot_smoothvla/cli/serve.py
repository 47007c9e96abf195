"""`smoothvla serve`: LeRobot's policy server, which by itself serves no policy of a plugin."""

import logging

from lerobot_smoothvla import configuration_smoothvla  # noqa: F401
from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.filters import guard, steps  # noqa: F401


def main() -> None:
    """Entry of `smoothvla serve`; it ends when it is interrupted.

    Raises:
        ImportError: If gRPC is missing.
        OSError: If the port is taken, or the host is none of this machine.
    """
    try:
        from lerobot.async_inference import configs, constants, policy_server
    except ImportError as error:
        raise ImportError(f"{error}; install this package's extra `async`.") from error
    constants.SUPPORTED_POLICIES.append("smoothvla")
    config = parse(configs.PolicyServerConfig)
    if config.host not in ("localhost", "127.0.0.1", "::1"):
        logging.warning(f"Who reaches port {config.port} of {config.host} can run any code as you.")
    try:
        policy_server.serve(config)
    except RuntimeError as error:  # gRPC's, of its port alone: what a call raises stays in the call.
        raise OSError(f"{error}; choose another --port, or the --host of an interface.") from error
