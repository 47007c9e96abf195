"""What the rollouts must be told of a LeRobot environment that its config does not say.

LIBERO has a class of its own (`envs.libero`); every other type runs through `envs.gym` with an `EnvAdapter`.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.envs.assets import require_gl
from lerobot_smoothvla.episode import Embodiment

CameraSwitch = Callable[[bool], None]
"""Turns rendering on or off; what is observed meanwhile has a blank in the place of each image."""


@dataclass(frozen=True)
class Joints:
    """Where an environment that measures its end effector gives the positions of its joints, too.

    Attributes:
        key: Entry of the raw observation.
        axes: Indices of the J joints there, without grippers.
        unit: Of the values; degrees are measured in rad.
    """

    key: str
    axes: tuple[int, ...]
    unit: Literal["rad", "deg"] = "rad"


@dataclass(frozen=True)
class EnvAdapter:
    """A type of environment.

    Attributes:
        position_key: Entry of the raw observation that holds the measured position.
        axes: Indices of its D axes there.
        control_hz: Control steps a second, as the simulator has them: LeRobot's `fps` is not passed on to it.
        embodiment: What positions and actions mean.
        success_key: Entry of `step`'s info that says whether the task is solved.
        package: That must be installed, or None.
        mujoco: Whether it renders with MuJoCo, which needs OpenGL.
        camera_switch: Makes the switch of a built environment, if rendering can be skipped without changing
            anything else.
        joints: Positions of the arm's joints, where `position_key` holds those of its end effector.
    """

    position_key: str
    axes: tuple[int, ...]
    control_hz: float
    embodiment: Embodiment
    success_key: str = "is_success"
    package: str | None = None
    mujoco: bool = False
    camera_switch: Callable[[gymnasium.Env], CameraSwitch] | None = None
    joints: Joints | None = None


def _metaworld_switch(env: Any) -> CameraSwitch:
    """Also lets every environment of a process keep its own scene.

    Gymnasium renders and frees in whichever OpenGL context is current, that of the environment built last:
    with two of them the first one's images would be wrong, and black once the other is closed.
    """
    env.unwrapped._ensure_env()
    simulator = env.unwrapped._env
    render, close = simulator.render, simulator.close

    def enter_context() -> Any:
        viewer = simulator.mujoco_renderer.viewer
        if viewer is not None:  # It is made for the first picture.
            viewer.make_context_current()
        return viewer

    def render_its_own() -> Any:
        enter_context()
        return render()

    def free_its_own() -> None:
        if (viewer := enter_context()) is not None:
            viewer.con.free()
        close()

    simulator.render, simulator.close = render_its_own, free_its_own
    return _switch(simulator, "render")


def _pusht_switch(env: Any) -> CameraSwitch:
    return _switch(env.unwrapped, "_render")


def _aloha_switch(env: Any) -> CameraSwitch:
    """Also leaves out the two cameras that the task renders and nobody sees."""
    physics = env.unwrapped._env.physics
    render = physics.render
    physics.render = lambda camera_id, **size: (
        render(camera_id=camera_id, **size) if camera_id == "top" else _BLANK
    )
    return _switch(physics, "render")


_BLANK = np.zeros((8, 8, 3), np.uint8)


def _switch(owner: Any, name: str) -> CameraSwitch:
    """Exchanges the method that renders."""
    render = getattr(owner, name)

    def switch(on: bool) -> None:
        setattr(owner, name, render if on else lambda *args, **kwargs: _BLANK)

    return switch


_ARM_JOINTS = (*range(6), *range(7, 13))
"""Of ALOHA's two arms, without the two grippers, whose openings are in [0, 1] and not in rad."""

_ADAPTERS = {
    "metaworld": EnvAdapter(
        "agent_pos",
        axes=(0, 1, 2),
        control_hz=80,
        embodiment=Embodiment(),
        package="metaworld",
        mujoco=True,
        camera_switch=_metaworld_switch,
    ),
    # The arena is 512 px wide: a pixel is about a millimetre of a table top.
    "pusht": EnvAdapter(
        "agent_pos",
        axes=(0, 1),
        control_hz=10,
        embodiment=Embodiment("px", moving_speed=10.0, min_extent=50.0, grippers=(), commands="position"),
        package="gym_pusht",
        camera_switch=_pusht_switch,
    ),
    # Half a metre from a joint, 0.02 rad are a centimetre.
    "aloha": EnvAdapter(
        "agent_pos",
        axes=_ARM_JOINTS,
        control_hz=50,
        embodiment=Embodiment(
            "rad", moving_speed=0.02, min_extent=0.1, grippers=(6, 13), commands="position"
        ),
        package="gym_aloha",
        mujoco=True,
        camera_switch=_aloha_switch,
    ),
}


def register_env_adapter(env_type: str, adapter: EnvAdapter) -> None:
    """Let environments of a registered `EnvConfig` type run; call it where the config is registered.

    Raises:
        ValueError: If the type has an adapter.
    """
    if env_type in _ADAPTERS or env_type == "libero":
        raise ValueError(f"Environments of type '{env_type}' have an adapter already; register another type.")
    _ADAPTERS[env_type] = adapter


def env_adapter(config: EnvConfig) -> EnvAdapter:
    """The adapter of an environment that is not LIBERO.

    Raises:
        ValueError: If it has none; the message names those that have one.
    """
    if config.type not in _ADAPTERS:
        known = ", ".join(sorted([*_ADAPTERS, "libero"]))
        raise ValueError(
            f"Environments of type '{config.type}' have no adapter, which says where the position is "
            f"measured and what success is; these have: {known}. Write one with "
            "`lerobot_smoothvla.envs.adapters.register_env_adapter`; docs/environments.md says how."
        )
    return _ADAPTERS[config.type]


def commands_of(config: EnvConfig) -> tuple[Embodiment, float]:
    """What the actions of an environment ask for, and its control period, s; no simulator is built.

    Raises:
        ValueError: If its actions are absolute poses, or its type has no adapter.
    """
    if not isinstance(config, LiberoEnvConfig):
        adapter = env_adapter(config)
        return adapter.embodiment, 1 / adapter.control_hz
    if config.control_mode != "relative":
        raise ValueError(
            "LIBERO's absolute actions hold rotation vectors, which jump at half a turn: axis by axis they "
            "command no jerk and cannot be filtered; use --env.control_mode=relative."
        )
    return Embodiment(), 1 / config.fps


def prepare_env(config: EnvConfig) -> None:
    """Make sure that an environment can be built here: its package and OpenGL, as far as it needs them.

    Raises:
        ImportError: If something is missing; the message says what to install.
        ValueError: If the type has no adapter.
    """
    if isinstance(config, LiberoEnvConfig):
        require_gl()
        return
    adapter = env_adapter(config)
    if adapter.package is not None and importlib.util.find_spec(adapter.package) is None:
        raise ImportError(
            f"Environments of type '{config.type}' need the package '{adapter.package}', which is not "
            f"installed; try `pip install 'lerobot_policy_smoothvla[{config.type}]'`."
        )
    if adapter.mujoco:
        require_gl()
