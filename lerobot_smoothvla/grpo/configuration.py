"""Configuration of a GRPO run: the algorithm's, and the pipeline's with LeRobot's own flags."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.rl.algorithms.configs import RLAlgorithmConfig

from lerobot_smoothvla.envs.adapters import commands_of, env_adapter
from lerobot_smoothvla.flow.adapters import adapter_class
from lerobot_smoothvla.flow.adapters.execution import Execution
from lerobot_smoothvla.flow.ratio import FlowMatchingRatio, FlowSDERatio, PosteriorRatio, RatioEstimator
from lerobot_smoothvla.grpo.objective import DRAWING, AdvantageMode, NegativeSide
from lerobot_smoothvla.jerk_reward import JerkRewardConfig, without_joints
from lerobot_smoothvla.rollout.configuration import RolloutConfig

Ratio = Literal["auto", "flow_matching", "flow_sde", "posterior"]
LRSchedule = Literal["constant", "linear"]

DOCTOR = "doctor.json"
"""What `smoothvla doctor` leaves in a run's output directory before the run."""

DEFAULT_CLIP = {"flow_matching": (0.05, 0.05), "flow_sde": (0.2, 0.28), "posterior": (0.2, 0.28)}
"""Clip (low, high) of each ratio estimator: FPO++'s, and the common one for exact ratios."""

DEFAULT_NOISE_LEVEL = {"flow_sde": 0.2, "posterior": 0.1}
"""Of a policy whose config has none of its own; the least std of DPPO (arXiv 2409.00588)."""


@RLAlgorithmConfig.register_subclass("grpo")
@dataclass
class GRPOConfig(RLAlgorithmConfig):
    """Group relative policy optimisation on a flow policy.

    Attributes:
        ratio: `flow_matching` (rollouts are the noise-free ODE that is deployed) or `flow_sde` (exact
            log-probabilities) for a flow policy, `posterior` (exact ones, too) for a diffusion policy. `auto`
            takes `flow_matching` or `posterior` by the policy.
        noise_level: Of `flow_sde`, `a` in σ = a·√(t/(1−t)); of `posterior`, the least std of a step in the
            normalised action space. None takes the policy config's where it has one, else 0.2 or 0.1.
        noise_length: Correlation length of the exploration noise along the chunk, control steps; 0 is white.
            None, here and below, takes the policy config's where it has one, else the default of `smoothvla`.
        stochastic_steps: `one` random denoising step a chunk explores, or `all`.
        noise_last_step: Whether the last denoising step may explore: its noise is in the actions as it is.
            None says yes where a diffusion policy predicts the clean chunk.
        n_pairs: (t, ε) pairs a chunk of the flow-matching ratio.
        ratio_scale: Of the flow-matching ratio: a clip of c lets a pair's mean squared velocity error move by
            c / ratio_scale in an iteration. With 50, the sum over a chunk, ratios explode within a few steps.
        group_size: G rollouts of one start.
        n_groups: Starts an iteration.
        init_states: First and one past the last of each task's initial states to train on; leave some out for
            evaluation. Not used where tasks have none, as anywhere but in LIBERO: there a seed says it all.
        epochs: Passes over an iteration's chunks.
        minibatch_size: Chunks an optimizer step.
        microbatch_size: Chunks a forward pass: bounds memory, changes nothing else.
        freeze: Parts of the policy that are not trained (`vision`, `vlm`, `expert`, ... by the policy),
            beside what its own flags freeze.
        bf16: Matrix products in bfloat16, in rollouts and update alike; frozen weights are stored in it, too.
            What is trained and all log-probabilities stay float32.
        gradient_checkpointing: Run the networks again in the backward pass rather than keep what it needs.
        lr: Learning rate of AdamW.
        lr_schedule: `linear` falls from `lr` to 0 within each update, `constant` stays.
        target_kl: An update ends after a minibatch with a greater approximate KL; None for no such end.
        grad_clip_norm: Largest gradient norm.
        clip_low: Lower clip distance of the ratio from 1; None takes the ratio's default.
        clip_high: Upper clip distance.
        negative: How negative advantages are bounded, see `grpo.objective.clipped_objective`.
        negative_weight: Weight of negative advantages in [0, 1].
        kl_weight: Weight of the divergence from the policy that sampled.
        advantage: `separate` normalises success and smoothness apart, `joint` their total; `chunkwise` is
            `separate` with the smoothness of each chunk, not of its episode; `counterfactual` with that of
            each chunk against others that the policy draws for what it saw, by the jerk that they command;
            where the reward's signal is an LDLJ, by that jerk over the length of the commanded path.
            `best_draw` is success alone, and the smoothest of those others is imitated, without a clip, with
            the reward's weight.
        n_draws: Of those others, for each chunk of a success.
        std_floor: Added to every standard deviation that normalises.
        reward: The jerk reward; its λ is 0 for success alone.
    """

    ratio: Ratio = "auto"
    noise_level: float | None = None
    noise_length: float | None = None
    stochastic_steps: str | None = None
    noise_last_step: bool | None = None
    n_pairs: int = 4
    ratio_scale: float = 5.0
    group_size: int = 8
    n_groups: int = 4
    init_states: tuple[int, int] = (0, 40)
    epochs: int = 1
    minibatch_size: int = 128
    microbatch_size: int = 16
    freeze: tuple[str, ...] = ()
    bf16: bool = False
    gradient_checkpointing: bool = False
    lr: float = 5e-6
    lr_schedule: LRSchedule = "constant"
    target_kl: float | None = None
    grad_clip_norm: float = 1.0
    clip_low: float | None = None
    clip_high: float | None = None
    negative: NegativeSide = "quadratic"
    negative_weight: float = 0.25
    kl_weight: float = 0.0
    advantage: AdvantageMode = "separate"
    n_draws: int = 7
    std_floor: float = 0.1
    reward: JerkRewardConfig = field(default_factory=JerkRewardConfig)

    def __post_init__(self) -> None:
        """Fill in the estimator's clip, and reject what could not be run.

        Raises:
            ValueError: If a setting is out of its range.
        """
        choices: dict[str, Any] = {
            "ratio": get_args(Ratio),
            "lr_schedule": get_args(LRSchedule),
            "negative": get_args(NegativeSide),
            "advantage": get_args(AdvantageMode),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` should be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}."
                )
        if self.group_size < 2:
            raise ValueError(
                f"`group_size` should be at least 2, got {self.group_size}: GRPO compares the rollouts of a "
                "group with one another; 8 is usual."
            )
        first, end = self.init_states
        if not 0 <= first < end:
            raise ValueError(
                f"`init_states` should be [first, end) with 0 <= first < end, got {first}, {end}."
            )
        at_least_one = ("n_pairs", "n_groups", "epochs", "minibatch_size", "microbatch_size", "n_draws")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` should be at least 1, got {getattr(self, name)}.")
        for name in ("lr", "target_kl", "ratio_scale", "grad_clip_norm", "clip_high", "std_floor"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` should be positive, got {value}.")
        if self.clip_low is not None and not 0 < self.clip_low < 1:
            raise ValueError(f"`clip_low` should be in (0, 1), got {self.clip_low}.")
        if self.advantage == "chunkwise" and self.reward.is_ldlj:
            jerk = self.reward.signal.replace("ldlj", "jerk_rms")
            raise ValueError(
                "`advantage` 'chunkwise' needs the jerk of each chunk, but LDLJ is of a whole movement; pass "
                f"--algorithm.reward.signal={jerk} or --algorithm.advantage=separate."
            )
        if not 0 <= self.negative_weight <= 1:
            raise ValueError(f"`negative_weight` should be in [0, 1], got {self.negative_weight}.")
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"`kl_weight` should be at least 0, got {self.kl_weight}.")

    @classmethod
    def from_policy_config(cls, policy_cfg: Any) -> Self:
        """The defaults, for LeRobot's factory."""
        return cls()

    @property
    def execution(self) -> Execution:
        """How the policy's networks are run, in rollouts and update alike."""
        return Execution(self.bf16, self.gradient_checkpointing)

    def ratio_for(self, policy_config: Any) -> str:
        """The ratio of a policy: the one that was asked for, else its default.

        Raises:
            ValueError: If the policy has no adapter, or its adapter does not know the ratio.
        """
        known = adapter_class(policy_config).ratios
        if self.ratio not in ("auto", *known):
            raise ValueError(
                f"`ratio` of a policy of type '{policy_config.type}' should be one of {', '.join(known)}, "
                f"got '{self.ratio}'; leave --algorithm.ratio out for '{known[0]}'."
            )
        return known[0] if self.ratio == "auto" else self.ratio

    def clip_for(self, policy_config: Any) -> tuple[float, float]:
        """(low, high) clip distance of the ratio from 1."""
        low, high = DEFAULT_CLIP[self.ratio_for(policy_config)]
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    def estimator(self, policy_config: Any) -> RatioEstimator:
        """The ratio estimator of a policy, with these exploration settings, else the policy's own.

        Raises:
            ValueError: If the ratio does not suit the policy, or explores with a noise level of 0.
        """
        ratio = self.ratio_for(policy_config)
        if ratio == "flow_matching":
            return FlowMatchingRatio(n_pairs=self.n_pairs, scale=self.ratio_scale)

        def setting(name: str, default: Any) -> Any:
            own = getattr(self, name)
            return getattr(policy_config, name, default) if own is None else own

        adapter = adapter_class(policy_config)
        estimator = FlowSDERatio if ratio == "flow_sde" else PosteriorRatio
        return estimator(
            level=setting("noise_level", DEFAULT_NOISE_LEVEL[ratio]),
            stochastic_steps=setting("stochastic_steps", "one"),
            noise_length=setting("noise_length", 0.0),
            skip_last=not setting("noise_last_step", adapter.noise_last_step(policy_config)),
        )


@dataclass(kw_only=True)
class GRPOPipelineConfig(TrainPipelineConfig):
    """LeRobot's training pipeline with rollouts in the place of a dataset.

    Flags mean what they mean to `lerobot-train`: `--policy.path`, `--env.type`, `--output_dir`, `--resume`,
    `--seed`, `--wandb.*`, `--policy.repo_id`, `--save_checkpoint_to_hub`. `steps` counts GRPO iterations, and
    `save_freq` counts in them too; every iteration is logged, whatever `log_freq` says; `batch_size` and the
    optimizer's flags are not used (see `--algorithm.*`).

    Attributes:
        algorithm: GRPO's settings.
        n_workers: Rollout processes, one a core; 0 rolls out in this process.
        rollout: Where they are.
    """

    dataset: DatasetConfig | None = None
    algorithm: GRPOConfig = field(default_factory=GRPOConfig)
    # These two are LeRobot's, declared again as its own types are hidden from mypy by `validate`.
    output_dir: Path | None = None
    job_name: str | None = None
    n_workers: int = 2
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    steps: int = 20
    save_freq: int = 5
    log_freq: int = 1
    env_eval_freq: int = 0
    use_policy_training_preset: bool = False

    def __post_init__(self) -> None:
        """Reject what is wrong whatever the policy.

        Raises:
            ValueError: If there is no environment, it has no adapter, not the joints that the reward is to
                measure or no actions that command the jerk that is compared, or a number is out of its range.
        """
        if self.env is None:
            raise ValueError(
                "GRPO needs an environment; pass e.g. --env.type=libero --env.task=libero_object, or "
                "env=libero_object."
            )
        has_joints = isinstance(self.env, LiberoEnvConfig) or env_adapter(self.env).joints is not None
        if self.algorithm.reward.of_joints and not has_joints:
            raise ValueError(without_joints(self.algorithm.reward.signal))
        if self.algorithm.advantage in DRAWING and self.algorithm.reward.weight > 0:
            commands_of(self.env)
        if self.n_workers < 0:
            raise ValueError(f"`n_workers` should be at least 0, got {self.n_workers}.")
        elsewhere = {
            "--rollout.backend=ray": self.rollout.backend == "ray",
            "--rollout.inference=central": self.rollout.inference == "central",
            "--rollout.overlap=true": self.rollout.overlap,
            f"--rollout.device={self.rollout.device}": self.rollout.device is not None,
        }
        if self.n_workers == 0 and any(elsewhere.values()):
            asked = " and ".join(flag for flag, wanted in elsewhere.items() if wanted)
            raise ValueError(f"`n_workers` should be at least 1 for {asked}, got 0.")
        if self.steps < 1:
            raise ValueError(f"`steps` should be at least 1 iteration, got {self.steps}.")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"`seed` should be at least 0, got {self.seed}.")

    def validate(self) -> None:
        """Fill in names, and reject a run without a warm start or over another one.

        Raises:
            ValueError: If there is no policy, or checkpoints shall be pushed nowhere.
            FileExistsError: If the output directory exists and the run is not a resumption.
        """
        if self.policy is None:
            raise ValueError("GRPO needs a warm start: pass --policy.path=CHECKPOINT.")
        if self.save_checkpoint_to_hub and not (self.policy.repo_id and self.policy.push_to_hub):
            raise ValueError(
                "`save_checkpoint_to_hub` needs a repository on the Hub; pass --policy.repo_id=USER/NAME."
            )
        if self.job_name is None:
            self.job_name = f"{self.env.type}_{self.policy.type}_grpo"
        if self.output_dir is None:
            self.output_dir = Path("outputs/grpo") / f"{self.env.task}_{self.policy.type}"
        if not self.resume and not _is_free(self.output_dir):
            raise FileExistsError(
                f"The output directory {self.output_dir} exists and would be overwritten; "
                "choose another --output_dir, or continue that run with --resume=true."
            )


def _is_free(directory: Path) -> bool:
    """Whether nothing stands there, or the doctor's findings alone."""
    return not directory.exists() or (
        directory.is_dir() and [file.name for file in directory.iterdir()] == [DOCTOR]
    )
