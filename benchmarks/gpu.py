"""What a policy costs on a GPU: chunks, ratios and updates over batch sizes and precisions, in one process.

    python benchmarks/gpu.py --size 450m --parts chunk decide ratio update
    python benchmarks/gpu.py --size 450m --parts compiled
    python benchmarks/gpu.py --size pi0 --parts chunk update --batch_sizes 1 8 --precisions bf16 --train lora

Random weights, two cameras of 256 px, float32 without TF32 in products of matrices (LeRobot leaves it off) or
autocast to bfloat16. Times are medians until the GPU is idle, memory is what tensors take at the peak
(`torch.cuda.max_memory_allocated`), the policy and the optimizer included.

- chunk: from a preprocessed batch to chunks; compiled: one chunk, with `torch.compile` around the velocity.
- decide: from an observation on the CPU to actions on the CPU, as in a rollout and on an arm.
- ratio: |ratio − 1| of 4 chunks that are sampled one by one and replayed alone or batched, at the start.
- update: `GRPOAlgorithm.update`, flow_matching, on one microbatch of chunks, or 8 of a single one; warm.

Each row is one JSON object as it is measured; a table follows.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1"}  # Before torch is loaded: as in a rollout.

import torch
from policies import SIZES, make_actor, peak, random_observation, reset_peak, sampled_group, seconds

from lerobot_smoothvla.doctor.measure import ratio_deviation
from lerobot_smoothvla.episode import Group
from lerobot_smoothvla.evaluation.report import markdown
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.rollout.engine import Actor

PRECISIONS = ("fp32", "bf16")
INSTRUCTION = "pick up the milk"
Row = dict[str, Any]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="450m")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["chunk", "decide", "ratio", "update"])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--train", nargs="+", choices=("expert", "lora"), default=["expert", "lora"])
    parser.add_argument("--backend", default="inductor", help="of torch.compile: or cudagraphs")
    parser.add_argument("--samples", type=int, default=10, help="of each time of a chunk")
    return parser.parse_args()


def median_ms(run: Callable[[], Any], arguments: argparse.Namespace) -> float:
    """Of a call, once it is warm."""
    for _ in range(2):
        run()
    times = [seconds(run, arguments.device) for _ in range(arguments.samples)]
    return round(1e3 * statistics.median(times), 2)


@torch.no_grad()
def chunk(actor: Actor, arguments: argparse.Namespace) -> Iterator[Row]:
    """The deployed sampling."""
    for n in arguments.batch_sizes:
        yield {"batch": n, **_chunk(actor, n, arguments)}


def _chunk(actor: Actor, n: int, arguments: argparse.Namespace) -> Row:
    generator = torch.Generator(arguments.device).manual_seed(0)
    batch = actor.model_input(random_observation(actor.policy.config, n), [INSTRUCTION] * n)
    reset_peak(arguments.device)

    def sample() -> None:
        DeployedSampler().sample(actor.adapter, actor.adapter.encode(batch), generator, n)

    return {"ms": median_ms(sample, arguments), "peak_gib": round(peak(arguments.device), 2)}


@torch.no_grad()
def compiled(actor: Actor, arguments: argparse.Namespace) -> Iterator[Row]:
    """One chunk with a compiled velocity."""
    adapter: Any = actor.adapter
    plain = adapter.velocity
    adapter.velocity = torch.compile(plain, backend=arguments.backend, dynamic=False)
    begin = time.perf_counter()
    _chunk(actor, 1, argparse.Namespace(**{**vars(arguments), "samples": 1}))
    compilation_s = round(time.perf_counter() - begin, 1)
    row = _chunk(actor, 1, arguments)
    adapter.velocity = plain
    yield {"batch": 1, "backend": arguments.backend, **row, "compilation_s": compilation_s}


def decide(actor: Actor, arguments: argparse.Namespace) -> Iterator[Row]:
    """A policy call of one episode."""
    generator = torch.Generator(arguments.device).manual_seed(0)
    observation = random_observation(actor.policy.config, 1)
    ms = median_ms(lambda: actor.decide(observation, [INSTRUCTION], DeployedSampler(), generator), arguments)
    yield {"ms": ms, "periods_of_30_hz": round(ms * 30 / 1e3, 2)}


@torch.no_grad()
def ratio(actor: Actor, arguments: argparse.Namespace) -> Iterator[Row]:
    """The first ratio of both estimators."""
    for setting in ({"ratio": "flow_matching"}, {"ratio": "flow_sde"}):
        estimator = GRPOConfig(**setting).estimator(actor.policy.config)
        deviation = ratio_deviation(actor, estimator, 4, 0)
        yield {**setting, **{name: float(f"{value:.1e}") for name, value in deviation.items()}}


def update(actor: Actor, arguments: argparse.Namespace) -> Iterator[Row]:
    """An update of everything that is trainable."""
    group = sampled_group(actor, GRPOConfig().estimator(actor.policy.config), (1, *[0] * 7), lengths=[[8]])
    for checkpointing in (False, True):
        for n in arguments.batch_sizes:
            n_chunks = max(n, 8)
            episodes = (group.episodes * n_chunks)[:n_chunks]  # In turns, as many as there should be.
            config = GRPOConfig(
                minibatch_size=n_chunks,
                microbatch_size=n,
                bf16=actor.execution.bf16,
                gradient_checkpointing=checkpointing,
            )
            measured = _update(actor, config, Group(episodes), arguments.device)
            yield {"checkpointing": checkpointing, "microbatch": n, **measured}


def _update(actor: Actor, config: GRPOConfig, group: Group, device: str) -> Row:
    reset_peak(device)
    times: list[float] = []
    algorithm = GRPOAlgorithm(actor, config)
    with suppress(torch.cuda.OutOfMemoryError):
        for _ in range(2):
            times.append(seconds(lambda: algorithm.update(iter([[group]])), device))
    actor.policy.zero_grad()
    ms = round(1e3 * times[-1] / len(group.episodes), 1) if len(times) == 2 else "out of memory"
    return {"ms_a_chunk": ms, "peak_gib": round(peak(device), 2)}


PARTS: dict[str, Callable[[Actor, argparse.Namespace], Iterator[Row]]] = {
    "chunk": chunk,
    "compiled": compiled,
    "decide": decide,
    "ratio": ratio,
    "update": update,
}


def rows(train: str, parts: list[str], arguments: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """What is measured of a policy that is trained so, each with the name of its part."""
    begin = time.perf_counter()
    with TemporaryDirectory() as directory:
        rank = 16 if train == "lora" else 0
        actor = make_actor(arguments.size, Path(directory), arguments.device, rank)
    print(f"built in {time.perf_counter() - begin:.0f} s", flush=True)
    for precision in PRECISIONS:
        if precision in arguments.precisions:
            # As in a run: with bf16, what is frozen is stored so.
            acting = GRPOAlgorithm(actor, GRPOConfig(bf16=precision == "bf16")).actor
            for part in parts:
                for row in PARTS[part](acting, arguments):
                    yield part, {"train": train, "precision": precision} | row
    parameters = list(actor.policy.parameters())
    total = sum(p.numel() for p in parameters) / 1e6
    trained = sum(p.numel() for p in parameters if p.requires_grad) / 1e6
    print(f"{total:.0f} M parameters, {trained:.1f} M of them trained", flush=True)


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    measured: dict[str, list[Row]] = {}
    for index, train in enumerate(arguments.train):
        parts = [part for part in arguments.parts if part == "update" or index == 0]
        for part, row in rows(train, parts, arguments) if parts else ():
            print(json.dumps({"part": part, "size": arguments.size, **row}), flush=True)
            measured.setdefault(part, []).append(row)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    for part, of_part in measured.items():
        table = markdown([list(of_part[0]), *([str(value) for value in row.values()] for row in of_part)])
        print(f"\n{arguments.size}, {part} ({gpu})\n\n{table}", end="")


if __name__ == "__main__":
    main()
