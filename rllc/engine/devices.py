"""Where a computation runs: the one place that decides about devices."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from rllc.errors import InputError, first_line
from rllc.losses.by_name import Distillation
from rllc.losses.contract import LossFunction

_CPU_PASS = 256 * 2**20
"""Bytes of a pass on a CPU. For the paper's model 4 runs, measured 10 to 25 % faster than 16."""


def on_device(
    model: nn.Module, loss: LossFunction | None, device: str | None
) -> tuple[nn.Module, LossFunction | None, torch.device]:
    """Return model and loss on a device: themselves where they are already, else one copy.

    Args:
        model: any module with parameters.
        loss: a generating model inside it is moved, too.
        device: ``None`` is where the model is.

    Raises:
        InputError: the model has no parameters, or there is no such device.
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise InputError(
            f"sampling {type(model).__name__}: it has no parameters; "
            f"expected a torch.nn.Module with weights."
        )
    try:
        chosen = parameter.device if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"Compute: `device` must be such as 'cpu' or 'cuda', got {device!r}."
        ) from error
    _check_there(chosen)
    try:
        if isinstance(loss, Distillation):
            loss = Distillation(_moved(loss.generator, chosen))
        model = _moved(model, chosen)
    except (RuntimeError, AssertionError) as error:  # torch has no such device, or no memory there
        raise InputError(
            f"Compute: the model cannot be put on `device` = {device!r}: {first_line(error)}."
        ) from error
    return model, loss, next(model.parameters()).device


def _check_there(device: torch.device) -> None:
    """Refuse a GPU that is not in this machine."""
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(
                f"Compute: there is no device {str(device)!r} here; torch sees {count} CUDA GPUs. "
                f"Pass device='cpu', or leave it out to stay where the model is."
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("Compute: there is no device 'mps' here; pass device='cpu'.")


def runs_that_fit(bytes_per_run: int, device: torch.device, worthwhile: int = 1) -> int:
    """How many runs a pass may hold; see ``Compute.runs_per_pass``.

    Args:
        bytes_per_run: that a run needs.
        device: where.
        worthwhile: so many runs are worth more memory than a pass on a CPU should take.
    """
    bytes_per_run = max(bytes_per_run, 1)
    if device.type == "cuda":
        budget = _power_of_two(torch.cuda.mem_get_info(device)[0] // 4)
        return max(1, budget // bytes_per_run)
    budget = _power_of_two(_free_memory() // 4)
    runs = min(budget, _CPU_PASS) // bytes_per_run
    return max(1, runs, min(worthwhile, budget // bytes_per_run))


def _power_of_two(number: int) -> int:
    """The next lower one. It is the same from day to day, and so is the rounding of float32."""
    return int(2 ** (number.bit_length() - 1))


def _free_memory() -> int:
    """Bytes that Linux says are available, page cache included; elsewhere 4 GiB."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 4 * 2**30
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 4 * 2**30


def _moved(model: nn.Module, device: torch.device) -> nn.Module:
    present = next((parameter.device for parameter in model.parameters()), device)
    if device.type == present.type and device.index in (None, present.index):
        return model
    return copy.deepcopy(model).to(device)
