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
_TOO_LARGE = 2**63
"""Steps are stored as 64-bit integers."""


class Named(NamedTuple):
    """The step in a name, and what else the name says.

    >>> read_name("stage1-step1000-tokens4B")
    Named(step=1000, unit='steps', run='stage1')
    """

    step: int
    unit: str
    """``"steps"``, ``"tokens"`` or ``"epochs"``: what ``step`` counts."""
    run: str
    """The text before the number: another run, or another stage of a run, may have the same
    steps."""


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
        steps = {_whole_number(match) for match in matches}
        if len(steps) > 1:
            return None
        (step,) = steps
        if step is None:
            return None
        text_before = stem[: matches[0].start()]
        return Named(step, unit, _run(text_before))
    is_file = stem != PurePosixPath(Path(name).as_posix()).name
    if is_file and stem.isdecimal():
        return Named(int(stem), "steps", "")
    match = _NUMBERED.fullmatch(stem)
    if match is None:
        return None
    step = _whole_number(match)
    if step is None:
        return None
    return Named(step, "steps", _run(match["run"]))


def step_in_name(name: str) -> int | None:
    """The step that a file, folder or revision is named after.

    >>> step_in_name("runs/step0000100"), step_in_name("main")
    (100, None)
    """
    named = read_name(name)
    return None if named is None else named.step


def stem_of(name: str) -> str:
    """The last part of a path, without a suffix of weights.

    >>> stem_of("runs/ckpt_100.pth.tar"), stem_of("runs/v1.0")
    ('ckpt_100', 'v1.0')
    """
    last_part = PurePosixPath(Path(name).as_posix()).name
    for suffix in sorted(STATE_DICTS, key=len, reverse=True):
        if last_part.endswith(suffix):
            return last_part.removesuffix(suffix)
    return last_part


def _whole_number(match: re.Match[str]) -> int | None:
    """The number, if it is a whole one: ``1e9``, ``4B`` and ``1.5k`` are, ``1.5`` is not."""
    scale = _SCALES[match["scale"].lower()]
    value = Decimal(match["number"]) * scale
    is_whole = value == value.to_integral_value() and value < _TOO_LARGE
    return int(value) if is_whole else None


def _run(text_before: str) -> str:
    """The name of a run, from the text before a step's number.

    Epochs and metrics are left out, because they differ from step to step.
    """
    return _METRIC.sub("", text_before).strip("-_=. ")
