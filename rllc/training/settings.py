"""How a model is trained, as one value, and the steps at which its checkpoints are kept."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from rllc.errors import InputError, is_real, must_be, one_of

PAPER_STEPS = (
    0,
    100,
    *range(200, 10_001, 200),
    *range(10_400, 20_001, 400),
    *range(21_000, 50_001, 1000),
)
"""The 107 of 50,000 steps at which arXiv 2410.02984 estimates LLCs."""

_STEPS_A_DECADE = 10
"""Steps of the schedule that is even in log step: each is a quarter later than the last."""

_LAST_RATE = 0.1
"""The share of the learning rate that is left at the end of a decay."""

_CHANGES_NO_WEIGHT = ("checkpoints", "resume_every")
"""Settings that only say what is written."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained. The defaults are the paper's; :meth:`fast` is for minutes of a CPU.

    >>> Training(num_steps=2000, lr=5e-3).optimizer
    'adamw'

    Args:
        num_steps: optimiser steps in all, counted from the start of the run.
        batch_size: rows a step; 100 rows of 1024 tokens in the paper.
        optimizer: ``"adamw"``, or ``"muon"`` for the matrices of the heads and AdamW for the rest.
        lr: AdamW's learning rate.
        betas: AdamW's decay rates of the two moments.
        weight_decay: AdamW's, decoupled, on all its parameters, biases and LayerNorms too (the
            paper says no more than "AdamW").
        muon_lr: Muon's learning rate: the spectral norm of a step on one matrix, roughly.
        muon_weight_decay: Muon's, decoupled.
        gradient_clip: largest norm of the whole gradient.
        warmup_steps: the rates rise linearly over so many steps.
        decay: ``"constant"`` rates, or a fall to a tenth along a ``"cosine"`` or a ``"linear"``.
        decay_steps: the fall takes the last so many steps; ``None``: all of them.
        dtype: of weights and optimiser, ``"float32"`` or ``"float64"``.
        autocast: ``"bfloat16"`` computes the forward pass's matrix products in that precision.
        checkpoints: steps at which checkpoints are kept, or a kind of :func:`schedule`. The last
            step always is one. Steps that a resumed run has behind it are not made up for.
        resume_every: also write ``resume.pt`` every so many steps; ``None``: only with
            checkpoints. A killed run loses the steps since the last.

    Raises:
        InputError: a setting cannot be used.

    Reference: arXiv 2410.02984, section on training; Loshchilov and Hutter 2019, "Decoupled weight
    decay regularization"; Jordan et al. 2024, "Muon: an optimizer for hidden layers".
    """

    num_steps: int = 50_000
    batch_size: int = 100
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    muon_lr: float = 0.02
    muon_weight_decay: float = 0.05
    gradient_clip: float = 1.0
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    decay_steps: int | None = None
    dtype: Literal["float32", "float64"] = "float32"
    autocast: Literal["bfloat16"] | None = None
    checkpoints: Literal["paper", "log"] | Iterable[int] = "paper"
    resume_every: int | None = None

    @classmethod
    def fast(cls, **changes: Any) -> Training:
        """Settings with which a two-layer transformer forms an induction head in minutes.

        >>> Training.fast(num_steps=2000).decay_steps
        400

        Train ``AttentionOnlyConfig.fast()`` with them. What makes it fast: positions that start as
        sinusoids, so that a previous-token head forms in hundreds of steps instead of thousands,
        and Muon on each head's matrix by itself, so that a head which has not found its task yet
        moves as fast as the others. In the last fifth of the steps the rates fall to a tenth:
        otherwise LLCs would measure where the noise of a high rate has left the weights.

        On ``python_corpus()``, half code and half prose, vocabulary 512, seed 0, the 1,500 steps of
        4,096 tokens take about 216 core-seconds on a shared machine and end with a previous-token
        score of 0.70 in one head, prefix matching of 0.23 in one, and 1.00 nats less loss on the
        second copy of random tokens (0.81 on text); steps 597 and 946 have 0.15 and 0.41 nats.

        Args:
            changes: settings to replace, by name.

        Reference: Jordan et al. 2024 for Muon and its rate; Press et al. 2021, "Shortformer", for
        positions that only Q and K see. The combination, and Muon a head at a time, are ours.
        """
        recipe: dict[str, Any] = {
            "num_steps": 1500,
            "batch_size": 16,
            "optimizer": "muon",
            "lr": 1e-2,
            "betas": (0.9, 0.99),
            "weight_decay": 0.03,
            "muon_lr": 0.02,
            "muon_weight_decay": 0.05,
            "warmup_steps": 100,
            "decay": "linear",
            "checkpoints": "log",
        }
        settings = recipe | changes
        if settings["decay"] != "constant":
            settings.setdefault("decay_steps", max(1, settings["num_steps"] // 5))
        return cls(**settings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_steps", count("num_steps", self.num_steps))
        right = isinstance(self.betas, tuple | list) and all(map(is_real, self.betas))
        must_be("training", "betas", self.betas, right, "two numbers, such as (0.9, 0.999)")
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "batch_size", count("batch_size", self.batch_size))
        if self.resume_every is not None:
            count("resume_every", self.resume_every)
        if not isinstance(self.checkpoints, str):
            right = isinstance(self.checkpoints, Iterable)
            expected = "'paper', 'log' or training steps, such as [0, 100]"
            must_be("training", "checkpoints", self.checkpoints, right, expected)
            object.__setattr__(self, "checkpoints", tuple(self.checkpoints))
        _check_choices(self)
        _check_rates(self)
        _check_steps(self)

    def rate(self, step: int) -> float:
        """The factor on the learning rates at a step: warm-up times decay.

        >>> training = Training(num_steps=100, warmup_steps=10, decay="linear", decay_steps=50)
        >>> [round(training.rate(step), 2) for step in (0, 9, 50, 75, 100)]
        [0.1, 1.0, 1.0, 0.55, 0.1]
        """
        rise = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        if self.decay == "constant":
            return rise
        length = self.num_steps if self.decay_steps is None else self.decay_steps
        progress = max(0.0, 1 - (self.num_steps - step) / length)
        if self.decay == "cosine":
            left = (1 + math.cos(math.pi * progress)) / 2
        else:
            left = 1 - progress
        return rise * (_LAST_RATE + (1 - _LAST_RATE) * left)

    def checkpoint_steps(self) -> tuple[int, ...]:
        """The steps at which checkpoints are kept, in increasing order."""
        if isinstance(self.checkpoints, str):
            return schedule(self.num_steps, self.checkpoints)
        return tuple(sorted({*self.checkpoints, self.num_steps}))

    def numbers(self) -> dict[str, Any]:
        """The settings that the weights after each step depend on, as JSON holds them.

        Two runs with the same numbers are the same as far as both go. At constant rates that does
        not depend on ``num_steps``, so a run can be made longer.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in _CHANGES_NO_WEIGHT:
            del values[name]
        if self.decay == "constant":
            del values["num_steps"]
        return values | {"betas": list(self.betas)}


def schedule(num_steps: int, kind: str = "paper") -> tuple[int, ...]:
    """Steps of a run at which to keep checkpoints: dense early, where most happens, sparse late.

    >>> schedule(1000)[:4], schedule(1000)[-2:], len(schedule(50_000))
    ((0, 2, 4, 8), (980, 1000), 107)
    >>> schedule(100, "log")
    (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 63, 79, 100)

    Args:
        num_steps: optimiser steps of the run, at least 1.
        kind: ``"paper"``: the paper's 107 of 50,000 steps, scaled: s becomes
            round(s · num_steps / 50,000). ``"log"``: 0, and steps even in log step, 10 a decade,
            that end at ``num_steps``. Equal steps merge, so short runs have fewer.

    Returns:
        Steps in increasing order, from 0 to ``num_steps``.

    Raises:
        InputError: ``num_steps`` is not a whole number of at least 1, or there is no such kind.
    """
    num_steps = count("num_steps", num_steps)
    if kind == "paper":
        scaled = {round(step * num_steps / PAPER_STEPS[-1]) for step in PAPER_STEPS}
        return tuple(sorted(scaled))
    if kind != "log":
        raise InputError(f"training: a schedule is 'paper' or 'log', got {kind!r}.")
    num_ratios = math.ceil(_STEPS_A_DECADE * math.log10(num_steps))
    steps = {0}
    for k in range(num_ratios + 1):
        ratio = 10 ** (k / _STEPS_A_DECADE)
        steps.add(round(num_steps / ratio))
    return tuple(sorted(steps))


def count(name: str, value: Any) -> int:
    """``value`` as an integer of at least 1.

    Raises:
        InputError: it is none.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"training: `{name}` must be a whole number of at least 1, got {value!r}.")
    return number


def _check_choices(training: Training) -> None:
    choices: dict[str, tuple[str | None, ...]] = {
        "optimizer": ("adamw", "muon"),
        "decay": ("constant", "cosine", "linear"),
        "dtype": ("float32", "float64"),
        "autocast": (None, "bfloat16"),
    }
    for name, allowed in choices.items():
        value = getattr(training, name)
        if not one_of(value, allowed):
            listed = " or ".join(repr(choice) for choice in allowed)
            raise InputError(f"training: `{name}` must be {listed}, got {value!r}.")


def _check_rates(training: Training) -> None:
    for name, usual in (("lr", "the paper's is 1e-3"), ("muon_lr", "usual: 0.02")):
        value = getattr(training, name)
        if not (is_real(value) and math.isfinite(value) and value > 0):
            raise InputError(
                f"training: `{name}` must be positive and finite, got {value!r}; {usual}."
            )
    if len(training.betas) != 2 or not all(0 <= beta < 1 for beta in training.betas):
        raise InputError(
            f"training: `betas` must be two numbers from 0 to below 1, got {training.betas!r}; "
            f"usual: (0.9, 0.999)."
        )
    for name in ("weight_decay", "muon_weight_decay"):
        value = getattr(training, name)
        if not (is_real(value) and math.isfinite(value) and value >= 0):
            raise InputError(
                f"training: `{name}` must be finite and not negative, got {value!r}; 0 is none."
            )
    if not is_real(training.gradient_clip) or not training.gradient_clip > 0:
        raise InputError(
            f"training: `gradient_clip` must be positive, got {training.gradient_clip!r}; "
            f"float('inf') is no clipping."
        )


def _check_steps(training: Training) -> None:
    num_steps = training.num_steps
    for name in ("warmup_steps", "decay_steps"):
        value = getattr(training, name)
        if value is None:
            continue
        fewest = 1 if name == "decay_steps" else 0
        if not isinstance(value, int) or value < fewest:
            raise InputError(
                f"training: `{name}` must be a whole number of steps, got {value!r}; leave it out "
                f"for none."
            )
    if training.decay_steps is not None and training.decay == "constant":
        raise InputError(
            f"training: `decay_steps` = {training.decay_steps} has no effect on a constant rate. "
            f"Say decay='linear' or decay='cosine'."
        )
    if training.decay_steps is not None and training.decay_steps > num_steps:
        raise InputError(
            f"training: `decay_steps` = {training.decay_steps} is more than `num_steps` = "
            f"{num_steps}; leave it out to decay from the first step."
        )
    if isinstance(training.checkpoints, str):
        schedule(num_steps, training.checkpoints)
        return
    for step in training.checkpoints:
        if not isinstance(step, int) or not 0 <= step <= num_steps:
            raise InputError(
                f"training: `checkpoints` must hold whole numbers from 0 to `num_steps` = "
                f"{num_steps}, got {step!r}."
            )
