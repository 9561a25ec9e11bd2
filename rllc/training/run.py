"""A run in memory: model, optimisers and losses, and what one step does to them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rllc.engine.bind import is_attention_only
from rllc.engine.unembedding import Target, UnembedLoss
from rllc.errors import RllcError
from rllc.seeds import stable_hash
from rllc.training.optimisers import make_optimisers, set_rate
from rllc.training.reproducible import digest
from rllc.training.settings import Training

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, eq=False)
class Run:
    """A model in training, with its optimisers and the losses so far.

    Args:
        model: in training mode, on the device where it is trained.
        optimisers: they share the model's parameters.
        losses: ``[step]``, in nats, on the device; NaN where no step has been.
        training: the settings.
    """

    model: PreTrainedModel
    optimisers: list[Optimizer]
    losses: Tensor
    training: Training

    @classmethod
    def begin(cls, model: PreTrainedModel, training: Training) -> Run:
        """A run at step 0."""
        model.train()
        optimisers = make_optimisers(model, training)
        losses = torch.full((training.num_steps,), torch.nan, device=model.device)
        return cls(model, optimisers, losses, training)

    def take_step(self, step: int, batch: Tensor) -> None:
        """Move the weights. Nothing waits for the device."""
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss = mean_loss(self.model, batch, self.training.autocast)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.training.gradient_clip)
        set_rate(self.optimisers, self.training.rate(step))
        for optimiser in self.optimisers:
            optimiser.step()
        self.losses[step] = loss.detach()

    def state(self, step: int, of_run: str = "") -> dict[str, Any]:
        """All that the steps to come depend on, and the losses so far, with a checksum.

        Args:
            step: how many steps were taken.
            of_run: which run it is.
        """
        state = {
            "of_run": of_run,
            "step": step,
            "losses": self.losses[:step].cpu().clone(),
            "model": self.model.state_dict(),
            "optimizers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        return state | {"sha256": digest(state)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` gave."""
        self.model.load_state_dict(state["model"])
        for optimiser, own in zip(self.optimisers, state["optimizers"], strict=True):
            optimiser.load_state_dict(own)
        self.losses[: state["step"]] = state["losses"]

    def check_losses(self, start: int, end: int) -> None:
        """See that the losses of steps ``start`` to ``end`` are finite; waits for the device.

        Raises:
            RllcError: one is not.
        """
        losses = self.losses[start:end].cpu()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            first = int(bad[0])
            raise _diverged(f"the loss of step {start + first} is {float(losses[first])}")

    def check_weights(self, step: int) -> None:
        """See that the weights are finite.

        Raises:
            RllcError: one is not.
        """
        for name, parameter in self.model.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise _diverged(f"after step {step}, {name} has values that are not finite")


def initial_model(
    config: PreTrainedConfig | PreTrainedModel, seed: int, dtype: str
) -> PreTrainedModel:
    """The model before the first step: drawn from ``seed``, or a copy of the given one."""
    if isinstance(config, nn.Module):
        return copy.deepcopy(config).to(getattr(torch, dtype))
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stable_hash("initial weights", seed))
        # Drawn in float32, so that both precisions begin with the same weights.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.to(getattr(torch, dtype))


def mean_loss(model: Any, batch: Tensor, autocast: str | None) -> Tensor:
    """Mean next-token cross entropy in nats.

    For AttentionOnly through the sweep over chunks that sampling uses: 1.5 to 2 times faster a step
    on a CPU than logits and cross entropy, which for small models are most of the work. The sweep
    works in float32.
    """
    low = None if autocast is None else getattr(torch, autocast)
    with nullcontext() if low is None else torch.autocast(batch.device.type, low):
        if not is_attention_only(model) or model.dtype == torch.float64:
            return model(input_ids=batch, labels=batch).loss
        residual = model.activations(batch[:, :-1]).residual[-1]
        hidden = model.normalise("ln_final", residual, {})
    target = Target.next_tokens(batch)
    W_U, b_U = model.unembed.W_U[None], model.unembed.b_U[None]
    losses, _, _ = UnembedLoss.apply(hidden.float(), W_U, b_U, target, low)
    return losses[0]


def _diverged(what: str) -> RllcError:
    return RllcError(
        f"training diverged: {what}. Checkpoints from before are kept. Train again with a lower "
        f"`lr`, in another folder."
    )
