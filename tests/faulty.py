"""Losses that fail on purpose, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from rllc.losses.by_name import next_token


@dataclass(frozen=True)
class Killer:
    """The next-token loss, but its process is killed where a row begins with a certain id.

    Args:
        first: id at the beginning of each row that means death.
        at_most: how many deaths there are; counted in ``folder``.
    """

    folder: str
    first: int
    at_most: int

    def __call__(self, module: nn.Module, batch: Tensor) -> Tensor:
        if int(batch[0, 0]) == self.first:
            for i in range(self.at_most):
                try:
                    Path(self.folder, f"death{self.first}-{i}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return next_token(module, batch)


def raises(module: nn.Module, batch: Tensor) -> Tensor:
    """Next-token loss that fails on rows that begin with id 7."""
    if int(batch[0, 0]) == 7:
        raise ArithmeticError("seven is\nnot for me")
    return next_token(module, batch)


def interrupted(module: nn.Module, batch: Tensor) -> Tensor:
    """Next-token loss during which somebody presses Ctrl-C, on rows that begin with id 7."""
    if int(batch[0, 0]) == 7:
        raise KeyboardInterrupt
    return next_token(module, batch)


@dataclass(frozen=True)
class Slow:
    """The next-token loss, after a wait."""

    seconds: float

    def __call__(self, module: nn.Module, batch: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return next_token(module, batch)


@dataclass(frozen=True)
class Both:
    """Two :class:`Killer` in one."""

    one: Killer
    other: Killer

    def __call__(self, module: nn.Module, batch: Tensor) -> Tensor:
        self.one(module, batch)
        return self.other(module, batch)


def hangs(module: nn.Module, batch: Tensor) -> Tensor:
    """Next-token loss that never ends on rows that begin with id 7."""
    if int(batch[0, 0]) == 7:
        time.sleep(3600)
    return next_token(module, batch)
