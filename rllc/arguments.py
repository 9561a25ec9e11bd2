"""Misspelt and misplaced arguments of public calls: which name was meant, and where it belongs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar, cast

from rllc.errors import InputError, nearest

Call = TypeVar("Call", bound=Callable[..., Any])

_OTHER_WORDS = {
    "learning_rate": "lr",
    "epsilon": "lr",
    "eps": "lr",
    "step_size": "lr",
    "gamma": "localization",
    "nbeta": "n_beta",
    "beta": "n_beta",
    "draws": "num_draws",
    "num_samples": "num_draws",
    "chains": "num_chains",
    "burn_in": "num_burnin_steps",
    "num_burnin": "num_burnin_steps",
    "batch": "batch_size",
    "criterion": "loss",
    "loss_fn": "loss",
    "dataset": "data",
    "dataloader": "data",
    "loader": "data",
}
"""Words of other libraries and papers for the same things."""


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
    known = list(inspect.signature(call).parameters)
    name_of_call = call.__qualname__.removesuffix(".__init__")

    @functools.wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in known:
                raise InputError(
                    f"{name_of_call}: unexpected keyword argument {name!r}; {_advice(name, known)}"
                )
        return call(*args, **kwargs)

    return cast("Call", checked)


def _advice(name: str, known: Iterable[str]) -> str:
    known = [other for other in known if other != "self"]
    meant = _OTHER_WORDS.get(name, name)
    if meant in known:
        return f"did you mean {meant!r}?"
    home = _home(meant)
    if home and home.split("=")[0] in known:
        return f"pass {home}."
    if home:
        return f"it belongs to {home.split('=', 1)[1]}."
    return nearest(name, known, count=1)


def _home(name: str) -> str | None:
    """Where an argument belongs, as it is typed."""
    from rllc.sampling import Compute, Sampling

    if name in ("lr", "localization"):
        return f"sampler=rllc.sgld({name}=…)"
    for argument, settings in {"sampling": Sampling, "compute": Compute}.items():
        if name in [field.name for field in fields(settings)]:
            return f"{argument}=rllc.{settings.__name__}({name}=…)"
    return None
