"""Evaluated policies against one another: success and jerk overall, paired, and by task."""

from collections.abc import Sequence

from lerobot_smoothvla.evaluation.evaluate import Summary
from lerobot_smoothvla.evaluation.report import comparison_rows, number, spelt, task_rows
from lerobot_smoothvla.evaluation.statistics import Interval
from lerobot_smoothvla.report.figures import Point, bar_chart, legend, scatter_chart
from lerobot_smoothvla.report.markup import Html, details, table, tag
from lerobot_smoothvla.report.runs import Policy, starts_of
from lerobot_smoothvla.report.words import comparison_words, policy_words

_ONE_IN_TWENTY = (
    "Each is a 95 % interval by itself: of twenty differences that are none, about one excludes 0."
)


def baseline_of(policy: Policy, policies: Sequence[Policy]) -> Policy | None:
    """What a policy is compared with: that of its own evaluation, else the first one on the same starts."""
    same = [other for other in policies if starts_of(other.evaluation) == starts_of(policy.evaluation)]
    compared = policy.run.checkpoints.get("compare") if policy.name == "policy" else None
    own = [other for other in same if other.run.checkpoints[other.name] == compared]
    baseline = (own or same)[0]
    return None if baseline is policy else baseline


def comparison_section(policies: Sequence[Policy]) -> list[Html]:
    """All policies in a table and a chart, each difference, and the tasks."""
    summaries = [policy.evaluation.summary() for policy in policies]
    parts = [tag("h2", "Evaluation"), legend([policy.label for policy in policies])]
    parts += [_overview(policies, summaries), *_pareto(policies, summaries)]
    pairs = [(policy, baseline_of(policy, policies)) for policy in policies]
    parts += [_difference(policy, baseline) for policy, baseline in pairs if baseline is not None]
    if any(baseline is not None for _, baseline in pairs):
        parts.append(tag("p", _ONE_IN_TWENTY, class_="note"))
    return parts + _tasks(policies)


def comparison_sentences(policies: Sequence[Policy]) -> list[Html]:
    """Of the summary: what each policy did, and what changed."""
    said = [tag("li", policy_words(policy)) for policy in policies]
    for policy in policies:
        if (baseline := baseline_of(policy, policies)) is not None:
            changes = comparison_words(baseline.evaluation, policy.evaluation)
            heading = f"{policy.label} minus {baseline.label}:"
            said.append(tag("li", heading, tag("ul", *(tag("li", change) for change in changes))))
    return said


def non_dominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (jerk, success) than which no other one has both less jerk and more success."""
    return [
        index
        for index, (jerk, success) in enumerate(points)
        if not any(j <= jerk and s >= success and (j, s) != (jerk, success) for j, s in points)
    ]


def _overview(policies: Sequence[Policy], summaries: Sequence[Summary]) -> Html:
    rows = [
        [policy.label, str(summary.n_episodes), spelt(summary.success_rate)]
        + [spelt(summary.terms.get(term)) for term in ("jerk_rms", "ldlj", "time_to_success")]
        for policy, summary in zip(policies, summaries, strict=True)
    ]
    unit = policies[0].evaluation.unit
    headers = ["policy", "starts", "success", f"jerk RMS, {unit}/s³", "LDLJ", "time to success, s"]
    return table("Mean over all episodes with its 95 % interval", headers, rows)


def _pareto(policies: Sequence[Policy], summaries: Sequence[Summary]) -> list[Html]:
    jerks: list[tuple[int, Interval]] = [
        (index, jerk) for index, s in enumerate(summaries) if (jerk := s.terms.get("jerk_rms")) is not None
    ]
    if not jerks:
        return []
    points = [Point(policies[i].label, jerk, summaries[i].success_rate, i) for i, jerk in jerks]
    unit = policies[0].evaluation.unit
    chart = scatter_chart(
        "Success against jerk: up and to the left is better", f"jerk RMS, {unit}/s³", "success rate", points
    )
    front = non_dominated([(point.x.estimate, point.y.estimate) for point in points])
    note = (
        f"Nothing has both less jerk and more success than {_listed([points[i].label for i in front])} (by "
        "the estimates; intervals that overlap may hide another order). Jerk is that of all episodes, "
        "failures included, and falls when a policy slows down."
    )
    if len({starts_of(policy.evaluation) for policy in policies}) > 1:
        note += " Not all of them played the same starts, so places in this chart compare starts as well."
    return [tag("div", chart, class_="wide"), tag("p", note, class_="note")]


def _difference(policy: Policy, baseline: Policy) -> Html:
    headers, *rows = comparison_rows(baseline.evaluation, policy.evaluation)
    return table(f"{policy.label} minus {baseline.label} (the baseline), paired by start", headers, rows)


def _tasks(policies: Sequence[Policy]) -> list[Html]:
    of_policy = {policy.label: policy.evaluation.by_task() for policy in policies}
    tasks = sorted({task for tasks in of_policy.values() for task in tasks}, key=_task_order)
    summaries = {
        task: {
            label: by_task[task].summary() if task in by_task else None
            for label, by_task in of_policy.items()
        }
        for task in tasks
    }
    success = {
        task: {label: summary.success_rate if summary else None for label, summary in row.items()}
        for task, row in summaries.items()
    }
    jerk = {
        task: {label: summary.terms.get("jerk_rms") if summary else None for label, summary in row.items()}
        for task, row in summaries.items()
    }
    unit = policies[0].evaluation.unit
    rows = [[task, *(_task_cell(summary) for summary in row.values())] for task, row in summaries.items()]
    charts = [
        bar_chart("Success by task", "success rate", success),
        bar_chart("Jerk RMS by task", f"jerk RMS, {unit}/s³", jerk),
    ]
    return [
        tag("h2", "Tasks"),
        table(f"Success (starts), and jerk RMS in {unit}/s³", ["task", *of_policy], rows),
        tag("div", *charts, class_="charts"),
        details("Every measure by task", *(_all_measures(policy) for policy in policies)),
    ]


def _task_cell(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    jerk = summary.terms.get("jerk_rms")
    rate = f"{summary.n_successes}/{summary.n_episodes}"
    return f"{rate}, {number(jerk.estimate if jerk else None)}"


def _all_measures(policy: Policy) -> Html:
    headers, *rows = task_rows(policy.evaluation)
    return table(policy.label, headers, rows)


def _task_order(task: str) -> tuple[str, int]:
    suite, _, index = task.rpartition("/")
    return suite, int(index)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
