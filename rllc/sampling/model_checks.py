"""Modules whose weights cannot be sampled as they are: refused by name, with what to type."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import checkpoint

from rllc.errors import InputError

_PATCHING = threading.Lock()


def check_weights_are_there(model: nn.Module) -> None:
    """Refuse parameters without numbers, or with numbers that are not laid out one by one.

    Raises:
        InputError: names the first of them, and says what to type.
    """
    for name, parameter in model.named_parameters():
        what = _unsuited(parameter)
        if what is not None:
            kind, advice = what
            raise InputError(
                f"sampling {type(model).__name__}: parameter {name!r} is {kind}; {advice}."
            )
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            continue
        if module.max_norm is not None:
            raise InputError(
                f"sampling {type(model).__name__}: {name or 'the model'!r} is an embedding with "
                f"max_norm={module.max_norm:g}, which rescales its own weights whenever it is "
                f"called, so that they are not where a chain puts them; call it once on all ids "
                f"and set {name or 'model'}.max_norm = None."
            )
        if module.sparse:
            raise InputError(
                f"sampling {type(model).__name__}: {name or 'the model'!r} is an embedding with "
                f"sparse gradients; set {name or 'model'}.sparse = False, which changes no number."
            )


def _unsuited(parameter: Tensor) -> tuple[str, str] | None:
    """The reason why a parameter cannot be sampled, and what to do about it."""
    if is_lazy(parameter):
        return "lazy and has no shape yet", "call the model once on a batch, then sample it"
    if parameter.is_meta:
        advice = "load weights first, as with model.to_empty(device='cpu') and load_state_dict"
        return "on the device 'meta' and has no numbers", advice
    if parameter.is_nested:
        return "a nested tensor", "give each of its parts as a parameter of its own"
    if parameter.layout != torch.strided:
        kind = f"sparse ({str(parameter.layout).removeprefix('torch.')})"
        return kind, "make it dense, as with nn.Parameter(parameter.to_dense())"
    if parameter.is_quantized:
        return "quantised", "load the model in float32"
    return None


@contextmanager
def refusing_reentrant(model: nn.Module | None) -> Iterator[None]:
    """Refuse modules whose checkpoints give no gradients of their weights to a chain.

    Reentrant checkpoints run a part of the model without gradients, and give its weights theirs
    only by ``backward()``; asked otherwise, they are silently 0.

    Raises:
        InputError: such a checkpoint was called within the block.
    """
    called = []
    function: Any = checkpoint.CheckpointFunction
    original = function.forward

    def noting(*arguments: object) -> object:
        called.append(True)
        return original(*arguments)

    with _PATCHING:
        function.forward = staticmethod(noting)
        try:
            yield
        finally:
            function.forward = staticmethod(original)
    if called:
        raise InputError(
            f"sampling {type(model).__name__}: it uses reentrant checkpoints, which give no "
            f"gradient of the weights within them; pass use_reentrant=False to "
            f"torch.utils.checkpoint.checkpoint, or switch gradient checkpointing off."
        )
