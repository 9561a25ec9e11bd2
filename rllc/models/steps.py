"""Which training step a file, a folder or a revision is named after."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import NamedTuple

STATE_DICTS = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".pth.tar")
"""How files end that hold one state dict."""

_NUMBER = r"(?P<number>\d+(?:\.\d+)?(?:e\+?\d{1,2})?)(?P<scale>[kmbt]?)(?![a-z0-9])"
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_UNITS = {
    "steps": r"(?:global[-_]?)?steps?|iter(?:ation)?s?|updates?",
    "tokens": r"tok(?:en)?s?",
    "epochs": r"epochs?|ep",
}
"""Words before a number that say what it counts; the first of these that a name has decides."""

_WORDS = "checkpoint|ckpt|chkpt|cp|model|weights|params|snapshot|state_dict|state|net|saved?"
"""Words before a number that ends a name; by custom the number counts steps."""

_COUNTED = {
    unit: re.compile(rf"(?<![a-z])(?:{words})[-_=.:]?{_NUMBER}", re.IGNORECASE)
    for unit, words in _UNITS.items()
}
_NUMBERED = re.compile(rf"(?P<run>|.*[-_.])(?:{_WORDS})[-_=.]?{_NUMBER}", re.IGNORECASE)
_METRIC = re.compile(r"(?:epochs?|ep)[-_=]?\d+|\w+=[-+.\de]+", re.IGNORECASE)
_MOST = 2**63
"""Steps are kept as 64-bit integers."""


class Named(NamedTuple):
    """What a name says.

    >>> read_name("stage1-step1000-tokens4B")
    Named(step=1000, unit='steps', run='stage1')
    """

    step: int
    unit: str
    """``"steps"``, ``"tokens"`` or ``"epochs"``: what ``step`` counts."""
    run: str
    """What stands before the number: steps of another run, or of a run's other stage, may have the
    same numbers."""


def read_name(name: str) -> Named | None:
    """The step in a name; ``None`` if it says none, or more than one.

    ======================================  =========================
    name                                    step
    ======================================  =========================
    ``step1000``, ``step_1000``             1000 steps
    ``global_step500``, ``iter-500``        500 steps
    ``checkpoint-500``, ``ckpt_500.pt``     500 steps
    ``model_00100.pth``, ``100.pt``         100 steps
    ``epoch=3-step=1000.ckpt``              1000 steps
    ``stage1-step1000-tokens4B``            1000 steps of ``stage1``
    ``epoch-3``                             3 epochs
    ``tokens_1e9.pth``                      1,000,000,000 tokens
    ======================================  =========================

    >>> read_name("runs/ckpt_100.pt").step
    100
    >>> read_name("main") is None
    True
    """
    stem = stem_of(name)
    for unit, pattern in _COUNTED.items():
        matches = list(pattern.finditer(stem))
        if not matches:
            continue
        steps = {_whole(match) for match in matches}
        step = steps.pop()
        if steps or step is None:
            return None
        return Named(step, unit, _run(stem[: matches[0].start()]))
    is_file = stem != PurePosixPath(Path(name).as_posix()).name
    if is_file and stem.isdecimal():
        return Named(int(stem), "steps", "")
    match = _NUMBERED.fullmatch(stem)
    if match is None:
        return None
    step = _whole(match)
    return None if step is None else Named(step, "steps", _run(match["run"]))


def step_in_name(name: str) -> int | None:
    """The step that a file, folder or revision is named after.

    >>> step_in_name("runs/step0000100"), step_in_name("main")
    (100, None)
    """
    named = read_name(name)
    return None if named is None else named.step


def stem_of(name: str) -> str:
    """The last part of a path, without what says that it is a file of weights.

    >>> stem_of("runs/ckpt_100.pth.tar"), stem_of("runs/v1.0")
    ('ckpt_100', 'v1.0')
    """
    last_part = PurePosixPath(Path(name).as_posix()).name
    for suffix in sorted(STATE_DICTS, key=len, reverse=True):
        if last_part.endswith(suffix):
            return last_part.removesuffix(suffix)
    return last_part


def _whole(match: re.Match[str]) -> int | None:
    """The number, if it is a whole one: ``1e9``, ``4B`` and ``1.5k`` are, ``1.5`` is not."""
    value = Decimal(match["number"]) * _SCALES[match["scale"].lower()]
    is_whole = value == value.to_integral_value() and value < _MOST
    return int(value) if is_whole else None


def _run(before: str) -> str:
    """What a name says of its run: without epochs and metrics, which differ from step to step."""
    return _METRIC.sub("", before).strip("-_=. ")
