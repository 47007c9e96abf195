"""What a run's directory and the Hub know about a policy, for its card."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from lerobot.configs.train import TRAIN_CONFIG_NAME
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from lerobot_smoothvla.evaluation.report import EVAL_INFO
from lerobot_smoothvla.hub.card import CardFacts, Measured, Source
from lerobot_smoothvla.report.runs import EvaluationRun, TrainingRun, read_runs


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The run and the checkpoint that a path stands for.

    Args:
        path: A run of `smoothvla grpo`, for its last checkpoint, or one of its checkpoints.

    Returns:
        The run's directory, and the checkpoint's `pretrained_model`.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
    """
    inner = PRETRAINED_MODEL_DIR
    path = path.absolute()
    places = {
        path: path.parent.parent.parent,
        path / inner: path.parent.parent,
        path / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / inner: path,
    }
    for checkpoint, run in places.items():
        if (checkpoint / "config.json").is_file() and checkpoint.parent.parent.name == CHECKPOINTS_DIR:
            return run, checkpoint
    raise FileNotFoundError(
        f"There is no checkpoint to push in '{path}': it should be the output directory of a `smoothvla "
        f"grpo` run, or one of its checkpoints like {path / CHECKPOINTS_DIR / '000010'}."
    )


def card_facts(
    api: HfApi,
    repo_id: str,
    source: Path,
    evaluations: Sequence[Path] = (),
    revision: str | None = None,
    base_repo_id: str | None = None,
) -> CardFacts:
    """Look them up.

    Args:
        api: The Hub, which is asked for base model, dataset and licences.
        repo_id: Where to.
        source: The run, or one of its checkpoints.
        evaluations: Output directories of `smoothvla eval` for that checkpoint.
        revision: Branch of the Hub.
        base_repo_id: Where the base is, if it is not where the run found it.

    Raises:
        FileNotFoundError: If run, checkpoint or an evaluation is not there.
        ValueError: If one of them cannot be read, or an evaluation is of another checkpoint.
    """
    run, checkpoint = find_checkpoint(source)
    training = next(one for one in read_runs([run])[0] if one.path == run)
    found = read_runs(evaluations)[1] if evaluations else []
    measured = [_measured(one, checkpoint, training.config["policy.pretrained_path"]) for one in found]
    start = training.provenance[0] if training.provenance else {}
    ancestor, dataset = _ancestors(training)
    base = _info(api, base_repo_id or ancestor)
    if dataset is None and base and base.card_data:
        dataset = next(iter(_listed(base.card_data.get("datasets"))), None)
    iterations = int(checkpoint.parent.resolve().name)
    return CardFacts(
        repo_id=repo_id,
        policy=read_policy(checkpoint),
        settings=training.config,
        iterations=iterations,
        command=start.get("command"),
        versions=start.get("versions"),
        base=_source(base),
        dataset=_source(_info(api, dataset, "dataset")),
        dataset_name=dataset,
        evaluations=measured,
        metrics=[line for line in training.metrics if line["iteration"] <= iterations],
        unit=training.unit,
        revision=revision,
    )


def read_policy(checkpoint: Path) -> dict[str, Any]:
    """The config of a checkpoint's policy."""
    return json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))


def _measured(run: EvaluationRun, checkpoint: Path, warm_start: str) -> Measured:
    """An evaluation of this checkpoint; that of another one would be a false claim."""
    evaluated = Path(run.checkpoints["policy"])
    newer = (run.path / EVAL_INFO).stat().st_mtime >= (checkpoint / "config.json").stat().st_mtime
    if evaluated.resolve() != checkpoint.resolve() or not newer:
        raise ValueError(
            f"The evaluation '{run.path}' is of '{evaluated}'{'' if newer else ' as it was earlier'}, not of "
            f"the checkpoint that is pushed, '{checkpoint}'; evaluate that one with `smoothvla eval "
            f"--policy.path={checkpoint}`, from the same directory."
        )
    shift = json.loads((run.path / EVAL_INFO).read_text(encoding="utf-8")).get("shift")
    conditions = [f"{shift['kind']} shifted by {shift['magnitude']} {shift['unit']}"] if shift else []
    if run.filters["policy"] != "none":
        conditions.append(f"actions through the filter `{run.filters['policy']}`")
    names = {Path(warm_start).resolve(): "the warm start", checkpoint.resolve(): "this policy itself"}
    baseline = names.get(Path(run.checkpoints.get("compare", "")).resolve(), "another checkpoint")
    if run.filters.get("compare", "none") != "none":
        baseline += f" with its actions through the filter `{run.filters['compare']}`"
    return Measured(run.results["policy"], run.results.get("compare"), baseline, ", ".join(conditions))


def _ancestors(training: TrainingRun) -> tuple[str | None, str | None]:
    """The nearest ancestor that is no directory of this machine, and the first dataset on the way to it."""
    path, dataset, seen = training.config.get("policy.pretrained_path"), None, set()
    while path and Path(path).is_dir() and Path(path).resolve() not in seen:
        seen.add(Path(path).resolve())
        file = Path(path) / TRAIN_CONFIG_NAME
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        dataset = dataset or (config.get("dataset") or {}).get("repo_id")
        path = (config.get("policy") or {}).get("pretrained_path")
    return (None if path and Path(path).is_dir() else path), dataset


def _info(api: HfApi, repo_id: str | None, repo_type: str = "model") -> Any:
    """What the Hub has by that name; None where it has nothing, or does not say."""
    try:
        return api.repo_info(repo_id, repo_type=repo_type) if repo_id else None
    except (OSError, httpx.HTTPError, HFValidationError):
        return None


def _source(info: Any) -> Source | None:
    return info and Source(info.id, info.card_data and info.card_data.get("license"))


def _listed(value: Any) -> list[str]:
    """A card names one dataset as a string, several as a list."""
    return [value] if isinstance(value, str) else list(value or [])
