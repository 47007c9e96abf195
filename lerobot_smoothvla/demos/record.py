"""Demonstrations of scripted experts as a LeRobotDataset, by several processes, resumable at any moment.

Every episode is first a small dataset of its own in `<root>.partial/`, renamed into place once complete: a
killed run loses the episodes in hand and no more. The last step joins them, by task and attempt whatever the
number of processes, and renames the result: a directory `<root>` is always a whole dataset.
"""

import json
import math
import multiprocessing as mp
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.configs.video import RGBEncoderConfig, rgb_encoder_defaults
from lerobot.datasets.aggregate import aggregate_datasets
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from tqdm import tqdm

from lerobot_smoothvla.demos.experts import make_expert, require_expert, tasks_to_demonstrate
from lerobot_smoothvla.demos.labels import Labels, labels
from lerobot_smoothvla.envs.chunked import ChunkedEnv
from lerobot_smoothvla.envs.tasks import (
    TRAINING_SEEDS,
    has_init_states,
    require_init_states,
    require_usable,
    selected_tasks,
)
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.locking import LOCK, sole_writer
from lerobot_smoothvla.processes import ONE_THREAD, in_environment, worker_context
from lerobot_smoothvla.rollout.local import Simulators
from lerobot_smoothvla.settings import require_same, settings_of
from lerobot_smoothvla.writing import size_of, writing

SUMMARY = Path("meta") / "demonstrations.json"
"""In the dataset: the settings that made it, and by task how many attempts were kept."""

_THEN = "and run the same command again: it goes on with the episodes that are recorded."
"""After a disk that was full."""
_NOISE_MEMORY = 0.9
"""Correlation of the noise from one step to the next: white noise would shake the arm, not move it off."""
_LONGER_THAN_ANY_EPISODE = 10_000
"""Queue of the video encoder, which drops frames when it is full."""
_WORKER_ENVIRONMENT = {
    **ONE_THREAD,
    "SVT_LOG": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


@dataclass
class DemosDatasetConfig:
    """Where the demonstrations go; the names are those of `lerobot-record`.

    Attributes:
        repo_id: Name of the dataset, `user/name`.
        root: Its directory; default `outputs/demos/<name>`.
        video: MP4 videos. Otherwise PNG images inside the data files, as the Hub's `libero` has them: larger,
            and when small faster to decode.
        rgb_encoder: LeRobot's video settings.
    """

    repo_id: str = "local/demonstrations"
    root: Path | None = None
    video: bool = True
    rgb_encoder: RGBEncoderConfig = field(default_factory=rgb_encoder_defaults)

    @property
    def directory(self) -> Path:
        """The dataset's directory."""
        return self.root or Path("outputs/demos") / self.repo_id.split("/")[-1]


@dataclass
class DemosConfig:
    """What to demonstrate.

    Attributes:
        env: LIBERO suites, task ids (default all) and image size; or Meta-World tasks.
        dataset: Where it goes.
        episodes_per_task: Attempts; failures are dropped and counted.
        init_states: First, and one past the last, of a task's 50 initial states. The default leaves ten for
            evaluation. More attempts than states start over with the next seed. Not used in Meta-World, which
            has none: there each attempt has a seed of its own, from 2^31 on, that no evaluation takes.
        seed: Of the simulator in the first round, and of the noise.
        noise_share: Part of the episodes in which the executed action is noisy. The recorded action stays the
            expert's own at the state that the noise led to, so that the policy learns to come back
            (Laskey et al., DART, arXiv 1703.09327).
        noise_std: Of the noise on the displacement at full speed, in action units (1.0 is 0.05 m in LIBERO).
        tremor_std: Of white noise on the displacement in every episode, executed and recorded, in action
            units: the unsteady hand of a person, which a policy that imitates it has, too.
        jerky_share: Part of the episodes in which LIBERO's expert moves by strokes at constant speed in place
            of eased segments, as an operator with less practice.
        speed: Factor on the speed of LIBERO's expert.
        speed_spread: Each episode's speed is `speed` times or divided by at most 1 + `speed_spread`.
        n_workers: Processes; one a core.
    """

    env: EnvConfig = field(default_factory=lambda: LiberoEnvConfig(task="libero_object"))
    dataset: DemosDatasetConfig = field(default_factory=DemosDatasetConfig)
    episodes_per_task: int = 40
    init_states: tuple[int, int] = (0, 40)
    seed: int = 0
    noise_share: float = 1 / 3
    noise_std: float = 0.15
    tremor_std: float = 0.0
    jerky_share: float = 0.0
    speed: float = 1.0
    speed_spread: float = 0.0
    n_workers: int = 2

    def __post_init__(self) -> None:
        """Reject what cannot be recorded."""
        if self.episodes_per_task < 1:
            raise ValueError(f"`episodes_per_task` should be at least 1, got {self.episodes_per_task}.")
        for name in ("noise_share", "jerky_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` should be in [0, 1], got {getattr(self, name)}.")
        for name in ("noise_std", "tremor_std", "speed_spread"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` should not be negative, got {getattr(self, name)}.")
        if self.speed <= 0:
            raise ValueError(f"`speed` should be a positive factor, got {self.speed}.")
        if self.n_workers < 1:
            raise ValueError(f"`n_workers` should be at least 1 process, got {self.n_workers}.")


@dataclass(frozen=True)
class Attempt:
    """One episode to record.

    Attributes:
        start: Where it begins.
        noisy: Whether noise is added to what is executed.
        jerky: Whether the expert moves by strokes.
        directory: Where its dataset will be, if it succeeds.
    """

    start: Start
    noisy: bool
    jerky: bool
    directory: Path

    @property
    def failed(self) -> Path:
        """Exists if the expert failed."""
        return self.directory.with_suffix(".failed")

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.directory.exists() or self.failed.exists()


def attempts(config: DemosConfig, directory: Path) -> list[Attempt]:
    """All attempts, in the order of the dataset's episodes.

    Raises:
        ValueError: If a task does not exist, no expert can do it, or it lacks an initial state.
    """
    tasks = tasks_to_demonstrate(config.env)
    require_expert(config.env, tasks, config.speed, config.speed_spread, config.jerky_share)
    require_init_states(config.env, tasks, config.init_states)
    first, end = config.init_states
    found = []
    for suite, task_id in tasks:
        for index in range(config.episodes_per_task):
            if has_init_states(config.env):
                rounds, offset = divmod(index, end - first)
                start = Start(suite, task_id, first + offset, config.seed + rounds)
            else:
                start = Start(suite, task_id, 0, TRAINING_SEEDS + config.seed + index)
            name = f"{suite}-{task_id:02d}-{index:05d}"
            noisy, jerky = (_falls_on(index, share) for share in (config.noise_share, config.jerky_share))
            found.append(Attempt(start, noisy, jerky, directory / name))
    return found


def _falls_on(index: int, share: float) -> bool:
    """Whether an attempt is in a share that is spread evenly, so that any part of them has its own."""
    return int((index + 1) * share) > int(index * share)


def record(config: DemosConfig) -> Path:
    """Record the demonstrations, or go on where a stopped run with the same settings was.

    Returns:
        The directory of the dataset.

    Raises:
        ValueError: If a task cannot be done, or every attempt failed.
        FileExistsError: If the directory holds something else, or a run with other settings.
        OSError: If it cannot be written; a `WritingError` leaves what was recorded as it is.
    """
    root = config.dataset.directory
    partial = root.with_name(f"{root.name}.partial")
    planned = attempts(config, partial / "episodes")
    require_usable(config.env, selected_tasks(config.env))
    if root.exists():
        _require_same_settings(config, root, SUMMARY)
        shutil.rmtree(partial, ignore_errors=True)
        return root
    with sole_writer(partial, "--dataset.root"):
        _require_same_command(config, partial)
        _run(config, planned)
        return _join(config, planned, partial)


def _join(config: DemosConfig, planned: Sequence[Attempt], partial: Path) -> Path:
    """What was kept, as one dataset in its place; the unfinished one goes."""
    root = config.dataset.directory
    kept = [attempt.directory for attempt in planned if attempt.directory.exists()]
    if not kept:
        raise ValueError(f"All {len(planned)} attempts failed; try --noise_share=0 or a lower --speed.")
    joined = partial / "dataset"
    shutil.rmtree(joined, ignore_errors=True)
    name = config.dataset.repo_id
    with writing(f"The dataset {root}", partial, lambda: sum(map(size_of, kept)), _THEN, joined):
        # Appending images to one file would rewrite it for every episode.
        aggregate_datasets(
            [name] * len(kept), name, roots=kept, aggr_root=joined, concatenate_data=config.dataset.video
        )
        summary = {"settings": _settings(config), "tasks": _count(planned, has_init_states(config.env))}
        (joined / SUMMARY).write_text(json.dumps(summary, indent=2))
        joined.rename(root)
    shutil.rmtree(partial)
    return root


def _settings(config: DemosConfig) -> dict[str, Any]:
    """What the dataset's content depends on."""
    settings = settings_of(config)
    return {name: value for name, value in settings.items() if name not in ("n_workers", "dataset.root")}


def _require_same_settings(config: DemosConfig, directory: Path, file: Path) -> None:
    """Reject a directory that another command made.

    Raises:
        FileExistsError: If it did; the message says in what the settings differ.
    """
    if not (directory / file).is_file():
        raise FileExistsError(
            f"{directory} exists and is not a dataset of `smoothvla demos`; choose another --dataset.root."
        )
    before = json.loads((directory / file).read_text())["settings"]
    require_same(before, _settings(config), f"{directory} was recorded", "--dataset.root")


def _require_same_command(config: DemosConfig, partial: Path) -> None:
    """Check that an unfinished dataset is of the same command, or say that it is."""
    file = Path("settings.json")
    if {path.name for path in partial.iterdir()} - {LOCK}:
        _require_same_settings(config, partial, file)
    else:
        (partial / file).write_text(json.dumps({"settings": _settings(config)}))
    (partial / "episodes").mkdir(exist_ok=True)


def _count(planned: Sequence[Attempt], init_states: bool) -> dict[str, dict[str, Any]]:
    """Attempts, those kept, and the initial states of the failures or else their seeds, by task."""
    failed = "failed_init_states" if init_states else "failed_seeds"
    counts: dict[str, dict[str, Any]] = {}
    for attempt in planned:
        start = attempt.start
        count = counts.setdefault(f"{start.suite}/{start.task_id}", {"attempts": 0, "kept": 0, failed: []})
        count["attempts"] += 1
        if attempt.directory.exists():
            count["kept"] += 1
        else:
            count[failed].append(start.init_state if init_states else start.seed)
    return counts


def _run(config: DemosConfig, planned: Sequence[Attempt]) -> None:
    """Let the worker processes make what is missing."""
    missing = [attempt for attempt in planned if not attempt.finished]
    os.environ.update(_WORKER_ENVIRONMENT)
    with (
        ProcessPoolExecutor(
            config.n_workers, worker_context(), in_environment, (dict(os.environ), _end_with_parent)
        ) as pool,
        tqdm(total=len(planned), initial=len(planned) - len(missing), unit="episode") as progress,
    ):
        futures = [pool.submit(_record_attempt, config, attempt) for attempt in missing]
        try:
            for future in as_completed(futures):
                future.result()
                failures = sum(attempt.failed.exists() for attempt in planned)
                progress.set_postfix(failed=failures, refresh=False)
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """A killed parent leaves no worker behind, which would wait for work for ever."""
    parent = mp.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_simulators: Simulators | None = None
"""Of this worker process, which keeps the simulator from one attempt to the next."""


def _record_attempt(config: DemosConfig, attempt: Attempt) -> None:
    """Run the expert once and keep the episode if it succeeds."""
    global _simulators
    # One at a time, as attempts come by task.
    _simulators = _simulators or Simulators(config.env, limit=1)
    draft = attempt.directory.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    env = _simulators.get(*attempt.start.task)
    episodes = attempt.directory.parent
    what = f"The episode {attempt.directory}"
    with writing(what, episodes, lambda: _largest(episodes, draft), _THEN, draft), _encoding():
        if record_episode(env, config, attempt, draft):
            draft.rename(attempt.directory)
        else:
            shutil.rmtree(draft)
            attempt.failed.touch()


@contextmanager
def _encoding() -> Iterator[None]:
    """What LeRobot's video encoder cannot write is an error of the disk again."""
    try:
        yield
    except RuntimeError as error:
        if "Encoder thread" not in str(error):
            raise
        raise OSError(str(error)) from error


def _largest(episodes: Path, draft: Path) -> int:
    """Bytes of the largest episode so far; other processes' drafts come and go."""
    return max(map(size_of, [draft, *(path for path in episodes.iterdir() if not path.suffix)]))


def record_episode(env: ChunkedEnv, config: DemosConfig, attempt: Attempt, directory: Path) -> bool:
    """Record one episode, whatever its outcome, as a dataset in `directory`.

    Rendering every step of an attempt that fails in the end is cheaper than a rehearsal without cameras, as
    the expert fails in less than one attempt out of ten and the rehearsal takes a tenth of the time.

    Args:
        env: Of the attempt's task.
        config: How the expert moves, and what is kept.
        attempt: What to record.
        directory: Must not exist.

    Returns:
        Whether the task was solved.
    """
    start = attempt.start
    generator = np.random.default_rng((start.seed, start.task_id, start.init_state))
    observation = env.reset_to(start)
    speed = config.speed * (1.0 + config.speed_spread) ** generator.uniform(-1.0, 1.0)
    expert = make_expert(env, config.env, speed, attempt.jerky)
    dataset = _create_dataset(config.dataset, labels(config.env), observation, directory)
    noise = np.zeros(3)
    while True:
        action = expert.act()
        action[:3] += config.tremor_std * generator.standard_normal(3)
        action = np.clip(action, -1.0, 1.0)
        frame = {key: _channels_last(value.numpy()) for key, value in observation.items()}
        dataset.add_frame({**frame, "action": action.astype(np.float32), "task": env.task_description})
        noise = _NOISE_MEMORY * noise + np.sqrt(1 - _NOISE_MEMORY**2) * generator.standard_normal(3)
        if attempt.noisy:
            # In proportion to speed, as in people (Harris & Wolpert, Nature 394, 1998): grasps stay exact.
            action[:3] += config.noise_std * expert.pace * noise
        outcome = env.step_chunk(np.clip(action, -1.0, 1.0)[None])
        if outcome.observation is None:
            break
        observation = outcome.observation
    dataset.save_episode()
    dataset.finalize()
    return outcome.success


def _channels_last(value: np.ndarray) -> np.ndarray:
    """An image (3, h, w) as datasets store it, (h, w, 3); anything else as it is."""
    return value.transpose(1, 2, 0) if value.ndim == 3 else value


def _create_dataset(
    config: DemosDatasetConfig, names: Labels, observation: dict[str, Any], directory: Path
) -> LeRobotDataset:
    """An empty dataset with the keys that the environment gives to a policy; of LIBERO, as the Hub's."""
    features: dict[str, dict[str, Any]] = {
        key: {
            "dtype": "video" if config.video else "image",
            "shape": (*value.shape[1:], 3),
            "names": ["height", "width", "channel"],
        }
        for key, value in observation.items()
        if value.ndim == 3
    }
    for key, motors in {"observation.state": names.state, "action": names.action}.items():
        features[key] = {"dtype": "float32", "shape": (len(motors),), "names": {"motors": list(motors)}}
    return LeRobotDataset.create(
        config.repo_id,
        names.fps,
        features,
        root=directory,
        robot_type=names.robot_type,
        use_videos=config.video,
        # Nothing is decoded here, and looking for the default prints tracebacks where FFmpeg is missing.
        video_backend="pyav",
        rgb_encoder=config.rgb_encoder,
        streaming_encoding=config.video,
        encoder_queue_maxsize=_LONGER_THAN_ANY_EPISODE,
        encoder_threads=1,
    )
