"""`smoothvla export`: a fine-tuned checkpoint as a plain one that stock LeRobot loads."""

from dataclasses import dataclass
from pathlib import Path

from lerobot.configs import PreTrainedConfig, parser

from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.export import export


@dataclass
class ExportConfig:
    """What to export; --policy.path is the fine-tuned checkpoint."""

    output_dir: Path
    policy: PreTrainedConfig | None = None

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
    policy_type = export(path, config.output_dir)
    print(f"A plain '{policy_type}' checkpoint was written to {config.output_dir}")


def main() -> None:
    """Entry of `smoothvla export`."""
    run(parse(ExportConfig))
