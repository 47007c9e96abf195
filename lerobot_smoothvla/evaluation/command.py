"""What `smoothvla eval` is asked for."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from lerobot.configs import PreTrainedConfig
from lerobot.envs.configs import EnvConfig

from lerobot_smoothvla.evaluation.evaluate import EvaluationConfig
from lerobot_smoothvla.filters.configuration import ActionFilterConfig, NoFilterConfig


@dataclass
class EvalCommandConfig:
    """What to evaluate; --policy.path is the checkpoint, --compare.path another one to subtract from it.

    Each acts through its own filter: --filter.type that of the policy, --compare_filter.type the other's.
    """

    env: EnvConfig
    eval: EvaluationConfig = field(default_factory=EvaluationConfig)
    policy: PreTrainedConfig | None = None
    compare: PreTrainedConfig | None = None
    filter: ActionFilterConfig = field(default_factory=NoFilterConfig)
    compare_filter: ActionFilterConfig = field(default_factory=NoFilterConfig)
    output_dir: Path = field(default_factory=lambda: Path(f"outputs/eval/{datetime.now():%Y-%m-%d/%H-%M-%S}"))

    @classmethod
    def __get_path_fields__(cls) -> list[str]:
        """The fields that LeRobot's parser leaves to `--<field>.path`."""
        return ["policy", "compare"]
