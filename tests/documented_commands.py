"""The commands that the documentation shows, and how each is run here, or why it is not."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from lerobot_smoothvla.presets import preset_flags

REPOSITORY = Path(__file__).parents[1]
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)

CHECKPOINT_FLAG = re.compile(r"--(?:policy|compare)\.path=(.+)")


@dataclass(frozen=True)
class Command:
    """One of a page, e.g. `smoothvla report outputs/grpo`."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def program(self) -> str:
        """With the command of ours: `smoothvla grpo`."""
        return " ".join(self.words[: 2 if self.words[0] == "smoothvla" else 1])

    @property
    def arguments(self) -> tuple[str, ...]:
        """After the program."""
        return self.words[len(self.program.split()) :]


@dataclass(frozen=True)
class Row:
    """How commands are run here.

    Attributes:
        commands: Regular expression that they begin with; the first row that fits counts.
        add: Flags that make it small, which win over those before them.
        drop: Regular expression of the flags that are left out.
        reason: Why they are not run, in the place of the others.
    """

    commands: str
    add: tuple[str, ...] = ()
    drop: str = ""
    reason: str = ""

    def shrunk(self, command: Command) -> list[str]:
        """Its words, small."""
        kept = [word for word in command.words if not (self.drop and re.fullmatch(self.drop, word))]
        return [*kept, *self.add]


_IMAGES = ("--env.observation_height=64", "--env.observation_width=64")
_LIBERO = (*_IMAGES, "--env.task_ids=[0]", "--env.episode_length=16")
_ITERATION = ("--steps=1", "--save_freq=1", "--algorithm.n_groups=1", "--algorithm.group_size=2")
_ITERATION += ("--wandb.mode=offline", "--wandb.disable_artifact=true")
_GRPO = (*_LIBERO, *_ITERATION, "--n_workers=0")
_DOCTOR = ("--doctor.n_starts=1", "--doctor.group_size=2", "--n_workers=0")
_TRAIN = (*preset_flags("policy", "smoothvla_tiny"), "--batch_size=2", "--steps=1", "--num_workers=0")
_TRAIN += ("--env_eval_freq=0", "--policy.push_to_hub=false")
_ARM = ("--robot.type=simulated_arm", "--robot.log=arm.npz", "--robot.calibration_dir=calibration")
_ROLLOUT = ("--return_to_initial_position=false", "--play_sounds=false")
_GUARDED_ARM = "--robot.arm={type: simulated_arm, log: arm.npz, calibration_dir: calibration}"
_GPU = ("--size=tiny", "--device=cpu", "--samples=1", "--batch_sizes=1")
_SHORT = ("--n_workers=1", "--n_groups=1", "--group_size=2", "--episode_length=10")

ROWS = (
    Row("make (setup|test)", reason="makes and tests the environment that this runs in"),
    Row("make (demo|study)", reason="takes from minutes to hours; test_demo.py and study/ have the stages"),
    Row("pip install", reason="changes the environment that this runs in"),
    Row("source", reason="is of the shell"),
    Row("ray start", reason="opens ports; rollout/test_ray.py starts clusters of its own"),
    Row("accelerate launch", reason="needs GPUs; grpo/test_ranks.py launches two processes on the CPU"),
    Row("smoothvla serve|python -m lerobot.async_inference", reason="test_async_server.py runs both"),
    Row(".venv/bin/python -m pytest", reason="tests an adapter that the reader writes"),
    Row("python benchmarks/breakdown.py", ("--image_size=64",)),
    Row("python benchmarks/commanded_jerk.py", ("--n_episodes=1", "--n_draws=1", "--n_workers=1")),
    Row("python benchmarks/expert.py", ("--suites=libero_object", "--task_ids=0", "--n_states=1")),
    Row("python benchmarks/gpu.py .*--backend", (*_GPU, "--backend=eager")),
    Row("python benchmarks/gpu.py", _GPU),
    Row("python benchmarks/iteration.py", (*_SHORT, "--size=tiny", "--device=cpu")),
    Row("python benchmarks/memory.py", ("--n_workers=1", "--task_ids=0")),
    Row("python benchmarks/reach.py"),
    Row("python benchmarks/rendering.py"),
    Row(
        "python benchmarks/rollout.py",
        ("--episode_length=16", "--pairs=1", "--image_size=64", "--n_processes=1"),
    ),
    Row("python benchmarks/sampling.py", ("--size=tiny", "--pairs=1")),
    Row(
        "python benchmarks/scaling.py",
        ("--episode_length=16", "--repetitions=1", "--n_workers=1", "--episodes=1"),
    ),
    Row("python benchmarks/update.py", ("--size=tiny", "--pairs=1", "--chunks=2", "--microbatch_size=1")),
    Row("smoothvla demos", (*_IMAGES, "--env.task_ids=[0]", "--episodes_per_task=1", "--n_workers=1")),
    Row("smoothvla score"),
    Row("lerobot-train .*--dataset.root", _TRAIN),
    Row("lerobot-train", (*_TRAIN, "--dataset.repo_id=you/libero", "--dataset.root=LIBERO_DATASET")),
    Row("smoothvla doctor .*--env.type=slide", _DOCTOR),
    Row("smoothvla doctor", (*_LIBERO, *_DOCTOR)),
    Row("smoothvla grpo .*--env.type=slide", _ITERATION),
    Row("smoothvla grpo .*outputs/my_flow", (*_LIBERO, *_ITERATION)),
    Row("smoothvla grpo .*--rollout.backend=ray", (*_GRPO, "--n_workers=1"), drop="--rollout.address=.*"),
    Row("smoothvla grpo --resume=true", ("--steps=2",)),
    Row("smoothvla grpo", _GRPO),
    Row("smoothvla eval", (*_LIBERO, "--eval.n_episodes=1", "--eval.n_workers=0")),
    Row("lerobot-eval", (*_LIBERO, "--eval.n_episodes=1", "--eval.batch_size=1")),
    Row("smoothvla report"),
    Row("smoothvla push"),
    Row("smoothvla export"),
    Row(
        "lerobot-rollout .*--strategy.type=episodic",
        (*_ARM, *_ROLLOUT, "--dataset.num_episodes=1", "--dataset.episode_time_s=3"),
        drop=r"--robot\..*",
    ),
    Row(
        "lerobot-rollout .*--robot.type=guarded",
        (_GUARDED_ARM, *_ROLLOUT, "--duration=3"),
        drop=r"--robot\.arm=.*",
    ),
    Row("lerobot-rollout", (*_ARM, *_ROLLOUT, "--duration=3"), drop=r"--robot\..*"),
)


def commands_in(text: str, page: str) -> list[Command]:
    """Those of the bash blocks of a page, in their order."""
    lines = [line for block in _BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    words = [tuple(shlex.split(line, comments=True)) for line in lines]
    return [Command(page, found) for found in words if found]


def rows_of(command: Command) -> list[Row]:
    """The rows that fit, the one that counts first."""
    return [row for row in ROWS if re.match(row.commands, " ".join(command.words))]


def written(commands: list[Command]) -> list[str]:
    """Where commands write to, as far as they say."""
    words = [word for command in commands for word in command.words]
    return [word.partition("=")[2] for word in words if word.startswith("--output_dir=")]


COMMANDS = [command for page in PAGES for command in commands_in(page.read_text(encoding="utf-8"), page.name)]
