"""What to type in place of an argument that a function does not have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from rllc.errors import InputError, nearest

F = TypeVar("F", bound=Callable[..., Any])

HOMES = {
    "sampler": ("rllc.sgld", ("lr", "localization")),
    "sampling": (
        "rllc.Sampling",
        (
            *("num_chains", "num_draws", "num_burnin_steps", "num_steps_bw_draws", "batch_size"),
            *("n_beta", "seed", "first_chain", "num_probes", "start", "control_variate"),
            *("target_se", "autocast", "train_mode"),
        ),
    ),
    "compute": (
        "rllc.Compute",
        ("device", "runs_per_pass", "compile", "executor", "keep_states", "progress"),
    ),
}
"""Arguments that hold settings: what makes them, and of which names."""

_SYNONYMS = {
    "learning_rate": "lr",
    "step_size": "lr",
    "epsilon": "lr",
    "gamma": "localization",
    "beta": "n_beta",
    "nbeta": "n_beta",
    "num_samples": "num_draws",
    "samples": "num_draws",
    "burn_in": "num_burnin_steps",
    "burnin": "num_burnin_steps",
    "thinning": "num_steps_bw_draws",
    "random_state": "seed",
    "cores": "executor",
    "workers": "executor",
    "n_jobs": "executor",
    "verbose": "progress",
    "model": "into",
    "loss_fn": "loss",
    "dataset": "data",
    "dataloader": "data",
}
"""What other libraries call the same."""


def say_what_to_type(function: F) -> F:
    """Make a function, or a class, answer a misspelt argument with the nearest one that it has.

    >>> @say_what_to_type
    ... def scale(factor: float = 1.0) -> float:
    ...     return factor
    >>> scale(facter=2.0)
    Traceback (most recent call last):
    rllc.errors.InputError: scale: there is no argument `facter`; did you mean 'factor'?
    """
    if inspect.isclass(function):
        kind: Any = function
        kind.__init__ = _checked(kind.__init__, kind.__name__)
        return cast("F", kind)
    return cast("F", _checked(function, function.__name__))


def _checked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    known = [argument for argument in inspect.signature(function).parameters if argument != "self"]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.keys() <= set(known):
            unknown = next(argument for argument in kwargs if argument not in known)
            raise InputError(
                f"{name}: there is no argument `{unknown}`; {what_to_type(unknown, known)}"
            )
        return function(*args, **kwargs)

    return call


def what_to_type(unknown: str, known: list[str]) -> str:
    """The advice for one argument.

    >>> what_to_type("learning_rate", ["model", "data", "sampler"])
    'type sampler=rllc.sgld(lr=…).'
    """
    meant = _SYNONYMS.get(unknown, unknown)
    if meant in known:
        return f"did you mean {meant!r}?"
    for argument, (maker, names) in HOMES.items():
        if argument in known and meant in names:
            return f"type {argument}={maker}({meant}=…)."
    return nearest(unknown, known)
