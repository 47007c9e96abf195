"""A study as one page: all arms and filters over their seeds, the training, and the runs of one seed."""

from collections.abc import Mapping
from pathlib import Path

from lerobot_smoothvla.report.comparison import comparison_section
from lerobot_smoothvla.report.figures import Point, legend, scatter_chart
from lerobot_smoothvla.report.markup import Html, table, tag
from lerobot_smoothvla.report.page import document, write_page
from lerobot_smoothvla.report.runs import arms, evaluated_policies, read_runs
from lerobot_smoothvla.report.starts import VideoBudget, starts_section
from lerobot_smoothvla.report.training import training_section
from lerobot_smoothvla.study.plan import StudyConfig, stages, trials
from lerobot_smoothvla.study.results import (
    OURS,
    Cell,
    Key,
    cell_rows,
    comparison_rows,
    read_episodes,
    summarise,
)

PAGE = "report.html"


def write_study_page(config: StudyConfig) -> Path:
    """Write the page beside the episodes of `write_results`, and return its path.

    Raises:
        FileNotFoundError: If there are none.
        OSError: If it cannot be written.
    """
    cells, comparisons = summarise(read_episodes(config.directory))
    header, *rows = cell_rows(cells)
    parts = [tag("h2", "Arms"), table("Mean over seeds and starts with its 95 % interval", header, rows)]
    parts += _charts(cells)
    header, *rows = comparison_rows(comparisons)
    parts += [tag("h2", "Comparisons"), table("Paired by start and seed", header, rows)]

    runs = [config.directory / stage.name for stage in stages(config) if stage.independent and stage.done()]
    if runs:
        parts += training_section(arms(read_runs(runs)[0]))
    seed = config.plan.seeds[0]
    shown = [
        trial.output_dir(config.directory)
        for trial in trials(config.plan)
        if (trial.condition.name, trial.filter) == ("trained", "none") and trial.seed in (0, seed)
    ]
    policies = evaluated_policies(read_runs([path for path in shown if path.is_dir()])[1])
    if policies:
        parts.append(tag("p", f"From here on, the warm start and the runs of seed {seed}.", class_="note"))
        parts += [*comparison_section(policies), *starts_section(policies, VideoBudget(0))]
    page = config.directory / PAGE
    write_page(page, document(f"SmoothVLA: the study, {config.size}", parts))
    return page


def _charts(cells: Mapping[Key, Cell]) -> list[Html]:
    """Success against jerk: all arms in each condition, and each filtered arm beside ours."""
    parts = []
    for condition in dict.fromkeys(condition for condition, _, _ in cells):
        of_arms = {key[2]: cell for key, cell in cells.items() if key[:2] == (condition, "none")}
        parts += _pareto(f"every arm, {condition}", of_arms)
        for arm in dict.fromkeys(a for c, name, a in cells if c == condition and name != "none"):
            filtered = {
                f"{arm}+{name}": cell
                for (c, name, a), cell in cells.items()
                if (c, a) == (condition, arm) and name != "none"
            }
            parts += _pareto(
                f"{arm} through filters, {condition}",
                {name: of_arms[name] for name in (*OURS, arm) if name in of_arms} | filtered,
            )
    return parts


def _pareto(title: str, cells: Mapping[str, Cell]) -> list[Html]:
    points = [
        Point(label, cell.measures["jerk_rms_success"], cell.measures["success_rate"], style)
        for style, (label, cell) in enumerate(cells.items())
        if cell.measures["jerk_rms_success"] and cell.measures["success_rate"]
    ]
    if not points:
        return []
    title = f"Success against jerk, {title}: up and to the left is better"
    chart = scatter_chart(title, "jerk RMS of successes, m/s³", "success rate", points)
    return [legend(list(cells)), tag("div", chart, class_="wide")]
