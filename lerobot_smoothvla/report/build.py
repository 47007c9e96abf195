"""The page of runs and evaluations, once or for as long as a run goes on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot_smoothvla.redaction import redacted
from lerobot_smoothvla.report.comparison import comparison_section, comparison_sentences
from lerobot_smoothvla.report.markup import Html, details, facts_list, tag
from lerobot_smoothvla.report.page import document, write_page
from lerobot_smoothvla.report.runs import (
    EvaluationRun,
    TrainingRun,
    arms,
    evaluated_policies,
    read_runs,
    short_labels,
)
from lerobot_smoothvla.report.starts import VideoBudget, starts_section
from lerobot_smoothvla.report.training import training_section
from lerobot_smoothvla.report.words import training_words

REPORT = "report.html"
_POLL_S = 1.0


@dataclass
class ReportConfig:
    """What to report.

    Attributes:
        runs: Output directories of `smoothvla grpo`, `eval` and `demo`.
        output: The page; `report.html` in the first of them where left out.
        live: Whether to write the page again after each iteration, until the runs have done theirs.
        max_video_mb: What the videos in the page may take together, MB.
    """

    runs: list[Path] = field(default_factory=list)
    output: Path | None = None
    live: bool = False
    max_video_mb: float = 20.0

    def __post_init__(self) -> None:
        """Reject what nothing can be made of.

        Raises:
            ValueError: If no directory is named, or the size is negative.
        """
        if not self.runs:
            raise ValueError(
                "There is nothing to report: name output directories, `smoothvla report DIR...`."
            )
        if self.max_video_mb < 0:
            raise ValueError(f"`max_video_mb` should be at least 0, got {self.max_video_mb}.")

    @property
    def page(self) -> Path:
        """Where the page goes."""
        return self.output or self.runs[0] / REPORT


def write_report(config: ReportConfig) -> Path:
    """Write the page once.

    Raises:
        FileNotFoundError: If a directory holds nothing to report.
        ValueError: If something cannot be read, or the runs have done no iteration yet.
        OSError: If the page cannot be written.
    """
    training, evaluations = read_runs(config.runs)
    if not evaluations and not any(run.metrics for run in training):
        raise ValueError(
            f"The runs in {', '.join(map(str, config.runs))} have done no iteration yet; come back later, or "
            "pass --live=true, which waits for the first."
        )
    write_page(config.page, report_page(training, evaluations, config.max_video_mb))
    return config.page


def follow(config: ReportConfig) -> Path:
    """Write the page after each iteration until the runs have done theirs; interrupted, leave it still.

    Raises:
        As `write_report` does, but that runs may have done nothing yet.
    """
    training, evaluations = read_runs(config.runs)
    shown: Any = None
    try:
        while not all(run.finished for run in training):
            state = [len(run.metrics) for run in training], [run.path for run in evaluations]
            if state != shown:
                write_page(config.page, report_page(training, evaluations, config.max_video_mb, live=True))
                shown = state
            time.sleep(_POLL_S)
            training, evaluations = read_runs(config.runs)
    finally:
        write_page(config.page, report_page(training, evaluations, config.max_video_mb))
    return config.page


def report_page(
    training: Sequence[TrainingRun],
    evaluations: Sequence[EvaluationRun],
    max_video_mb: float,
    live: bool = False,
) -> str:
    """The page."""
    runs: list[TrainingRun | EvaluationRun] = [*training, *evaluations]
    labels = short_labels([str(run.path) for run in runs])
    policies = evaluated_policies(evaluations)
    groups = arms(training)
    said = [tag("li", training_words(label, group)) for label, group in groups.items()]
    said += comparison_sentences(policies)
    parts: list[Html] = []
    if live:
        parts.append(tag("p", "The run goes on, and this page loads itself again.", class_="live"))
    parts += [tag("h2", "Summary"), tag("ul", *said, class_="words")]
    if any(run.metrics for run in training):
        parts += training_section(groups)
    if policies:
        parts += comparison_section(policies)
        parts += starts_section(policies, VideoBudget(max_video_mb))
    parts += _origin(labels, runs)
    title = ", ".join(labels) if len(labels) <= 3 else f"{len(training)} runs, {len(evaluations)} evaluations"
    return document(f"SmoothVLA: {title}", parts, live)


def _origin(labels: Sequence[str], runs: Sequence[TrainingRun | EvaluationRun]) -> list[Html]:
    """Config and provenance of everything."""
    parts = [tag("h2", "Where it comes from")]
    for label, run in zip(labels, runs, strict=True):
        parts.append(tag("h3", label))
        facts = [("directory", str(run.path))]
        if isinstance(run, EvaluationRun):
            facts += [(f"{name}, checkpoint", path) for name, path in run.checkpoints.items()]
        for line in run.provenance:
            facts += [(name, redacted(str(value))) for name, value in line.items()]
        if not run.provenance:
            facts.append(("command, versions, machine", "not recorded by the version that made it"))
        parts.append(facts_list(facts))
        if isinstance(run, TrainingRun) and run.config:
            settings = [(name, redacted(str(value))) for name, value in sorted(run.config.items())]
            parts.append(details("Settings", facts_list(settings)))
    return parts
