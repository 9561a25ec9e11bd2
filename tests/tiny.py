"""Small models and data for tests: every weight random, small enough to be sampled thousands of
times."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import rllc
from rllc.models import AttentionOnly, AttentionOnlyConfig
from rllc.seeds import generator

SIZES = {"n_layers": 2, "d_model": 12, "n_heads": 3, "d_head": 4, "n_ctx": 8, "d_vocab": 11}
QUIET = rllc.Compute(progress=False)
SHORT = rllc.Sampling(
    num_chains=2, num_draws=5, batch_size=4, start="center", control_variate=False, num_probes=0
)

LAX = rllc.Limits(
    max_spikes=1e9,
    min_stability=0.0,
    min_acceptance=0.0,
    max_step=1e9,
    max_missing=1e9,
    min_relaxation_times=0.0,
    false_alarm=0.0,
    max_heavy_tails=1.0,
    max_noise=1e9,
    max_imprecision=1e9,
    max_control_ratio=1e9,
    max_pairing=1e9,
)
"""Limits that nothing but a negative value or chains that do not move offend."""


def tiny_model(seed: int = 0, **changes: object) -> AttentionOnly:
    """An attention-only model of 2 layers and 3 heads a layer, biases and LayerNorm scales random
    too."""
    with torch.random.fork_rng(devices=[]):
        model = AttentionOnly(AttentionOnlyConfig(**SIZES | changes)).eval()
    stream = generator("tiny_model", seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=stream)
        parameter.data = 1 + 0.1 * noise if name.endswith(".w") else 0.4 * noise
    return model


def tiny_tokens(
    num_rows: int = 12, pos: int = 7, seed: int = 0, name: str = "tokens"
) -> rllc.Tokens:
    """Random rows of ids."""
    return rllc.Tokens(
        torch.randint(SIZES["d_vocab"], (num_rows, pos), generator=generator("tokens", seed)),
        name=name,
    )


def trained_on_markov() -> tuple[nn.Module, rllc.Tokens]:
    """A small attention-only model, trained on a Markov chain to about the chain's own loss."""
    stream = generator("markov")
    next_token = torch.softmax(2 * torch.randn(12, 12, generator=stream), 1)
    rows = torch.randint(12, (512, 1), generator=stream)
    for _ in range(11):
        tokens = torch.multinomial(next_token[rows[:, -1]], 1, generator=stream)
        rows = torch.cat([rows, tokens], 1)
    config = AttentionOnlyConfig(n_layers=2, d_model=12, n_heads=2, d_head=6, n_ctx=12, d_vocab=12)
    data = rllc.Tokens(rows, "markov")
    training = rllc.Training(num_steps=300, batch_size=64, lr=1e-2)
    return rllc.train(config, data, training=training, progress=False), data


class Quadratic(nn.Module):
    """ℓ(v) = ½ Σ h (v − v*)², with w* = v* random; ``loss`` adds a term x·(v − v*) for each example
    x."""

    def __init__(self, curvatures: Tensor) -> None:
        super().__init__()
        start = torch.randn(curvatures.shape, generator=generator("start"))
        self.v = nn.Parameter(start.clone())
        self.register_buffer("start", start)
        self.register_buffer("curvatures", curvatures)

    def forward(self, x: Tensor) -> Tensor:
        away = self.v - self.start
        return 0.5 * (self.curvatures * away**2).sum() + x @ away


def loss_of_quadratic(module: nn.Module, x: Tensor) -> Tensor:
    """Per-example losses ``[batch]`` of a :class:`Quadratic`."""
    return module(x)


def square(module: nn.Module, x: Tensor) -> Tensor:
    """A loss for modules with one output: its square."""
    return module(x)[:, 0] ** 2
