"""The identity of a measurement: everything on which its numbers depend, in one place.

:func:`measurement` makes the identity under which :func:`rllc.track`, :class:`rllc.Tracker` and
``rllc.sample(resume=...)`` give back what was computed before. What could change a number enters;
where a file lies, what a thing is called and on how many threads it is computed does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from rllc.errors import InputError
from rllc.losses.by_name import Distillation, next_token
from rllc.losses.contract import LossFunction, NamedLoss
from rllc.samplers import Sampler
from rllc.storage.contents import digest
from rllc.storage.files import sha256_of_text

NUMERICS = 1
"""Version of the numbers that this library gives. It rises with every change after which the same
call gives another number, beyond the rounding of float32. See :func:`numerics`."""

_OF_LOW_PRECISION = 1
"""The same for what changed of products in low precision alone."""


def numerics(autocast: str | None) -> int:
    """Return the version of the numbers of a call, by its precision of products.

    >>> numerics("bfloat16") > numerics(None)
    True
    """
    return NUMERICS if autocast is None else NUMERICS + _OF_LOW_PRECISION


def measurement(
    *,
    model: str,
    loss: str,
    sampler: str,
    settings: Mapping[str, Any],
    data: Mapping[str, str],
    weights: Mapping[str, str],
) -> dict[str, Any]:
    """Return all that the numbers of a measurement depend on, as JSON can hold it.

    Args:
        model: :func:`of_model`, or the hash of a checkpoint's weights and configuration.
        loss: :func:`of_loss`.
        sampler: :func:`of_sampler`.
        settings: of sampler and sampling, as far as the chains depend on them.
        data: by name, the SHA-256 of the rows.
        weights: by name, the SHA-256 of the masks.
    """
    return {
        "numerics": numerics(settings.get("autocast")),
        "model": model,
        "loss": loss,
        "sampler": sampler,
        "settings": {name: plain(value) for name, value in settings.items()},
        "data": dict(data),
        "weights": dict(weights),
    }


def plain(value: Any) -> Any:
    """Return a setting such that equal ones look equal in JSON: 30 and 30.0, lists and tuples.

    >>> plain((30.0, True, "center"))
    [30, True, 'center']
    """
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def of_model(model: nn.Module) -> str:
    """Return the SHA-256 of a model: its weights, buffers, configuration, and code if it is yours.

    Raises:
        InputError: it holds something that cannot be looked into.
    """
    return digest(model, "model")


def of_loss(loss: LossFunction | None) -> str:
    """Return what a loss is: of one of yours its contents, or the name that you gave it.

    >>> of_loss(None)
    'next token'

    Raises:
        InputError: it holds something that cannot be looked into.
    """
    if loss is None or loss is next_token:
        return "next token"
    if isinstance(loss, Distillation):
        return f"distillation of {of_model(loss.generator)}"
    if isinstance(loss, NamedLoss):
        return f"named {loss.name}"
    return digest(loss, "loss")


def of_sampler(sampler: Sampler) -> str:
    """Return the SHA-256 of what a sampler does; its name and numbers are settings.

    Raises:
        InputError: it holds something that cannot be looked into.
    """
    does = (sampler.init, sampler.step, sampler.full_batch, sampler.law)
    return digest(does, f"sampler {sampler.name!r}")


def of_call(
    model: nn.Module, loss: LossFunction | None, sampler: Sampler, autocast: str | None
) -> dict[str, Any]:
    """Return what chains are of, to be kept beside their states; ``None`` for what is not known."""
    return {
        "numerics": numerics(autocast),
        "model": if_known(of_model)(model),
        "loss": if_known(of_loss)(loss),
        "sampler": if_known(of_sampler)(sampler),
    }


def if_known(identify: Callable[[Any], str]) -> Callable[[Any], str | None]:
    """Make of a function such as :func:`of_model` one that gives ``None`` instead of an error."""

    def identify_or_not(value: Any) -> str | None:
        try:
            return identify(value)
        except InputError:
            return None

    return identify_or_not


def short_hash(text: str) -> str:
    """Return the first 32 hexadecimal digits of a text's SHA-256."""
    return sha256_of_text(text)[:32]
