"""Output directories as the commands leave them, with figures that a test knows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.evaluation import report
from lerobot_smoothvla.evaluation.evaluate import Evaluation, Measurement
from lerobot_smoothvla.smoothness import measure

DT = 0.05


def write_training_run(
    directory: Path,
    success: Sequence[float | None],
    seed: int = 1,
    weight: float = 0.5,
    steps: int | None = None,
) -> Path:
    """A GRPO run of so many iterations; its jerk in iteration i is 8 − i m/s³."""
    config = {
        "env": {"type": "libero", "task": "libero_object"},
        "policy": {"type": "smoothvla", "pretrained_path": "outputs/sft"},
        "algorithm": {"type": "grpo", "n_groups": 4, "group_size": 8, "reward": {"weight": weight}},
        "seed": seed,
        "output_dir": str(directory),
        "steps": len(success) if steps is None else steps,
    }
    model = directory / "checkpoints" / "000000" / "pretrained_model"
    model.mkdir(parents=True)
    (model / "train_config.json").write_text(json.dumps(config))
    lines = [json.dumps(metrics(i, value)) for i, value in enumerate(success, start=1)]
    (directory / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return directory


def metrics(iteration: int, success: float | None) -> dict[str, Any]:
    """A line of `metrics.jsonl`."""
    return {
        "iteration": iteration,
        "success_rate": success,
        "jerk_rms": 8.0 - iteration,
        "jerk_rms_success": 6.0 - iteration,
        "time_to_success": None,
        "ratio_deviation": 0.01,
        "clip_fraction": 0.1,
        "approx_kl": 1e-4,
        "mixed_group_share": 0.5,
    }


def path(seed: int, n_steps: int = 40, roughness: float = 0.001) -> Tensor:
    """(T + 1, 3) positions, m, of an arm that moves 0.4 m and trembles."""
    time = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    smooth = 10 * time**3 - 15 * time**4 + 6 * time**5
    tremble = torch.randn(n_steps + 1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.4 * smooth[:, None] * torch.tensor([1.0, 0.5, 0.2]) + roughness * tremble).float()


def evaluation(
    success: Sequence[bool], roughness: float = 0.001, suite: str = "libero_object", positions: bool = True
) -> Evaluation:
    """Episodes from as many starts, ten of each task in turn."""
    measurements = []
    for index, solved in enumerate(success):
        taken = path(index, roughness=roughness)
        terms = measure(taken, DT, torch.tensor([16, 24]))
        terms |= {"time_to_success": terms["duration"] if solved else torch.nan, "action_magnitude": 0.5}
        start = Start(suite, index // 10, 40 + index % 10, 1040 + index % 10)
        measurements.append(Measurement(start, solved, terms, positions=taken if positions else None))
    return Evaluation(tuple(measurements))


def write_evaluation(directory: Path, videos: bool = False, **results: Evaluation) -> Path:
    """An evaluation of `policy`, and maybe `compare`, with videos of the first start."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = {name: f"outputs/{name}/checkpoints/last/pretrained_model" for name in results}
    report.write(directory, paths, results)
    if videos:
        for name, result in results.items():
            start = result.measurements[0].start
            for video in report.video_paths([start], 1, directory / "videos" / name).values():
                write_video(video)
    return directory


def write_video(file: Path) -> None:
    """A second of grey that gets brighter, encoded as rollouts are."""
    from lerobot.utils.io_utils import write_video as write

    file.parent.mkdir(parents=True, exist_ok=True)
    frames = [torch.full((64, 64, 3), 12 * index, dtype=torch.uint8).numpy() for index in range(20)]
    write(str(file), frames, fps=20)
