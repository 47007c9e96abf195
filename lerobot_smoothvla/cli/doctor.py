"""`smoothvla doctor`: examine a run, with the flags of `smoothvla grpo`, before hours are spent on it."""

from collections import Counter
from dataclasses import asdict

from lerobot_smoothvla.checkpoint_loading import actor_config_from_cli
from lerobot_smoothvla.cli.parsing import parse
from lerobot_smoothvla.doctor.examine import DoctorConfig, examine
from lerobot_smoothvla.evaluation.evaluate import without_nan
from lerobot_smoothvla.evaluation.report import prepare_output_dir, write_info
from lerobot_smoothvla.grpo.configuration import DOCTOR


def run(config: DoctorConfig) -> int:
    """Show every check as it is made, and keep them in `doctor.json` where `--output_dir` is given.

    Returns:
        1 if a check failed, else 0.
    """
    config.policy = actor_config_from_cli("policy", config.env)
    if config.policy is None:
        raise ValueError("There is nothing to examine: pass --policy.path=CHECKPOINT.")
    coming = examine(config)
    if config.output_dir is not None:
        prepare_output_dir(config.output_dir, DOCTOR)
    checks = []
    for check in coming:
        print(check.row(), flush=True)
        checks.append(check)
    counts = Counter(check.verdict for check in checks)
    print(f"\n{counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail, {counts['skip']} skip")
    if config.output_dir is not None:
        info = {"policy": str(config.policy.pretrained_path), "checks": [asdict(check) for check in checks]}
        print(f"Written to {write_info(config.output_dir, without_nan(info), DOCTOR)}")
    return 1 if counts["fail"] else 0


def main() -> int:
    """Entry of `smoothvla doctor`."""
    return run(parse(DoctorConfig))
