"""A sampler made again from its settings, for those that come from a JSON file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rllc.errors import InputError, nearest
from rllc.samplers.hmc import hmc, mala
from rllc.samplers.prior import Prior
from rllc.samplers.rmsprop_sgld import rmsprop_sgld
from rllc.samplers.sampler import Sampler
from rllc.samplers.sghmc import sghmc
from rllc.samplers.sgld import sgld

_CONSTRUCTORS: Mapping[str, Callable[..., Sampler]] = {
    "sgld": sgld,
    "rmsprop_sgld": rmsprop_sgld,
    "sghmc": sghmc,
    "mala": mala,
    "hmc": hmc,
}


def from_settings(settings: Mapping[str, Any]) -> Sampler:
    """Make a sampler of this package from its ``settings``.

    >>> from_settings({"sampler": "sgld", "lr": 1e-3, "localization": 200.0})
    sgld(lr=0.001, localization=200)

    Args:
        settings: ``"sampler"`` names its constructor; the others are keyword arguments of that,
            and the prior's ``localization`` and ``half_width``.

    Raises:
        InputError: there is no such sampler or setting, or a value is out of its range.
    """
    options = dict(settings)
    name = options.pop("sampler", None)
    if name not in _CONSTRUCTORS:
        raise InputError(
            f"from_settings: 'sampler' must name one of rllc's, got {name!r}; "
            f"{nearest(name, _CONSTRUCTORS)}"
        )
    constructor = _CONSTRUCTORS[name]
    if "half_width" in options:
        prior = Prior(options.pop("localization", 0.0), options.pop("half_width"))
        options["prior"] = prior
    parameters = inspect.signature(constructor).parameters
    for option in options:
        if option not in parameters:
            names = [*(parameter for parameter in parameters if parameter != "prior"), "half_width"]
            raise InputError(
                f"from_settings: {name} has no setting {option!r}; {nearest(option, names)}"
            )
    return constructor(**options)
