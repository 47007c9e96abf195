"""One GRPO update against the plain loop that encodes the prefix again at every denoising step, in one run.

    python benchmarks/update.py --size tiny
    python benchmarks/update.py --size 450m --chunks 2 --microbatch_size 1 --pairs 1
    python benchmarks/update.py --size 450m --memory --chunks 4 --microbatch_size 4

Both sides are `GRPOAlgorithm.update`: loss, backward pass, optimizer step; on the same chunks with the
exact ratio of all K denoising steps; in the plain loop each step has a prefix of its own. The sides take
turns on one thread, and the ratio is the median over the pairs. With `--memory` there is one update of ours
alone, and the most memory that the process had, or on a GPU (`--device cuda`) its tensors. The last line is
one JSON object.
"""

import argparse
import json
import os
import statistics
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

os.environ |= {"OMP_NUM_THREADS": "1"}  # Before torch is loaded.

import torch
from policies import SIZES, make_actor, peak, sampled_group, seconds
from torch import Tensor

from lerobot_smoothvla.episode import Group
from lerobot_smoothvla.flow.adapters.base import FlowAdapter
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.rollout.engine import Actor


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_steps", type=int, default=10, help="K")
    parser.add_argument(
        "--ratio",
        choices=("flow_sde", "flow_matching"),
        default="flow_sde",
        help="of all K steps, or 4 pairs",
    )
    parser.add_argument("--chunks", type=int, default=16, help="that one update learns from")
    parser.add_argument("--microbatch_size", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    parser.add_argument("--train_all", action=flag, default=False, help="450m: VLM and vision tower, too")
    parser.add_argument("--train_state", action=flag, default=True, help="450m: the state's projection")
    parser.add_argument("--bf16", action=flag, default=False)
    parser.add_argument("--gradient_checkpointing", action=flag, default=False)
    parser.add_argument("--stochastic_steps", choices=("one", "all"), default="all", help="of flow_sde")
    parser.add_argument("--memory", action="store_true", help="peak memory of one update instead")
    return parser.parse_args()


@dataclass(frozen=True)
class Unencoded:
    """Observations in the place of a context."""

    batch: dict[str, Any]
    n_steps: int = 1

    def repeat_interleave(self, n: int) -> Self:
        """The same, for n denoising steps."""
        return replace(self, n_steps=n)


class PlainLoop(FlowAdapter):
    """An adapter that encodes the observations anew at each denoising step."""

    def __init__(self, adapter: FlowAdapter) -> None:
        """Around one that does not."""
        super().__init__(adapter.policy)
        self.inner = adapter

    def encode(self, batch: dict[str, Tensor]) -> Unencoded:
        """Put off."""
        return Unencoded(batch)

    def velocity(self, context: Unencoded, x_t: Tensor, t: Tensor) -> Tensor:
        """Of (B·K, H, P), one step after the other."""
        n = context.n_steps
        steps = [self.inner.velocity(self.inner.encode(context.batch), x_t[k::n], t[k::n]) for k in range(n)]
        return torch.stack(steps, dim=1).flatten(0, 1)


class PlainActor(Actor):
    """Acts through it."""

    @cached_property
    def adapter(self) -> PlainLoop:
        """The plain loop around the policy's own."""
        return PlainLoop(super().adapter)


def make_algorithm(arguments: argparse.Namespace, directory: Path) -> GRPOAlgorithm:
    """GRPO around a random policy."""
    settings: dict[str, Any] = {"num_steps": arguments.num_steps}
    if arguments.size == "450m":
        settings |= {
            "train_expert_only": not arguments.train_all,
            "freeze_vision_encoder": not arguments.train_all,
            "train_state_proj": arguments.train_state,
        }
    config = GRPOConfig(
        ratio=arguments.ratio,
        stochastic_steps=arguments.stochastic_steps,
        noise_last_step=True,
        noise_level=0.2,
        minibatch_size=arguments.chunks,
        microbatch_size=arguments.microbatch_size,
        bf16=arguments.bf16,
        gradient_checkpointing=arguments.gradient_checkpointing,
    )
    return GRPOAlgorithm(make_actor(arguments.size, directory, arguments.device, **settings), config)


def update_s(algorithm: GRPOAlgorithm, group: Group) -> float:
    """What an update takes."""
    return seconds(lambda: algorithm.update(iter([[group]])), algorithm.actor.policy.config.device)


def memory(algorithm: GRPOAlgorithm, group: Group) -> dict[str, float]:
    """Peak memory without and with an update, GiB."""
    device = algorithm.actor.policy.config.device
    before, elapsed = peak(device), update_s(algorithm, group)
    return {"before_gib": round(before, 2), "peak_gib": round(peak(device), 2), "update_s": round(elapsed, 1)}


def speed(ours: GRPOAlgorithm, group: Group, n_pairs: int) -> dict[str, float]:
    """Chunks per second of both sides, and their ratio."""
    plain = copy(ours)
    plain.actor = PlainActor(**{field.name: getattr(ours.actor, field.name) for field in fields(ours.actor)})
    pairs = []
    for index in range(n_pairs):
        pairs.append((update_s(plain, group), update_s(ours, group)))
        print(f"pair {index + 1}: plain {pairs[-1][0]:.2f} s, ours {pairs[-1][1]:.2f} s", flush=True)
    n_chunks = sum(len(scored.episode.executed) for scored in group.episodes)
    return {
        "plain_chunks_per_s": round(n_chunks / statistics.median(plain for plain, _ in pairs), 3),
        "ours_chunks_per_s": round(n_chunks / statistics.median(ours for _, ours in pairs), 3),
        "ratio": round(statistics.median(plain / ours for plain, ours in pairs), 2),
    }


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    with TemporaryDirectory() as directory:
        algorithm = make_algorithm(arguments, Path(directory))
    # Episodes of one chunk each: a success and failures.
    success = [1] + [0] * (arguments.chunks - 1)
    group = sampled_group(algorithm.actor, algorithm.estimator, success, lengths=[[8]])
    result = memory(algorithm, group) if arguments.memory else speed(algorithm, group, arguments.pairs)
    print(json.dumps({**result, **vars(arguments)}))


if __name__ == "__main__":
    main()
