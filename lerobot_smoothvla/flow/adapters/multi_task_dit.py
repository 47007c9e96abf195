"""Multi-task DiT: CLIP over cameras and instruction, a transformer over the chunk, one of two objectives.

Dims: B batch, H steps a chunk, P action dimensions, K denoising steps.
"""

from typing import Any

from torch import Tensor

from lerobot_smoothvla.flow.adapters.base import FlowAdapter, PolicyAdapter
from lerobot_smoothvla.flow.adapters.history import Conditioning, HistoryAdapter
from lerobot_smoothvla.flow.adapters.scheduler import ScheduledAdapter


class MultiTaskDiTAdapter(HistoryAdapter):
    """What both objectives share: cameras, instruction and states to one vector once."""

    uses = {
        "observation_encoder.encode": ("batch",),
        "noise_predictor.forward": ("x", "timestep", "conditioning_vec"),
    }
    parts = {
        "vision": ("observation_encoder.vision_encoder",),
        "vlm": ("observation_encoder.text_encoder.",),
    }

    @classmethod
    def for_config(cls, config: Any) -> type[PolicyAdapter]:
        """The adapter of the config's objective."""
        return MultiTaskDiTFlowAdapter if config.is_flow_matching else MultiTaskDiTDiffusionAdapter

    def condition(self, batch: dict[str, Tensor]) -> Tensor:
        """See `HistoryAdapter.condition`."""
        return self.policy.observation_encoder.encode(batch)

    def _network(self, context: Conditioning, x: Tensor, time: Tensor) -> Tensor:
        return self.policy.noise_predictor(x, time, conditioning_vec=context.vector)


class MultiTaskDiTDiffusionAdapter(MultiTaskDiTAdapter, ScheduledAdapter):
    """With the objective `diffusion`."""

    uses = {
        **MultiTaskDiTAdapter.uses,
        "objective.noise_scheduler.set_timesteps": ("num_inference_steps",),
    }

    @property
    def scheduler(self) -> Any:
        """The policy's own."""
        return self.policy.objective.noise_scheduler

    def predict(self, context: Conditioning, x: Tensor, step: Tensor) -> Tensor:
        """The transformer's answer at x (B, H, P), at step k of (B,); see `DiffusionPolicy.predict`."""
        return self._network(context, x, self.chain.timesteps[step])


class MultiTaskDiTFlowAdapter(MultiTaskDiTAdapter, FlowAdapter):
    """With the objective `flow_matching`, whose time runs from noise at 0 to the action at 1."""

    num_steps_field = "num_integration_steps"

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Reject what is not the straight flow in Euler steps too; see `PolicyAdapter.check_config`."""
        super().check_config(config)
        if config.integration_method != "euler":
            raise ValueError(
                f"`integration_method` should be 'euler', got '{config.integration_method}': the ratios are "
                "those of Euler steps; pass --policy.integration_method=euler, which with the same "
                "`num_integration_steps` asks the network a quarter as often."
            )
        if config.sigma_min != 0:
            raise ValueError(
                f"`sigma_min` should be 0, got {config.sigma_min}: its flow ends in noise around the action, "
                "which the ratios do not know; fine-tune a checkpoint that was trained with 0."
            )

    def velocity(self, context: Conditioning, x_t: Tensor, t: Tensor) -> Tensor:
        """v(x_t, t) = ε − a, (B, H, P): the network's a − ε at its time 1 − t. Differentiable."""
        return -self._network(context, x_t, 1 - t)
