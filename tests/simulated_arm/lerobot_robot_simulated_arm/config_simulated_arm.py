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
        fault: What goes wrong: "frozen" cameras give the same image, "stale" ones raise as LeRobot's do,
            "no_position" reads NaN of the motors for 30 observations, "lost" is the connection.
        fault_after: Observations before that.
        n_observations: After which it stops the command as Ctrl-C does; 0 for never. Unlike a duration it
            gives a busy machine the time for as many control steps as an idle one.
        seed: Of where the cube is put.
    """

    log: Path
    image_size: int = 64
    fault: str = ""
    fault_after: int = 30
    n_observations: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.fault in FAULTS, self.fault
