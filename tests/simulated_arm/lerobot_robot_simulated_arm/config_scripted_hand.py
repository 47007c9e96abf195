"""`--teleop.type=scripted_hand`."""

from dataclasses import dataclass

from lerobot.teleoperators import TeleoperatorConfig


@TeleoperatorConfig.register_subclass("scripted_hand")
@dataclass(kw_only=True)
class ScriptedHandConfig(TeleoperatorConfig):
    """A scripted person.

    Attributes:
        episode_time_s: As the recorder's `--dataset.episode_time_s`.
        reset_time_s: As its `--dataset.reset_time_s`; longer than `return_time_s`.
        reach_time_s: From home to the cube.
        return_time_s: From there home.
        tremor_std: Of white noise on every joint's goal, deg.
        seed: Of the tremor.
    """

    episode_time_s: float
    reset_time_s: float
    reach_time_s: float = 1.5
    return_time_s: float = 1.0
    tremor_std: float = 0.5
    seed: int = 0
