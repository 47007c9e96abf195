"""From a checkpoint's path to a policy that acts; what does not fit is found before any simulator starts."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from draccus.utils import DecodingError, ParsingError
from huggingface_hub.errors import HFValidationError
from lerobot.configs import PreTrainedConfig, parser
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.modeling_smoothvla import SmoothVLAPolicy
from lerobot_smoothvla.rollout.engine import Actor
from lerobot_smoothvla.rollout.local import make_actor

LIBERO_STATE_DIM = 8
"""LeRobot's LIBERO state: position, axis-angle, two gripper joints."""


def load_actor_config(
    path: str | Path, cli_overrides: Sequence[str] = (), env_config: LiberoEnvConfig | None = None
) -> SmoothVLAConfig:
    """The config of a checkpoint that can act in LIBERO.

    Args:
        path: A directory with a `config.json`, or a model on the Hub.
        cli_overrides: As `--n_action_steps=4`; for a stock SmolVLA the exploration settings, too.
        env_config: Where it will act; LIBERO's defaults if None.

    Returns:
        The config with its `pretrained_path`; a stock `smolvla` comes as the same policy of type `smoothvla`.

    Raises:
        FileNotFoundError: If there is no checkpoint at `path`.
        ValueError: If it is of another type, an override does not fit, or the policy's state, action or
            cameras are not those of the environment.
    """
    config = _read_config(path)
    if cli_overrides:
        with TemporaryDirectory() as directory:
            config.save_pretrained(directory)
            try:
                config = SmoothVLAConfig.from_pretrained(directory, cli_overrides=list(cli_overrides))
            except ParsingError as error:
                raise ValueError(
                    f"The options {list(cli_overrides)} do not fit the checkpoint '{path}': {_reason(error)}"
                ) from error
    config.pretrained_path = Path(path)
    _require_fit(config, env_config or LiberoEnvConfig())
    return config


def actor_config_from_cli(field: str, env_config: LiberoEnvConfig) -> SmoothVLAConfig | None:
    """The checkpoint that `--<field>.path` names, with its other options; None if none is named.

    Raises:
        FileNotFoundError: As `load_actor_config`.
        ValueError: As `load_actor_config`.
    """
    path = parser.get_path_arg(field)
    if path is None:
        return None
    overrides = parser.get_yaml_overrides(field) + (parser.get_cli_overrides(field) or [])
    return load_actor_config(path, overrides, env_config)


def load_actor(config: SmoothVLAConfig) -> Actor:
    """The policy of `load_actor_config` with its weights and the processors saved beside them."""
    return make_actor(config, SmoothVLAPolicy.from_pretrained(str(config.pretrained_path), config=config))


def _read_config(path: str | Path) -> SmoothVLAConfig:
    """The checkpoint's own config, as `smoothvla`."""
    try:
        config = PreTrainedConfig.from_pretrained(path)
    except (OSError, HFValidationError) as error:
        inner = Path(path) / "pretrained_model"
        hint = f"'{inner}'" if inner.is_dir() else "a directory like .../checkpoints/last/pretrained_model"
        raise FileNotFoundError(
            f"There is no checkpoint '{path}': it is no directory with a config.json, and the Hub has no "
            f"such model or is out of reach ({error}). Try {hint}."
        ) from error
    except ParsingError as error:
        raise ValueError(f"The config.json of '{path}' cannot be read: {_reason(error)}") from error
    if isinstance(config, SmoothVLAConfig):
        return config
    if isinstance(config, SmolVLAConfig):
        return SmoothVLAConfig.from_smolvla(config)
    raise ValueError(
        f"The policy should be of type 'smoothvla' or 'smolvla', '{path}' is of type '{config.type}'; "
        "`lerobot-eval` evaluates the others."
    )


def _reason(error: ParsingError) -> str:
    """What is wrong: draccus says it itself of a value, and in the cause of a config that rejects itself."""
    return str(error if isinstance(error, DecodingError) else error.__cause__ or error)


def _require_fit(config: SmoothVLAConfig, env_config: LiberoEnvConfig) -> None:
    """Reject a policy that cannot read the environment's observations or whose actions it cannot execute."""
    path = config.pretrained_path
    state, action = config.robot_state_feature, config.action_feature
    if state is None or state.shape != (LIBERO_STATE_DIM,):
        raise ValueError(
            f"The checkpoint '{path}' should have `{OBS_STATE}` of shape ({LIBERO_STATE_DIM},) among its "
            f"input features, got {state and state.shape}; train it on a dataset with LIBERO's state."
        )
    if env_config.obs_type != "pixels_agent_pos":
        raise ValueError(
            "The environment should give the state beside the images (--env.obs_type=pixels_agent_pos), "
            f"got '{env_config.obs_type}'."
        )
    if action is None or action.shape != env_config.features[ACTION].shape:
        raise ValueError(
            f"The environment's actions are of shape {env_config.features[ACTION].shape}, those of the "
            f"checkpoint '{path}' of {action and action.shape}; train it on a dataset of this robot."
        )
    cameras = {key for key in env_config.features_map.values() if key.startswith(OBS_IMAGES)}
    if not (cameras <= set(config.image_features) or set(config.image_features) <= cameras):
        raise ValueError(
            f"The checkpoint '{path}' looks through {sorted(config.image_features)}, the environment has "
            f"{sorted(cameras)}; name them alike with --env.camera_name_mapping."
        )
    if config.n_action_steps < 1:
        raise ValueError(
            f"`n_action_steps` should be in [1, {config.chunk_size}], got {config.n_action_steps}: the "
            "steps of every chunk that are executed."
        )
