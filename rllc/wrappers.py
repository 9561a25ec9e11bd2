"""The module inside what other libraries wrap around it."""

from __future__ import annotations

from torch import nn

from rllc.errors import InputError, must_be

_INSIDE = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Wrappers that only pass calls on, and where their module is. ``torch.compile`` makes the last."""

_SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")
"""Wrappers whose parameters are pieces of those of the module."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``.

    Its parameters have the names that it gave them, and it has its own ``config``.

    >>> type(unwrapped(nn.DataParallel(nn.Linear(1, 1)))).__name__
    'Linear'

    Raises:
        InputError: its weights are in pieces (FSDP, DeepSpeed), or a part of it is compiled.
    """
    expected = "a torch.nn.Module; rllc.load(folder) gives one"
    must_be("weights of a model", "model", model, isinstance(model, nn.Module), expected)
    inside = _inside(model)
    while inside is not None:
        model = inside
        inside = _inside(model)
    for name, module in model.named_modules():
        _refuse(model, name, module)
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    attribute = _INSIDE.get(type(model).__name__)
    if attribute is None or not type(model).__module__.startswith("torch."):
        return None
    return getattr(model, attribute, None)


def _refuse(model: nn.Module, name: str, module: nn.Module) -> None:
    where = f"{type(model).__name__}{f', at {name!r}' if name else ''}"
    kinds = {kind.__name__ for kind in type(module).__mro__}
    for wrapper in _SHARDED:
        if wrapper in kinds:
            raise InputError(
                f"model: {where} is under {wrapper}, and its parameters are pieces on several "
                f"devices. Gather a full state dict (torch.distributed.checkpoint.state_dict."
                f"get_model_state_dict with full_state_dict=True), and put it into the plain "
                f"module with rllc.load(path, into=module)."
            )
    if "OptimizedModule" in kinds or getattr(module, "_compiled_call_impl", None) is not None:
        raise InputError(
            f"model: a part of {where} is compiled, and keeps the weights that it was compiled "
            f"with; give the module as it was before torch.compile or .compile(). "
            f"rllc.Compute(compile=True) compiles what is sampled."
        )
