"""The model card of a fine-tuned policy: data in, text out. What it does not know, it does not claim."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lerobot_smoothvla.evaluation.evaluate import Evaluation
from lerobot_smoothvla.evaluation.report import comparison_rows, markdown, overall_rows, task_rows
from lerobot_smoothvla.evaluation.statistics import Interval
from lerobot_smoothvla.redaction import redacted

PAPER, GRPO = "2603.13925", "2402.03300"
"""On arXiv."""
TITLE = (
    "SmoothVLA: Aligning Vision-Language-Action Models with Physical Constraints via Intrinsic Smoothness "
    "Optimization"
)
_METRICS = {
    "jerk_rms": "Jerk RMS of the measured position, {unit}/s³ (lower is smoother)",
    "ldlj": "Log dimensionless jerk (higher is smoother)",
    "sparc": "Spectral arc length (higher is smoother)",
}
_FOLDERS = re.compile(
    r"(?<![\w.:/~-])/(?:root|(?:home|Users)/[^/,]+)(?=$|[,\]])|(?<![\w.:/~-])/(?:[^/,:'\"\[\]]+/)+"
)
"""A home, or all of an absolute path but its last part."""
Picture = Literal["training", "evaluations"]
_CAPTIONS: dict[Picture, str] = {
    "training": "Success and jerk of the rollouts over the iterations, each with starts of its own",
    "evaluations": "Success against jerk, with 95 % intervals",
}


@dataclass(frozen=True)
class Source:
    """A model or dataset of the Hub that the policy comes from.

    Attributes:
        repo_id: Its name.
        licence: As its own card says; None where that says nothing.
    """

    repo_id: str
    licence: str | None = None


@dataclass(frozen=True)
class Measured:
    """An evaluation of the policy.

    Attributes:
        result: Its own.
        baseline: Of the policy that it was compared with on the same starts.
        baseline_name: Which one that was.
        condition: What was not as in training, e.g. "camera shifted by 0.05 m"; empty for nothing.
    """

    result: Evaluation
    baseline: Evaluation | None = None
    baseline_name: str = "another checkpoint"
    condition: str = ""


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from.

    Attributes:
        repo_id: Where the policy is pushed to.
        policy: Its config: `type`, `use_peft`, `input_features`, `output_features`, `tags`, `license`.
        settings: Of the run, by dotted name.
        iterations: That it has learnt.
        command: That started the run; None where nobody wrote it down.
        versions: Of the software that ran it.
        base: Where the weights began, as far as the Hub knows it.
        dataset: Of the demonstrations that the warm start learnt from, if it is on the Hub.
        dataset_name: How the warm start calls it, wherever it is.
        evaluations: Of this policy.
        metrics: Lines of the run's log, those of this policy's iterations.
        unit: Of the positions whose jerk was measured.
        revision: Branch that it is pushed to; None for main.
    """

    repo_id: str
    policy: Mapping[str, Any]
    settings: Mapping[str, Any]
    iterations: int
    command: str | None = None
    versions: str | None = None
    base: Source | None = None
    dataset: Source | None = None
    dataset_name: str | None = None
    evaluations: Sequence[Measured] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    unit: str = "m"
    revision: str | None = None

    @property
    def type(self) -> str:
        """Of the policy."""
        return self.policy["type"]

    @property
    def adapter(self) -> bool:
        """Whether it is an adapter alone, which needs its base."""
        return bool(self.policy.get("use_peft"))

    @property
    def env(self) -> str:
        """Type of the environment that it learnt in."""
        return self.settings["env.type"]

    @property
    def licence(self) -> str | None:
        """The one that the run names, else that of the base; nobody else can give one."""
        return self.policy.get("license") or (self.base.licence if self.base else None)

    @property
    def path_flags(self) -> str:
        """With which `lerobot-rollout` loads it."""
        revision = f" --policy.pretrained_revision={self.revision}" if self.revision else ""
        return f"--policy.path={self.repo_id}{revision}"


def picture_path(picture: Picture) -> str:
    """Where it is in the repository."""
    return f"figures/{picture}.png"


def model_card(facts: CardFacts, pictures: Iterable[Picture] = ()) -> ModelCard:
    """The card, with valid metadata and without a token or a directory of the machine.

    Args:
        facts: What is known.
        pictures: Those that are beside it, at their `picture_path`.

    Returns:
        Hugging Face's card; `str` of it is the README.
    """
    shown = {picture: f"![{_CAPTIONS[picture]}]({picture_path(picture)})" for picture in pictures}
    results = [_results(facts), *([shown["evaluations"]] if "evaluations" in shown else [])]
    training = [_training(facts), *([shown["training"]] if "training" in shown else [])]
    sections = [_summary(facts), *results, _use(facts), *training, _limits(facts), _CITATION]
    return ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def redact(command: str) -> str:
    """A command line without tokens, and with the last part of a directory alone, which says what it was."""
    words = [_FOLDERS.sub("…/", word) for word in shlex.split(redacted(command))]
    return " ".join(word if " " not in word else shlex.quote(word) for word in words)


def _metadata(facts: CardFacts) -> ModelCardData:
    results = [entry for measured in facts.evaluations for entry in _entries(facts, measured)]
    given: dict[str, Any] = {
        "license": facts.licence,
        "base_model": facts.base and facts.base.repo_id,
        "base_model_relation": facts.base and ("adapter" if facts.adapter else "finetune"),
        "datasets": [facts.dataset.repo_id] if facts.dataset else None,
        "model_name": facts.repo_id.rpartition("/")[2] if results else None,
        "eval_results": results or None,
    }
    own = ("robotics", "lerobot", facts.type, facts.env, "smoothvla", "grpo", "reinforcement-learning")
    return ModelCardData(
        library_name="lerobot",
        pipeline_tag="robotics",
        tags=list(dict.fromkeys([*own, *(facts.policy.get("tags") or [])])),
        **{name: value for name, value in given.items() if value is not None},
    )


def _entries(facts: CardFacts, measured: Measured) -> list[EvalResult]:
    """The `model-index` of one evaluation, whose intervals stand in the text."""
    summary, name = measured.result.summary(), _starts(measured)
    values: dict[str, tuple[Interval | None, str]] = {"success_rate": (summary.success_rate, "Success rate")}
    for term, title in _METRICS.items():
        values[term] = (summary.terms[term], title.format(unit=measured.result.unit))
    return [
        EvalResult(
            task_type="robotics",
            task_name="Robot manipulation",
            dataset_type=facts.env,
            dataset_name=name,
            dataset_config=name,
            metric_type=metric,
            metric_name=title,
            metric_value=round(interval.estimate, 4),
        )
        for metric, (interval, title) in values.items()
        if interval is not None
    ]


def _starts(measured: Measured) -> str:
    """Which starts an evaluation was on, in a line."""
    starts = [measurement.start for measurement in measured.result.measurements]
    suites = ", ".join(sorted({start.suite for start in starts}))
    tasks = len({start.task for start in starts})
    named = f"{suites}: {_count(tasks, 'task')}, {_count(len(starts), 'start')}"
    return f"{named}, {measured.condition}" if measured.condition else named


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _summary(facts: CardFacts) -> str:
    began = f"[{facts.base.repo_id}](https://huggingface.co/{facts.base.repo_id})" if facts.base else ""
    if revision := facts.settings.get("policy.pretrained_revision"):
        began += f" at `{revision}`"
    data = f"`{facts.dataset_name}`" if facts.dataset_name else "not recorded"
    if facts.dataset:
        data = f"[{facts.dataset.repo_id}](https://huggingface.co/datasets/{facts.dataset.repo_id})"
    rows = [
        ["", ""],
        ["base model", began or "a checkpoint that is not on the Hub"],
        ["demonstrations of the warm start", data],
        ["environment", f"`{facts.env}`, `{facts.settings.get('env.task')}`{_task_ids(facts)}"],
        ["reads", _features(facts, "input_features")],
        ["gives", _features(facts, "output_features")],
    ]
    what = "An adapter (PEFT) for a" if facts.adapter else "A"
    return (
        f"# {facts.repo_id.rpartition('/')[2]}\n\n"
        + dedent(f"""\
        {what} `{facts.type}` policy of [LeRobot](https://github.com/huggingface/lerobot), fine-tuned by
        reinforcement learning in simulation: GRPO ([arXiv:{GRPO}](https://arxiv.org/abs/{GRPO})) with a
        reward for solving the task and for moving smoothly, after the idea of SmoothVLA
        ([arXiv:{PAPER}](https://arxiv.org/abs/{PAPER})). It is not by that paper's authors.

        """)
        + markdown(rows).rstrip()
    )


def _task_ids(facts: CardFacts) -> str:
    ids = facts.settings.get("env.task_ids")
    return f", tasks {', '.join(map(str, ids))}" if ids else ""


def _features(facts: CardFacts, field: str) -> str:
    features = facts.policy.get(field) or {}
    return ", ".join(f"`{name}` {tuple(one['shape'])}" for name, one in features.items()) or "not recorded"


def _results(facts: CardFacts) -> str:
    if not facts.evaluations:
        return "## Results\n\nIt was pushed without an evaluation: whether it got better is not known."
    parts = ["## Results"]
    for measured in facts.evaluations:
        parts.append(f"### {_starts(measured)}")
        if measured.baseline is not None:
            name = measured.baseline_name
            parts.append(f"The baseline is {name}, from the same starts; the difference is paired by start:")
            parts.append(markdown(comparison_rows(measured.baseline, measured.result)).rstrip())
        parts += [markdown(rows(measured.result)).rstrip() for rows in (task_rows, overall_rows)]
    parts.append(
        "Success has Wilson's 95 % interval, means and differences a bootstrap's. Jerk RMS is lower where "
        "motion is smoother, and where it is slower; LDLJ and SPARC are higher where it is smoother, and do "
        "not pay for being slow. Measured by `smoothvla eval` in simulation."
    )
    return "\n\n".join(parts)


def _use(facts: CardFacts) -> str:
    task = facts.settings.get("env.task")
    ids = facts.settings.get("env.task_ids")
    task = f"{task} --env.task_ids={json.dumps(ids, separators=(',', ':'))}" if ids else task
    path, commands = facts.repo_id, ["pip install lerobot" + " peft" * facts.adapter]
    if facts.type == "smoothvla":
        commands[0] += "  # and the plugin lerobot_policy_smoothvla, which has this type"
    if facts.revision:  # `lerobot-eval` of LeRobot 0.6 would read config and processors of main.
        path = path.rpartition("/")[2]
        commands.append(f"hf download {facts.repo_id} --revision {facts.revision} --local-dir {path}")
    commands.append(f"lerobot-eval --policy.path={path} --env.type={facts.env} --env.task={task}")
    arm = dedent(f"""\
        lerobot-rollout --strategy.type=base {facts.path_flags} \\
            --robot.type=YOUR_ROBOT --robot.port=YOUR_PORT --robot.cameras="{{...}}" \\
            --task="WHAT TO DO" --duration=60""")
    parts = [
        "## How to load it",
        _shell("\n".join(commands)),
        "On an arm, whose state, actions and cameras have to be those of the table above:",
        _shell(arm),
    ]
    return "\n\n".join(parts)


def _shell(commands: str) -> str:
    return f"```bash\n{commands}\n```"


def _training(facts: CardFacts) -> str:
    names = {
        "algorithm.n_groups": "starts an iteration",
        "algorithm.group_size": "rollouts of each",
        "algorithm.lr": "learning rate",
        "algorithm.reward.signal": "smoothness signal",
        "algorithm.reward.weight": "weight λ of smoothness",
        "seed": "seed",
    }
    rows = [["setting", "value"], ["iterations", str(facts.iterations)]]
    rows += [[title, str(facts.settings[name])] for name, title in names.items() if name in facts.settings]
    parts = ["## Training", markdown(rows).rstrip()]
    if facts.command:
        parts.append(_shell(redact(facts.command)))
    if facts.versions:
        parts.append(f"{facts.versions}. All settings are in `train_config.json`.")
    return "\n\n".join(parts)


def _limits(facts: CardFacts) -> str:
    sources = {"base model": facts.base, "demonstrations": facts.dataset}
    licences = [
        f"{source.repo_id} ({kind}): {source.licence or 'none stated, see its page'}"
        for kind, source in sources.items()
        if source is not None
    ]
    return dedent(f"""\
        ## Limits

        - It was trained in simulation. Nothing here says how it moves a robot: begin slowly, ready to stop.
        - Smoothness is that of the measured position; rotation was not measured.
        - Figures hold for the starts, tasks and image size that they were measured with.

        ## Licence

        {"; ".join(licences) or "Neither base model nor demonstrations are on the Hub: none is known"}.""")


_CITATION = dedent(f"""\
    ## Citation

    ```bibtex
    @misc{{li2026smoothvla,
      title = {{{TITLE}}},
      author = {{Li, Jiashun and Shi, Xiaoyu and Xie, Hong and Shang, Mingsheng and Lu, Yun}},
      year = {{2026}}, eprint = {{{PAPER}}}, archivePrefix = {{arXiv}}
    }}
    ```""")
