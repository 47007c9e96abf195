"""`smoothvla export`: a fine-tuned checkpoint as a plain one that stock LeRobot loads, or a guarded one."""

from dataclasses import dataclass, field
from pathlib import Path

from lerobot.configs import PreTrainedConfig, parser

from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.export import export
from lerobot_smoothvla.filters.configuration import GuardConfig


@dataclass
class ExportConfig:
    """What to export; --policy.path is the fine-tuned checkpoint, --guard.* what guards an arm."""

    output_dir: Path
    policy: PreTrainedConfig | None = None
    guard: GuardConfig = field(default_factory=GuardConfig)

    @classmethod
    def __get_path_fields__(cls) -> list[str]:
        """The field that LeRobot's parser leaves to `--policy.path`."""
        return ["policy"]


def run(config: ExportConfig) -> None:
    """Export, and say what came out."""
    path = parser.get_path_arg("policy")
    if path is None:
        raise ValueError("There is nothing to export: pass --policy.path=CHECKPOINT.")
    if overrides := parser.get_cli_overrides("policy"):
        raise ValueError(
            f"An export keeps the checkpoint's settings, got {' '.join(overrides)} for --policy; give them "
            "to the command that loads the exported one."
        )
    exported = export(path, config.output_dir, config.guard)
    guard = exported.guard
    print(f"A '{exported.policy_type}' checkpoint was written to {config.output_dir}")
    if guard is not None:
        print(f"It acts through a motion guard at {1 / guard.dt:g} Hz, in the unit of the actions:")
        for line in guard.described():
            print(f"  {line}")


def main() -> None:
    """Entry of `smoothvla export`."""
    run(parse(ExportConfig))
