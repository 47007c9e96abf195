"""From a checkpoint's path to a policy that acts; what does not fit is found before any simulator starts."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import httpx
from draccus.utils import DecodingError, ParsingError
from huggingface_hub.constants import CONFIG_NAME
from huggingface_hub.errors import HFValidationError
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig, parser
from lerobot.configs.default import PeftConfig
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.envs.utils import env_to_policy_features
from lerobot.policies import PreTrainedPolicy, get_policy_class
from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE
from safetensors import safe_open

# Registers the type `smoothvla`, whatever has been imported before.
from lerobot_smoothvla import configuration_smoothvla  # noqa: F401
from lerobot_smoothvla.checkpoint_safety import (
    UNREADABLE,
    require_file,
    require_inside,
    said,
)
from lerobot_smoothvla.flow.adapters import adapter_class
from lerobot_smoothvla.peft_loading import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    add_adapter,
    load_adapter,
    read_adapter,
)
from lerobot_smoothvla.rollout.engine import Actor
from lerobot_smoothvla.rollout.local import make_actor

LIBERO_STATE_DIM = 8
"""LeRobot's LIBERO state: position, axis-angle, two gripper joints."""
_WEIGHTS = "model.safetensors"
_STATISTICS = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}


def load_actor_config(
    path: str | Path, cli_overrides: Sequence[str] = (), env_config: EnvConfig | None = None
) -> PreTrainedConfig:
    """The config of a checkpoint that can act in the environment, of the type that it was saved with.

    Args:
        path: A directory with a `config.json`, or a model on the Hub.
        cli_overrides: As `--n_action_steps=4`; `--pretrained_revision=v1` is the Hub's branch, tag or commit.
        env_config: Where it will act; LIBERO's defaults if None.

    Returns:
        The config with its `pretrained_path`.

    Raises:
        FileNotFoundError: If there is no checkpoint at `path`.
        ValueError: If its type has no adapter, an override does not fit, or the policy's state, action or
            cameras are not those of the environment.
    """
    revision = parser.parse_arg("pretrained_revision", list(cli_overrides))
    config = read_config(path, revision)
    adapter = adapter_class(config)
    num_steps = getattr(config, adapter.num_steps_field)
    if cli_overrides:
        with TemporaryDirectory() as directory:
            config.save_pretrained(directory)
            try:
                config = PreTrainedConfig.from_pretrained(directory, cli_overrides=list(cli_overrides))
            except ParsingError as error:
                raise ValueError(
                    f"The options {list(cli_overrides)} do not fit the checkpoint '{path}': {_reason(error)}"
                ) from error
    # Not that in its config.json, which is of its own warm start.
    config.pretrained_path, config.pretrained_revision = Path(path), revision
    if getattr(config, adapter.num_steps_field) != num_steps:
        raise ValueError(
            f"`{adapter.num_steps_field}` should stay that of the checkpoint '{path}', {num_steps}, got "
            f"{getattr(config, adapter.num_steps_field)}: with other denoising steps than in training it "
            f"fails; leave --policy.{adapter.num_steps_field} out."
        )
    adapter.check_config(config)
    _require_fit(config, env_config or LiberoEnvConfig())
    return config


def actor_config_from_cli(field: str, env_config: EnvConfig) -> PreTrainedConfig | None:
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


def load_actor(config: PreTrainedConfig, peft: PeftConfig | None = None, seed: int = 0) -> Actor:
    """The policy of `load_actor_config` with its weights and the processors saved beside them.

    Args:
        config: Of the checkpoint.
        peft: Put a new adapter around the policy; a checkpoint that is an adapter goes on with its own.
        seed: Of the new adapter.

    Raises:
        FileNotFoundError: If the checkpoint has no weights.
        ImportError: As `load_policy`.
        ValueError: If the weights are not those of the config, statistics are missing, or no such adapter can
            be put around the policy.
    """
    policy = load_policy(config)
    if peft is not None and not config.use_peft:
        policy = add_adapter(policy, peft, seed)
    actor = make_actor(config, policy)
    _require_statistics(config, [*actor.preprocessor.steps, *actor.postprocessor.steps])
    return actor


def load_policy(config: PreTrainedConfig) -> PreTrainedPolicy:
    """The policy of a checkpoint, with its weights; of an adapter, on its base.

    Raises:
        FileNotFoundError: If it has none, or an adapter's base is not where it was.
        ImportError: If it is an adapter and `peft` is not installed.
        ValueError: If they are not those of the config.
    """
    path, revision = str(config.pretrained_path), config.pretrained_revision
    if not config.use_peft:
        return _load_weights(config, path, require_file(path, _WEIGHTS, revision), revision)
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        require_file(path, file, revision)
    adapter = read_adapter(path, revision)
    base = adapter.base_model_name_or_path
    try:
        weights = require_file(base, _WEIGHTS, adapter.revision)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The adapter '{path}' was trained on '{base}' (`base_model_name_or_path` in its "
            f"{ADAPTER_CONFIG}), which is no directory with weights and no such model on the Hub: "
            f"{error} Bring it back there, or write into that file where it is now."
        ) from error
    policy = _load_weights(config, base, weights, adapter.revision)
    try:
        return load_adapter(policy, path, adapter, revision)
    except (ValueError, *UNREADABLE) as error:
        raise ValueError(f"The adapter '{path}' does not fit its base '{base}': {said(error)}") from error


def _load_weights(
    config: PreTrainedConfig, path: str, weights: Path, revision: str | None = None
) -> PreTrainedPolicy:
    policy_class = get_policy_class(config.type)
    try:
        with safe_open(weights, framework="pt"):
            pass  # Broken files too are only printed by pi0 and pi05.
        with _load_errors_raised(policy_class):
            return policy_class.from_pretrained(path, config=config, revision=revision)
    except UNREADABLE as error:
        raise ValueError(
            f"The weights of '{path}' are not those of its config.json: {shorten(said(error), 400)} Leave "
            "out --policy options that change the network, or fetch or save the checkpoint again."
        ) from error


@contextmanager
def _load_errors_raised(policy_class: Any) -> Iterator[None]:
    """pi0 and pi05 only print why weights do not fit their network, and go on with random ones."""
    load, errors = policy_class.load_state_dict, []

    def load_state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(self, *args, **kwargs)
        except RuntimeError as error:
            errors.append(error)
            raise

    policy_class.load_state_dict = load_state_dict
    try:
        yield
    finally:
        policy_class.load_state_dict = load
    if errors:
        raise errors[0]


def _require_statistics(config: PreTrainedConfig, steps: Iterable[Any]) -> None:
    """LeRobot leaves what it has no statistics of as it is, and the policy acts on numbers it never saw."""
    for step in steps:
        if not isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep):
            continue
        for name, feature in step.features.items():
            needed = _STATISTICS.get(step.norm_map.get(feature.type, NormalizationMode.IDENTITY), ())
            known = (step.stats or {}).get(name, {})
            if name in (ACTION, *config.input_features) and not set(needed) <= set(known):
                raise ValueError(
                    f"The checkpoint '{config.pretrained_path}' normalises `{name}` by "
                    f"{' and '.join(needed)}, which its processors do not hold; save them with statistics "
                    "of its dataset (`make_pre_post_processors(config, dataset_stats=...)`)."
                )


def read_config(path: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The checkpoint's own config, of a revision of the Hub.

    Raises:
        FileNotFoundError: If there is no checkpoint at `path`.
        ValueError: If its config.json cannot be read, or it holds links out of its directory.
    """
    if (Path(path) / CONFIG_NAME).exists():
        require_inside(Path(path))
    try:
        return PreTrainedConfig.from_pretrained(path, revision=revision)
    except (OSError, httpx.HTTPError, HFValidationError) as error:
        inner = Path(path) / "pretrained_model"
        hint = f"'{inner}'" if inner.is_dir() else "a directory like .../checkpoints/last/pretrained_model"
        raise FileNotFoundError(
            f"There is no checkpoint '{path}': it is no directory with a config.json, and the Hub has no "
            f"such model or revision or is out of reach ({error}). Try {hint}."
        ) from error
    except (ParsingError, ValueError, *UNREADABLE) as error:
        raise ValueError(f"The config.json of '{path}' cannot be read: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What is wrong: draccus says it itself of a value, and in the cause of a config that rejects itself."""
    if isinstance(error, ParsingError) and not isinstance(error, DecodingError):
        error = error.__cause__ or error
    return str(error) if isinstance(error, ParsingError) else said(error)


def _require_fit(config: PreTrainedConfig, env_config: EnvConfig) -> None:
    """Reject a policy that cannot read the environment's observations or whose actions it cannot execute."""
    path, given = config.pretrained_path, _given(env_config)
    if OBS_STATE not in given:
        raise ValueError(
            "The environment should give the state beside the images (--env.obs_type=pixels_agent_pos), "
            f"got '{getattr(env_config, 'obs_type', None)}'."
        )
    inputs = config.input_features or {}
    needed = {OBS_STATE, *(key for key, f in inputs.items() if f.type is not FeatureType.VISUAL)}
    for key in sorted(needed):
        ours, theirs = (features[key].shape if key in features else None for features in (inputs, given))
        if ours != theirs:
            raise ValueError(
                f"The checkpoint '{path}' should have `{key}` of shape {theirs} among its input features, "
                f"got {ours}; train it on a dataset of this environment ({env_config.type})."
            )
    action = config.action_feature
    if action is None or action.shape != given[ACTION].shape:
        raise ValueError(
            f"The environment's actions are of shape {given[ACTION].shape}, those of the checkpoint '{path}' "
            f"of {action and action.shape}; train it on a dataset of this robot."
        )
    cameras, looks = {key for key in given if key.startswith(OBS_IMAGE)}, set(config.image_features)
    fits = looks <= cameras
    if not adapter_class(config).needs_every_camera:
        fits = fits or set() < cameras <= looks
    if not fits:
        libero = isinstance(env_config, LiberoEnvConfig)
        advice = (
            "name them alike with --env.camera_name_mapping" if libero else "train it on a dataset of these"
        )
        raise ValueError(
            f"The checkpoint '{path}' looks through {sorted(looks)}, the environment has "
            f"{sorted(cameras)}; {advice}."
        )


def _given(env_config: EnvConfig) -> dict[str, PolicyFeature]:
    """What an environment gives to a policy and takes from it, by LeRobot's keys; no simulator is built."""
    given = env_to_policy_features(env_config)
    if isinstance(env_config, LiberoEnvConfig):
        parts = [key for key in given if key.startswith(f"{OBS_STATE}.")]
        if parts:  # LIBERO's processor joins some of them.
            given[OBS_STATE] = PolicyFeature(FeatureType.STATE, (LIBERO_STATE_DIM,))
    return given
