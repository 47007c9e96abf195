"""What the doctor's measurements mean: numbers in, a verdict and what to do out.

Nothing is measured here. Units: s, bytes (shown as GB = 10⁹), m/s³ for jerk. A few episodes are all that
there is time for, so each rate stands with its n, and the verdicts on rollouts are hints.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from packaging.specifiers import SpecifierSet

Verdict = Literal["ok", "warn", "fail", "skip"]

LEROBOT = ">=0.6.1,<0.7"
DISTRIBUTION = "lerobot_policy_smoothvla"
EXACT, ROUNDED = 1e-5, 1e-3
"""|ratio − 1| before any update: what float32 reaches, and what may be called rounding."""
MANY_PARAMETERS = 300e6
LOST_STEPS = 0.1
"""Share of weights that a step may leave as they are."""
LONG_RUN = 24 * 3600.0

_WIDTH = 100
_INDENT = 21


@dataclass(frozen=True)
class Check:
    """One row of the doctor's table.

    Attributes:
        name: Of the check.
        verdict: `ok`, `warn` (the run would go on), `fail` (it would not, or would learn nothing), or `skip`.
        finding: What was found, with numbers and units.
        advice: What to do about it; empty where nothing is to be done or the finding says it.
        numbers: The finding's, for `doctor.json`.
    """

    name: str
    verdict: Verdict
    finding: str
    advice: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    def row(self) -> str:
        """The check as the terminal shows it."""
        text = _wrapped(self.finding) + (_wrapped(self.advice, "→ ") if self.advice else [])
        head = f"{self.verdict:<6}{self.name:<15}"
        return "\n".join([head + text[0], *(" " * _INDENT + line for line in text[1:])])


@dataclass(frozen=True)
class Outcome:
    """What some rollouts came to.

    Attributes:
        n: Episodes.
        successes: Of them.
        jerk_rms: Mean over those that moved, m/s³; NaN if none did.
    """

    n: int
    successes: int
    jerk_rms: float

    def __str__(self) -> str:
        """As the table shows it."""
        moved = "nothing moved" if math.isnan(self.jerk_rms) else f"jerk RMS {self.jerk_rms:.1f} m/s³"
        return f"{self.successes}/{self.n} solved, {moved}"


@dataclass(frozen=True)
class Cost:
    """What the doctor's rollouts and its update took.

    Attributes:
        steps_per_s: Control steps of all the run's workers.
        startup_s: Until the workers had built their simulators.
        steps: Control steps of an episode.
        chunks: Policy calls of an episode.
        chunk_s: Of an update, for one chunk once.
        update_chunks: How many were updated on.
        update_bytes: By which the memory of the learner's device grew in it, at most.
        worker_bytes: Of its own in the largest worker; 0 without workers.
        server_bytes: Of the process that workers are forked from, and share memory with; 0 without one.
        learner_bytes: Resident in this process, at most.
        episode_bytes: What is kept of an episode until the update.
    """

    steps_per_s: float
    startup_s: float
    steps: float
    chunks: float
    chunk_s: float
    update_chunks: int
    update_bytes: int
    worker_bytes: int
    server_bytes: int
    learner_bytes: int
    episode_bytes: float


@dataclass(frozen=True)
class Run:
    """The sizes of the run that is to come.

    Attributes:
        steps: Iterations.
        episodes: Of an iteration.
        epochs: Over an iteration's chunks.
        microbatch_size: Chunks at once.
        n_workers: Rollout processes.
    """

    steps: int
    episodes: int
    epochs: int
    microbatch_size: int
    n_workers: int


def versions(found: Mapping[str, str | None], uncompiled: Sequence[str] = ()) -> Check:
    """What is installed.

    Args:
        found: Versions of packages by name, None for what is missing.
        uncompiled: Those of which every process compiles the modules anew.
    """
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    verdict: Verdict = "fail"
    if not SpecifierSet(LEROBOT).contains(str(found["lerobot"]), prereleases=True):
        advice = f"This package works with lerobot{LEROBOT}: pip install 'lerobot{LEROBOT}'."
    elif missing := [name for name, version in found.items() if version is None]:
        advice = f"Install {', '.join(missing)}: pip install '{DISTRIBUTION}[libero]'."
    elif uncompiled:
        verdict = "warn"
        listed += f"; {', '.join(uncompiled)} without compiled modules"
        advice = (
            "Every process takes some ten seconds more to start: python -m compileall -q "
            "$(python -c 'import site; print(site.getsitepackages()[0])')"
        )
    else:
        verdict, advice = "ok", ""
    return Check("versions", verdict, listed, advice, dict(found))


def machine(device: str, gpu: str | None, n_cores: int, n_threads: int, n_workers: int, load: float) -> Check:
    """Where the run computes.

    Args:
        device: Of the policy.
        gpu: The first GPU's name, None without CUDA.
        n_cores: That this process may use.
        n_threads: Of torch in the learner.
        n_workers: Rollout processes of the run.
        load: Processes that ran or waited in the last minute, before the doctor's own.
    """
    finding = (
        f"device {device}, {gpu or 'no CUDA'}; {n_cores} cores, load {load:.1f}; "
        f"torch threads of the learner: {n_threads}; workers: {n_workers}"
    )
    advice = []
    if gpu is not None and device == "cpu":
        advice.append("Use the GPU: --policy.device=cuda.")
    if n_workers > n_cores:
        advice.append(f"More workers than cores are in each other's way: --n_workers={n_cores}.")
    if load > n_cores:
        advice.append("Others are at work here: the times below are upper bounds.")
    numbers = {
        "device": device,
        "gpu": gpu,
        "n_cores": n_cores,
        "n_threads": n_threads,
        "n_workers": n_workers,
        "load": load,
    }
    return Check("machine", "warn" if advice else "ok", finding, " ".join(advice), numbers)


def plugin(discovered: Sequence[str], policy_types: Sequence[str]) -> Check:
    """Whether LeRobot's own commands find the policy `smoothvla`.

    Args:
        discovered: Distributions that LeRobot takes for plugins.
        policy_types: That are registered.
    """
    numbers = {"discovered": list(discovered)}
    if DISTRIBUTION not in discovered:
        finding = f"LeRobot does not discover the distribution {DISTRIBUTION}; it finds {list(discovered)}."
        advice = "Install this package (`pip install -e .`): a copy on PYTHONPATH is not discovered."
        return Check("plugin", "fail", finding, advice, numbers)
    if "smoothvla" not in policy_types:
        finding = f"LeRobot discovers {DISTRIBUTION}, but the policy type `smoothvla` is not registered."
        advice = f"See why it cannot be imported: python -c 'import {DISTRIBUTION}'."
        return Check("plugin", "fail", finding, advice, numbers)
    return Check("plugin", "ok", f"{DISTRIBUTION} is discovered, `smoothvla` registered", numbers=numbers)


def checkpoint(policy_type: str, parts: Mapping[str, tuple[int, int]]) -> Check:
    """What of a checkpoint learns.

    Args:
        policy_type: LeRobot's name.
        parts: Trainable and all parameters of each part.
    """
    trainable, total = (sum(counts[i] for counts in parts.values()) for i in (0, 1))
    shares = [f"{part} {_millions(some)} of {_millions(whole)}" for part, (some, whole) in parts.items()]
    finding = (
        f"type {policy_type}; trainable {_millions(trainable)} of {_millions(total)} M parameters: "
        f"{', '.join(shares)}"
    )
    numbers = {"type": policy_type, "parts": {part: list(counts) for part, counts in parts.items()}}
    if trainable == 0:
        advice = "Nothing can learn: check the policy's freezing flags, as --policy.train_expert_only."
        return Check("checkpoint", "fail", finding, advice, numbers)
    if trainable == total > MANY_PARAMETERS:
        advice = (
            f"All of it learns: weights, gradients and Adam's moments take {_gb(16 * total)} GB in float32 "
            "before any activation. Freeze a part, as with --policy.train_expert_only=true."
        )
        return Check("checkpoint", "warn", finding, advice, numbers)
    return Check("checkpoint", "ok", finding, numbers=numbers)


def precision(dtypes: Mapping[str, int], unchanged: float, lr: float) -> Check:
    """Whether the optimizer's steps survive rounding.

    Args:
        dtypes: Trainable parameters of each type.
        unchanged: Share of them that stays the same when `lr`, Adam's first step, is taken off.
        lr: Learning rate.
    """
    listed = ", ".join(f"{_millions(count)} M {dtype}" for dtype, count in dtypes.items())
    finding = f"trainable: {listed}; a step of lr {lr:g} is rounded away in {unchanged:.0%} of the weights"
    numbers = {"dtypes": dict(dtypes), "unchanged": unchanged, "lr": lr}
    if unchanged > LOST_STEPS:
        advice = "Train in float32, or raise --algorithm.lr: what is rounded away is not learnt."
        return Check("precision", "warn", finding, advice, numbers)
    return Check("precision", "ok", finding, numbers=numbers)


def first_ratio(name: str, deviation: Mapping[str, float], n: int) -> Check:
    """Whether a replay before any update finds the probabilities of the sampling.

    Args:
        name: Of the check.
        deviation: |ratio − 1| of each way to replay.
        n: Chunks.
    """
    listed = ", ".join(f"{how} {value:.1e}" for how, value in deviation.items())
    finding = f"|ratio − 1| before any update: {listed} (n = {n} chunks)"
    numbers = {"deviation": dict(deviation), "n": n}
    # Not by the largest: a ratio that is no number is larger than none.
    if all(value <= EXACT for value in deviation.values()):
        return Check(name, "ok", finding, numbers=numbers)
    if all(value <= ROUNDED for value in deviation.values()):
        advice = f"More than float32 rounds ({EXACT:.0e}); watch `ratio_deviation` in the first iteration."
        return Check(name, "warn", finding, advice, numbers)
    advice = (
        f"It should be at most {ROUNDED:.0e}: sampling and replay do not compute the same, and every "
        "gradient is of the wrong ratio. Load the policy in float32, without autocast."
    )
    return Check(name, "fail", finding, advice, numbers)


def exploration(deployed: Outcome, exploring: Outcome, ratio: str, explores: bool) -> Check:
    """What exploring costs in success and smoothness.

    Args:
        deployed: Rollouts as in deployment.
        exploring: From the same starts, with the noise of `ratio`.
        ratio: An exact one.
        explores: Whether the run's own ratio is this one; else it rolls out what is deployed.
    """
    gap = f"as deployed {deployed}; exploring ({ratio}) {exploring}"
    numbers = {"ratio": ratio, "deployed": vars(deployed), "exploring": vars(exploring)}
    if not explores:
        finding = f"no gap: flow_matching rolls out what is deployed. For comparison: {gap}"
        return Check("exploration", "ok", finding, numbers=numbers)
    costly = exploring.successes / exploring.n < deployed.successes / deployed.n / 2
    if costly or exploring.jerk_rms > 2 * deployed.jerk_rms:
        what = "more than half of the successes" if costly else "more than twice the jerk"
        advice = (
            f"Exploring costs {what}: lower --algorithm.noise_level, correlate the noise along the chunk "
            "(--algorithm.noise_length), or leave --algorithm.ratio=flow_matching to a flow policy."
        )
        return Check("exploration", "warn", gap, advice, numbers)
    return Check("exploration", "ok", gap, numbers=numbers)


def mixed_groups(groups: Sequence[Sequence[bool]], smoothness_weight: float) -> Check:
    """Whether success tells the rollouts of a start apart.

    Args:
        groups: Success of each rollout of each start.
        smoothness_weight: λ of the run's reward.
    """
    mixed = sum(any(group) and not all(group) for group in groups)
    solved = ", ".join(f"{sum(group)}/{len(group)}" for group in groups)
    finding = f"{mixed} of {len(groups)} starts both solved and failed (solved: {solved})"
    numbers = {"mixed": mixed, "n": len(groups), "solved": [sum(group) for group in groups]}
    if mixed:
        return Check("mixed groups", "ok", finding, numbers=numbers)
    flat = [success for group in groups for success in group]
    if not any(flat):
        advice = (
            "Without a success there is nothing to learn: train the warm start longer, choose tasks that it "
            "solves sometimes (--env.task_ids), or look at more starts (--doctor.n_starts)."
        )
    elif not all(flat):
        advice = "Each start is either solved or not: raise --algorithm.group_size, and look at more starts."
    elif smoothness_weight > 0:
        advice = "All solved: only smoothness is left to learn here. For success, choose harder tasks."
    else:
        advice = "All solved and no reward for smoothness: nothing to learn. Raise --algorithm.reward.weight."
    return Check("mixed groups", "warn", finding, advice, numbers)


def time(cost: Cost, run: Run) -> Check:
    """How long the run takes, if every group has something to teach."""
    rollout_s = run.episodes * cost.steps / cost.steps_per_s
    update_s = run.episodes * cost.chunks * run.epochs * cost.chunk_s
    run_s = cost.startup_s + run.steps * (rollout_s + update_s)
    finding = (
        f"rollouts {cost.steps_per_s:.0f} steps/s with {run.n_workers} workers, update "
        f"{1 / cost.chunk_s:.1f} chunks/s; an iteration of {run.episodes} episodes {_duration(rollout_s)} "
        f"and {_duration(update_s)} for its update; the run of {run.steps} {_duration(run_s)}"
    )
    numbers = {
        "steps_per_s": cost.steps_per_s,
        "chunks_per_s": 1 / cost.chunk_s,
        "startup_s": cost.startup_s,
        "rollout_s": rollout_s,
        "update_s": update_s,
        "run_s": run_s,
    }
    if run_s > LONG_RUN:
        share = "rollouts" if rollout_s > update_s else "updates"
        advice = f"Most of it are the {share}: " + (
            "more cores and workers (--n_workers), fewer --algorithm.n_groups, or fewer --steps."
            if share == "rollouts"
            else "a GPU, fewer trainable parts, fewer --algorithm.epochs, or fewer --steps."
        )
        return Check("time", "warn", finding, advice, numbers)
    return Check("time", "ok", finding, numbers=numbers)


def memory(cost: Cost, run: Run, available: int, total: int) -> Check:
    """Whether the run fits into the machine.

    An iteration's episodes are there twice in an update: as they came, and stacked.

    Args:
        cost: Measured.
        run: To come.
        available: Before the doctor began.
        total: Of the machine.
    """
    learner = cost.learner_bytes + round(2 * run.episodes * cost.episode_bytes)
    need = cost.worker_bytes * run.n_workers + cost.server_bytes + learner
    shared = f", {_gb(cost.server_bytes)} GB that they share" if cost.server_bytes else ""
    finding = (
        f"{run.n_workers} workers of {_gb(cost.worker_bytes)} GB{shared} and a learner of {_gb(learner)} GB "
        f"need {_gb(need)} of {_gb(total)} GB ({_gb(available)} free before); of this an update on "
        f"{cost.update_chunks} chunks, at most {run.microbatch_size} at once, takes "
        f"{_gb(cost.update_bytes)} GB"
    )
    numbers = {
        "worker_bytes": cost.worker_bytes,
        "server_bytes": cost.server_bytes,
        "learner_bytes": learner,
        "update_bytes": cost.update_bytes,
        "update_chunks": cost.update_chunks,
        "available_bytes": available,
        "total_bytes": total,
    }
    if need <= available:
        return Check("memory", "ok", finding, numbers=numbers)
    left = available - learner - cost.server_bytes
    fitting = left // cost.worker_bytes if cost.worker_bytes else 0
    way_out = f"--n_workers={fitting}" if fitting > 0 else "smaller --algorithm.n_groups and microbatch_size"
    advice = f"{'It does not fit' if need > total else 'It fits once others have ended'}: {way_out}."
    return Check("memory", "fail" if need > total else "warn", finding, advice, numbers)


def gpu_memory(peak: int, total: int, update_chunks: int, microbatch_size: int) -> Check:
    """Whether workers and learner fit into the GPU.

    Args:
        peak: Bytes in use on the device, of all processes, at the update's peak.
        total: Of the device.
        update_chunks: How many were updated on.
        microbatch_size: Chunks at once.
    """
    finding = (
        f"{_gb(peak)} of {_gb(total)} GB at the peak of an update on {update_chunks} chunks, at most "
        f"{microbatch_size} at once"
    )
    numbers = {"peak_bytes": peak, "total_bytes": total}
    if peak > 0.9 * total:
        advice = "Nearly full: a smaller --algorithm.microbatch_size changes nothing but memory and time."
        return Check("gpu memory", "warn", finding, advice, numbers)
    return Check("gpu memory", "ok", finding, numbers=numbers)


def _wrapped(text: str, lead: str = "") -> list[str]:
    lines = textwrap.wrap(text, _WIDTH - _INDENT - len(lead), break_long_words=False, break_on_hyphens=False)
    return [(lead if index == 0 else " " * len(lead)) + line for index, line in enumerate(lines)]


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g}"


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2g}" if n_bytes < 10e9 else f"{n_bytes / 1e9:.0f}"


def _duration(seconds: float) -> str:
    """In the unit that reads best."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
