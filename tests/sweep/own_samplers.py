"""Samplers as a user would write them, in a module that workers can import."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

import rllc


class State(NamedTuple):
    """Where the chains are, and where the last step led them."""

    position: Tensor
    move: Tensor


def start(position: Tensor) -> State:
    """Begin at the centre."""
    return State(position.clone(), position.new_zeros(position.shape))


@dataclass(frozen=True)
class Lazy:
    """A step downhill with noise and a share of the last step."""

    lr: float
    memory: float

    def __call__(self, state: State, energy, random) -> State:
        """Take the step."""
        _, gradient = energy(state.position)
        noise = random.normal() * self.lr**0.5
        move = self.memory * state.move - gradient * (self.lr / 2) + noise
        return State(state.position + move, move)


def lazy(lr: float = 1e-4, memory: float = 0.5, name: str = "lazy") -> rllc.samplers.Sampler:
    """A sampler without a known law."""
    return rllc.samplers.Sampler(name, lr, 0.0, start, Lazy(lr, memory), {"memory": memory})


def renamed(name: str = "mine") -> rllc.samplers.Sampler:
    """The paper's sampler under another name; it brings its law along."""
    return replace(rllc.sgld(), name=name)
