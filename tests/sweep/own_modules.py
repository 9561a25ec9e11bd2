"""A module of one's own that workers in other processes can import."""

from __future__ import annotations

import torch
from small_sweeps import SMALL
from tiny import tiny_model
from torch import nn


def make(seed: int = 0) -> nn.Module:
    """A small regression, of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def square(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The loss of an output that should be 0."""
    return module(x)[:, 0] ** 2


def small_model() -> nn.Module:
    """The model of the small sweeps, of other weights."""
    return tiny_model(5, **SMALL)
