"""Group selectors: `policy=smoothvla env=libero` on a command line, rewritten to LeRobot's flags.

A selector has no leading dashes, which no LeRobot command accepts by itself, so nothing of LeRobot's own
syntax changes. Presets go in front of all other flags: what the user wrote wins.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lerobot_smoothvla.presets import GROUPS, preset_flags, preset_names

LIBERO_ON_THE_HUB = "HuggingFaceVLA/libero"
SCRIPTED_SUITES = ("libero_object", "libero_spatial")
DATASETS = ("hub", "scripted")
ALGORITHMS = ("grpo",)

_COMMAND_GROUPS = {
    "lerobot-train": (*GROUPS, "dataset", "algorithm"),
    "lerobot-eval": GROUPS,
    "lerobot-rollout": ("policy",),
    "lerobot-record": (),
}
_SELECTOR = re.compile(r"(policy|env|dataset|algorithm)=(.+)")
_HUB_TIMEOUT_S = 5.0


def lerobot_command(program: str) -> str | None:
    """The LeRobot command that `program` (`sys.argv[0]`) is, e.g. `lerobot-train`, or None."""
    name = Path(program).stem.replace("_", "-")
    return name if name in _COMMAND_GROUPS else None


def command_groups(command: str) -> tuple[str, ...]:
    """The groups that `command` takes; `smoothvla`'s own commands take presets alone."""
    return _COMMAND_GROUPS.get(command, GROUPS)


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for help only."""
    return "--help" in arguments or "-h" in arguments


def help_line() -> str:
    """What the selectors take, for a command's `--help`."""
    policies, envs = (", ".join(preset_names(group)) for group in GROUPS)
    return (
        f"SmoothVLA: `lerobot-train policy=NAME env=NAME`, with policies {policies}; environments {envs}; "
        f"dataset={'|'.join(DATASETS)}; algorithm={'|'.join(ALGORITHMS)}."
    )


def split_selectors(command: str, arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The selectors of a command line by group, and the other arguments in their order.

    Raises:
        ValueError: If a group is given twice, or `command` does not take it.
    """
    selected: dict[str, str] = {}
    rest: list[str] = []
    groups = command_groups(command)
    for index, argument in enumerate(arguments):
        previous = arguments[index - 1] if index else ""
        is_value = previous.startswith("--") and "=" not in previous and previous != "--help"
        match = None if is_value else _SELECTOR.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        group, name = match.groups()
        if group not in groups:
            takes = ", ".join(f"{group}=" for group in groups) or "no group selector"
            raise ValueError(f"`{command}` does not take `{argument}`; it takes {takes}.")
        if group in selected:
            raise ValueError(f"`{group}=` should be given once, got `{selected[group]}` and `{name}`.")
        selected[group] = name
    return selected, rest


def flag_value(flag: str, arguments: Sequence[str]) -> str | None:
    """Value of `--flag=value` or `--flag value`, the last one, or None."""
    value = None
    for index, argument in enumerate(arguments):
        if argument.startswith(f"--{flag}="):
            value = argument.removeprefix(f"--{flag}=")
        elif argument == f"--{flag}" and index + 1 < len(arguments):
            value = arguments[index + 1]
    return value


def expand(command: str, arguments: Sequence[str]) -> list[str]:
    """A command line without selectors that means the same, with what was left out filled in and printed.

    A command line without selectors comes back as it is.

    Args:
        command: `lerobot-train`, `lerobot-eval`, ... or `smoothvla <command>`.
        arguments: The command line after the program's name.

    Raises:
        ValueError: If a preset is unknown (the message lists those there are), or contradicts a flag.
        ChildProcessError: If the scripted dataset was needed and could not be recorded.
    """
    selected, rest = split_selectors(command, arguments)
    if not selected:
        return rest
    for group in GROUPS:
        if group in selected and flag_value(f"{group}.path", rest) is not None:
            raise ValueError(
                f"`{group}={selected[group]}` and `--{group}.path` both say what the {group} is; give one."
            )
    flags = [flag for group in GROUPS if group in selected for flag in preset_flags(group, selected[group])]
    expanded = [*flags, *rest]
    added: list[str] = []
    if command == "lerobot-train" and not wants_help(rest) and flag_value("config_path", rest) is None:
        added = _training_defaults(expanded) + _dataset(selected.get("dataset"), expanded)
    print("SmoothVLA:", " ".join([*flags, *added]), flush=True)
    return [*flags, *added, *rest]


def _training_defaults(arguments: Sequence[str]) -> list[str]:
    """No push without a place to push to, and no more loader processes than there are idle cores."""
    defaults = []
    if all(flag_value(f"policy.{flag}", arguments) is None for flag in ("push_to_hub", "repo_id")):
        defaults.append("--policy.push_to_hub=false")
    if flag_value("num_workers", arguments) is None:
        defaults.append(f"--num_workers={min(4, (os.cpu_count() or 1) - 1)}")
    return defaults


def _dataset(choice: str | None, arguments: Sequence[str]) -> list[str]:
    """Flags of the dataset: the one asked for, else LIBERO's on the Hub, else the scripted one.

    Raises:
        ValueError: If `choice` is unknown, or there is no such dataset of the environment.
        ChildProcessError: If recording the scripted dataset failed.
    """
    if choice is not None and choice not in DATASETS:
        raise ValueError(f"There is no `dataset={choice}`; `dataset=` takes {', '.join(DATASETS)}.")
    env = flag_value("env.type", arguments) or "libero"
    if env != "libero" and choice == "hub":
        raise ValueError(f"`dataset=hub` is LIBERO's; name one of '{env}' with `--dataset.repo_id=`.")
    if env != "libero" and choice is None:
        return []
    repo_id = flag_value("dataset.repo_id", arguments)
    if choice == "hub" or (choice is None and (repo_id is not None or _hub_dataset_in_reach())):
        return [] if repo_id is not None else [f"--dataset.repo_id={LIBERO_ON_THE_HUB}"]
    if choice is None:
        print(f"SmoothVLA: {LIBERO_ON_THE_HUB} is out of reach, taking scripted demonstrations.", flush=True)
    return _scripted_dataset(arguments)


def _hub_dataset_in_reach() -> bool:
    """Whether LIBERO's dataset is on this machine already, or the Hub answers for it."""
    import httpx
    from huggingface_hub import HfApi
    from lerobot.utils.constants import HF_LEROBOT_HOME

    if (HF_LEROBOT_HOME / LIBERO_ON_THE_HUB / "meta/info.json").is_file():
        return True
    try:
        HfApi().dataset_info(LIBERO_ON_THE_HUB, timeout=_HUB_TIMEOUT_S)
    except (OSError, httpx.HTTPError):
        return False
    return True


def _scripted_dataset(arguments: Sequence[str]) -> list[str]:
    """Flags of the scripted demonstrations, recorded now unless they exist.

    Raises:
        ValueError: If there is no scripted expert for the suite.
        ChildProcessError: If recording failed.
    """
    from lerobot.utils.constants import HF_LEROBOT_HOME

    env, task = _scripted_tasks(arguments)
    ids = flag_value("env.task_ids", arguments)
    name = "_".join([task.replace(",", "_"), *re.findall(r"\d+", ids or "")])
    repo_id = flag_value("dataset.repo_id", arguments) or f"smoothvla/{name}_scripted"
    root = flag_value("dataset.root", arguments) or str(HF_LEROBOT_HOME / repo_id)
    flags = [f"--dataset.repo_id={repo_id}", f"--dataset.root={root}"]
    if not (Path(root) / "meta/info.json").is_file():
        record = [sys.executable, "-m", "lerobot_smoothvla.cli.main", "demos", f"--env.type={env}"]
        record += [f"--env.task={task}", *flags]
        record += [] if ids is None else [f"--env.task_ids={ids}"]
        print("SmoothVLA: recording demonstrations first:", " ".join(record[3:]), flush=True)
        if subprocess.run(record, check=False).returncode != 0:
            raise ChildProcessError(
                f"The scripted demonstrations could not be recorded into {root}; see above."
            )
    return flags


def _scripted_tasks(arguments: Sequence[str]) -> tuple[str, str]:
    """Type of environment and task of the scripted demonstrations: of LIBERO one suite.

    Raises:
        ValueError: If there is no scripted expert.
    """
    env, task = flag_value("env.type", arguments) or "libero", flag_value("env.task", arguments)
    if env == "metaworld" and task:
        return env, task
    if env not in ("libero", "metaworld"):
        raise ValueError(
            f"There are scripted demonstrations for libero and metaworld only, got `--env.type={env}`; "
            "give a dataset with `--dataset.repo_id=`."
        )
    suites = (task or SCRIPTED_SUITES[0]).split(",")
    suite = next((suite for suite in SCRIPTED_SUITES if suite in suites), None)
    if suite is None:
        raise ValueError(
            f"There are scripted demonstrations for {', '.join(SCRIPTED_SUITES)} only, got `--env.task="
            f"{','.join(suites)}`; give a dataset with `--dataset.repo_id=`."
        )
    return env, suite


def pop_algorithm(command: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The `algorithm=` of a command line, or None, and the command line without it.

    Raises:
        ValueError: If there is no such algorithm.
    """
    selected, _ = split_selectors(command, arguments)
    algorithm = selected.get("algorithm")
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise ValueError(f"There is no `algorithm={algorithm}`; `algorithm=` takes {', '.join(ALGORITHMS)}.")
    return algorithm, [argument for argument in arguments if argument != f"algorithm={algorithm}"]


def starts_libero(arguments: Sequence[str]) -> bool:
    """Whether a command line without selectors starts LIBERO: `--env.type=libero`, or an include of it."""
    return flag_value("env_eval_freq", arguments) != "0" and env_type(arguments) == "libero"


def env_type(arguments: Sequence[str]) -> str | None:
    """The type of environment that a command line without selectors names, in a file too; None for none.

    Looked for in `--env.type`, an include, `--config_path`, and the run that `--resume=true` goes on with.
    """
    if (named := flag_value("env.type", arguments)) is not None:
        return named
    include, config_path = flag_value("env", arguments) or "", flag_value("config_path", arguments)
    if include.startswith("include "):
        return _env_type_in(Path(include.removeprefix("include ")))
    if config_path is not None:
        return _env_type_in(Path(config_path), "env")
    output_dir = flag_value("output_dir", arguments)
    last = Path(output_dir or "") / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    return _env_type_in(last, "env") if flag_value("resume", arguments) else None


def _env_type_in(file: Path, entry: str | None = None) -> str | None:
    """The `type` in a YAML or JSON file, or in an entry of it; None where there is none."""
    import yaml

    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        return (settings[entry] if entry else settings)["type"]
    except (OSError, yaml.YAMLError, KeyError, TypeError, RecursionError):
        return None
