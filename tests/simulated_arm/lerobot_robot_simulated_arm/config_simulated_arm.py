"""`--robot.type=simulated_arm`."""

from dataclasses import dataclass
from pathlib import Path

from lerobot.robots import RobotConfig

FAULTS = ("", "frozen", "stale", "no_position", "lost")


@RobotConfig.register_subclass("simulated_arm")
@dataclass(kw_only=True)
class SimulatedArmConfig(RobotConfig):
    """A simulated arm.

    Attributes:
        log: Where what happened is written on disconnection, an .npz.
        image_size: Of both cameras, px.
        noise_std: Of every value of an image, of 255, as a sensor has it.
        fault: What goes wrong: "frozen" cameras give the same image, "stale" ones raise as LeRobot's do,
            "no_position" reads NaN of the motors, "lost" is the connection, for ever.
        fault_after: Observations before that.
        fault_for: Observations that it lasts; 0 for ever.
        n_observations: After which it stops the command as Ctrl-C does; 0 for never. Unlike a duration it
            gives a busy machine the time for as many control steps as an idle one.
        seed: Of where the cube is put.
    """

    log: Path
    image_size: int = 64
    noise_std: float = 0.5
    fault: str = ""
    fault_after: int = 30
    fault_for: int = 0
    n_observations: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.fault in FAULTS, self.fault
