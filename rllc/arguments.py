"""Misspelt and misplaced arguments of public calls: which name was meant, and where it belongs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from rllc.errors import InputError, nearest

Call = TypeVar("Call", bound=Callable[..., Any])

HOMES = {
    "sampler": ("rllc.sgld", ("lr", "localization")),
    "sampling": (
        "rllc.Sampling",
        (
            *("num_chains", "num_draws", "num_burnin_steps", "num_steps_bw_draws", "batch_size"),
            *("n_beta", "seed", "first_chain", "num_probes", "start", "control_variate"),
            *("common_noise", "target_se", "autocast", "train_mode"),
        ),
    ),
    "compute": (
        "rllc.Compute",
        ("device", "runs_per_pass", "compile", "executor", "keep_states", "timeout", "progress"),
    ),
}
"""Arguments that hold settings: what makes them, and of which names."""

_OTHER_WORDS = {
    "learning_rate": "lr",
    "epsilon": "lr",
    "eps": "lr",
    "step_size": "lr",
    "gamma": "localization",
    "nbeta": "n_beta",
    "beta": "n_beta",
    "draws": "num_draws",
    "samples": "num_draws",
    "num_samples": "num_draws",
    "chains": "num_chains",
    "burn_in": "num_burnin_steps",
    "burnin": "num_burnin_steps",
    "num_burnin": "num_burnin_steps",
    "thinning": "num_steps_bw_draws",
    "random_state": "seed",
    "batch": "batch_size",
    "cores": "executor",
    "workers": "executor",
    "n_jobs": "executor",
    "verbose": "progress",
    "model": "into",
    "criterion": "loss",
    "loss_fn": "loss",
    "dataset": "data",
    "dataloader": "data",
    "loader": "data",
}
"""Words of other libraries and papers for the same things."""


_OF_CHECKPOINTS = ("positions", "revision", "subfolder", "cache_dir", "token")
"""Arguments of :func:`rllc.checkpoints`, which are given there and nowhere else."""


def names_checked(call: Call) -> Call:
    """Make a public function, or a class, refuse unknown arguments by saying which was meant.

    >>> @names_checked
    ... def f(*, num_draws): ...
    >>> f(draws=10)
    Traceback (most recent call last):
    rllc.errors.InputError: f: unexpected keyword argument 'draws'; did you mean 'num_draws'?
    """
    if inspect.isclass(call):
        made: Any = call
        made.__init__ = names_checked(made.__init__)
        return call
    parameters = [name for name in inspect.signature(call).parameters if name != "self"]
    name_of_call = call.__qualname__.removesuffix(".__init__")

    @functools.wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in parameters:
                meant = advice(name, parameters)
                raise InputError(f"{name_of_call}: unexpected keyword argument {name!r}; {meant}")
        return call(*args, **kwargs)

    return cast("Call", checked)


def advice(unknown: str, known: Iterable[str]) -> str:
    """Advice on what to type in place of an unknown argument.

    >>> advice("learning_rate", ["model", "data", "sampler"])
    'pass sampler=rllc.sgld(lr=…).'
    """
    meant = _OTHER_WORDS.get(unknown, unknown)
    known = list(known)
    if meant in known:
        return f"did you mean {meant!r}?"
    for argument, (maker, names) in HOMES.items():
        if meant in names:
            typed = f"{maker}({meant}=…)"
            return f"pass {argument}={typed}." if argument in known else f"it belongs to {typed}."
    if unknown in _OF_CHECKPOINTS:
        return f"it belongs to rllc.checkpoints(source, {unknown}=…), which gives a list."
    return nearest(unknown, known)
