"""What output directories hold: GRPO runs, evaluations, and demos with both."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from lerobot.configs.train import TRAIN_CONFIG_NAME
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import CHECKPOINTS_DIR, PRETRAINED_MODEL_DIR

from lerobot_smoothvla.checkpoint_safety import WANDB, require_inside
from lerobot_smoothvla.envs.adapters import env_adapter
from lerobot_smoothvla.episode import Embodiment, Start
from lerobot_smoothvla.evaluation.evaluate import Evaluation
from lerobot_smoothvla.evaluation.report import EVAL_INFO, VIDEOS, read_evaluation, video_paths
from lerobot_smoothvla.grpo.trainer import METRICS
from lerobot_smoothvla.provenance import PROVENANCE
from lerobot_smoothvla.settings import flattened

_NOT_THE_ARM = {
    *("seed", "output_dir", "job_name", "resume", "checkpoint_path", "wandb", "n_workers", "num_workers"),
    *("steps", "save_freq", "log_freq", "policy.device", "policy.repo_id", "policy.push_to_hub"),
    *("algorithm.reward.reference", "algorithm.microbatch_size", "save_checkpoint_to_hub"),
}
"""Settings in which runs may differ and still repeat the same experiment."""
_FOLDERS_WITHOUT_MEANING = {CHECKPOINTS_DIR, PRETRAINED_MODEL_DIR}


@dataclass(frozen=True)
class TrainingRun:
    """The output of `smoothvla grpo`.

    Attributes:
        path: Its directory.
        metrics: The lines of its log, one an iteration; what was not measured is None.
        config: The settings of its first checkpoint, by dotted name.
        steps: Iterations that it shall do, None where no checkpoint says so.
        provenance: Of each time that it was started or resumed.
    """

    path: Path
    metrics: tuple[dict[str, Any], ...]
    config: dict[str, Any]
    steps: int | None
    provenance: tuple[dict[str, Any], ...]

    @property
    def finished(self) -> bool:
        """Whether it has done its iterations."""
        return self.steps is not None and bool(self.metrics) and self.metrics[-1]["iteration"] >= self.steps

    @property
    def unit(self) -> str:
        """Of the positions whose jerk was measured."""
        return _unit(self.config.get("env.type", "libero"))

    @property
    def arm(self) -> dict[str, Any]:
        """The settings that runs of the same arm share."""
        return {name: value for name, value in self.config.items() if not _NOT_THE_ARM & _prefixes(name)}


@dataclass(frozen=True)
class EvaluationRun:
    """The output of `smoothvla eval`.

    Attributes:
        path: Its directory.
        checkpoints: Paths of `policy` and, where two were compared, before it `compare`.
        filters: Type of the filter that each one's actions went through.
        results: Theirs.
        provenance: Of the command.
    """

    path: Path
    checkpoints: dict[str, str]
    filters: dict[str, str]
    results: dict[str, Evaluation]
    provenance: tuple[dict[str, Any], ...]

    def video(self, name: str, start: Start) -> Path | None:
        """The video of an episode, if there is one."""
        path = video_paths([start], 1, self.path / VIDEOS / name)[start]
        return path if path.is_file() else None


@dataclass(frozen=True)
class Policy:
    """A checkpoint that was evaluated.

    Attributes:
        label: Short name that no other one has.
        name: Its name in the evaluation, `policy` or `compare`.
        run: Of the evaluation.
    """

    label: str
    name: str
    run: EvaluationRun

    @property
    def evaluation(self) -> Evaluation:
        """What it did."""
        return self.run.results[self.name]


def read_runs(directories: Sequence[Path]) -> tuple[list[TrainingRun], list[EvaluationRun]]:
    """Whatever is in the directories, and one level below them, as a demo has it.

    Raises:
        FileNotFoundError: If one of them is not there, or holds neither a run nor an evaluation.
        ValueError: If something in them cannot be read, or leads out of them.
    """
    training, evaluations = [], []
    for directory in directories:
        found = [place for place in (directory, *_folders(directory)) if _holds_something(place)]
        if not found:
            raise FileNotFoundError(
                f"'{directory}' is no output directory of `smoothvla grpo`, `eval` or `demo`: neither it nor "
                f"a directory in it holds {METRICS}, {CHECKPOINTS_DIR}/ of GRPO or {EVAL_INFO}."
            )
        for place in found:
            require_inside(place, but=[WANDB])  # Videos go into the page, and the page into the directory.
        training += [_training_run(place) for place in found if _is_training(place)]
        evaluations += [_evaluation_run(place) for place in found if (place / EVAL_INFO).is_file()]
    return training, evaluations


def evaluated_policies(evaluations: Sequence[EvaluationRun]) -> list[Policy]:
    """Every policy of every evaluation, the same result of the same checkpoint and filter once.

    Raises:
        ValueError: If they were not measured in one unit, and so have no table in common.
    """
    of_unit = {result.unit: run.path for run in evaluations for result in run.results.values()}
    if len(of_unit) > 1:
        units = ", ".join(f"{unit} in '{path}'" for unit, path in of_unit.items())
        raise ValueError(f"Positions should be measured in one unit, got {units}; make a report of each.")
    found: dict[tuple[str, str], tuple[str, EvaluationRun]] = {}
    for run in evaluations:
        for name, result in run.results.items():
            filtered = run.filters[name] if run.filters[name] != "none" else ""
            # By its text, in which NaN equals NaN: `checkpoints/last` is another policy after more training.
            found.setdefault((str(Path(run.checkpoints[name], filtered)), repr(result)), (name, run))
    labels = short_labels([path for path, _ in found])
    return [Policy(label, name, run) for label, (name, run) in zip(labels, found.values(), strict=True)]


def starts_of(evaluation: Evaluation) -> frozenset[Start]:
    """The starts that were played."""
    return frozenset(measurement.start for measurement in evaluation.measurements)


def arms(runs: Sequence[TrainingRun]) -> dict[str, list[TrainingRun]]:
    """Runs that differ in nothing but their seed, by the settings that tell them from the others."""
    of_arm: dict[str, list[TrainingRun]] = {}
    for run in runs:
        of_arm.setdefault(json.dumps(run.arm, sort_keys=True), []).append(run)
    groups = list(of_arm.values())
    settings = [group[0].arm for group in groups]
    names = sorted({name for one in settings for name in one})
    differing = [name for name in names if len({json.dumps(one.get(name)) for one in settings}) > 1]
    paths = short_labels([str(group[0].path) for group in groups])
    labels = []
    for path, setting in zip(paths, settings, strict=True):
        told = [f"{name.removeprefix('algorithm.')}={setting.get(name)}" for name in differing]
        labels.append(", ".join(told) if 0 < len(told) <= 2 else path)
    return dict(zip(labels if len(set(labels)) == len(labels) else paths, groups, strict=True))


def short_labels(paths: Sequence[str]) -> list[str]:
    """The last folders of each path, as many as tell all of them apart; equal paths are numbered."""
    parts = [[part for part in Path(path).parts if part not in _FOLDERS_WITHOUT_MEANING] for path in paths]
    n_different = len({tuple(one) for one in parts})
    longest = max((len(one) for one in parts), default=1)
    for n in range(2, longest + 1):
        if len({tuple(one[-n:]) for one in parts}) == n_different:
            break
    else:
        n = longest
    labels: list[str] = []
    for one in parts:
        label = "/".join(one[-n:])
        numbered = (f"{label} ({number})" for number in count(2))
        labels.append(label if label not in labels else next(name for name in numbered if name not in labels))
    return labels


def read_lines(file: Path) -> tuple[dict[str, Any], ...]:
    """The JSON lines of a file, none if it is not there; the last one may be half written.

    Raises:
        ValueError: If another line is not JSON.
    """
    if not file.is_file():
        return ()
    lines = file.read_text(encoding="utf-8").splitlines()
    read = []
    for number, line in enumerate(lines, start=1):
        try:
            read.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"Line {number} of '{file}' should be JSON, got {line[:40]!r}.") from error
    return tuple(read)


def _folders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []


def _holds_something(directory: Path) -> bool:
    return _is_training(directory) or (directory / EVAL_INFO).is_file()


def _is_training(directory: Path) -> bool:
    """Whether it has a log, or is a GRPO run without one yet."""
    return (directory / METRICS).is_file() or "algorithm.group_size" in _first_config(directory)


def _configs(directory: Path) -> list[Path]:
    checkpoints = directory / CHECKPOINTS_DIR
    found = checkpoints.glob(f"[0-9]*/{PRETRAINED_MODEL_DIR}/{TRAIN_CONFIG_NAME}")
    return sorted(found, key=lambda file: int(file.parents[1].name))


def _read_config(file: Path) -> dict[str, Any]:
    return flattened(json.loads(file.read_text(encoding="utf-8")))


def _first_config(directory: Path) -> dict[str, Any]:
    """Of the warm start: a resumed run names its own checkpoint as its policy from then on."""
    files = _configs(directory)
    return _read_config(files[0]) if files else {}


def _training_run(directory: Path) -> TrainingRun:
    files, provenance = _configs(directory), read_lines(directory / PROVENANCE)
    return TrainingRun(
        directory,
        read_lines(directory / METRICS),
        _first_config(directory),
        _steps(provenance, files),
        provenance,
    )


def _steps(provenance: Sequence[Mapping[str, Any]], configs: Sequence[Path]) -> int | None:
    """What the last command asked for; the last checkpoint may be older than it."""
    if provenance and "steps" in provenance[-1]:
        return provenance[-1]["steps"]
    return _read_config(configs[-1])["steps"] if configs else None


def _evaluation_run(directory: Path) -> EvaluationRun:
    checkpoints, results = read_evaluation(directory)
    info = json.loads((directory / EVAL_INFO).read_text(encoding="utf-8"))
    filters = {name: (info[name].get("filter") or {}).get("type", "none") for name in results}
    return EvaluationRun(directory, checkpoints, filters, results, read_lines(directory / PROVENANCE))


def _unit(env_type: str) -> str:
    """Of the positions in a type of environment, `unit` where nobody says."""
    if env_type.startswith("libero"):
        return Embodiment().unit
    try:
        return env_adapter(EnvConfig.get_choice_class(env_type)()).embodiment.unit
    except (KeyError, ValueError, TypeError):
        return "unit"


def _prefixes(name: str) -> set[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = name.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
