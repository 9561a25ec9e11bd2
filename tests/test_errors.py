"""One family of errors, which people can catch as the built-in ones too; and the nearest names."""

from __future__ import annotations

import pytest

import rllc
from rllc.errors import nearest

TEN = [f"{i}{i}" for i in range(10)]
FIRST_OF_TEN = "known: '00', '11', '22', '33', '44', '55', '66', '77', … (10 in all)"


def test_the_family() -> None:
    assert issubclass(rllc.InputError, rllc.RllcError)
    assert issubclass(rllc.InputError, ValueError)
    assert issubclass(rllc.FileError, rllc.RllcError)
    assert issubclass(rllc.FileError, RuntimeError)


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("attn.W_q", ["attn.W_V", "attn.W_Q"], "did you mean 'attn.W_Q' or 'attn.W_V'?"),
        ("CODE", ["prose", "code"], "did you mean 'code'?"),
        (85, [80, 8], "did you mean '8' or '80'?"),
        ("xyz", ["code", "prose"], "known: 'code', 'prose'"),
        ("?", TEN, FIRST_OF_TEN),
    ],
)
def test_the_nearest_names(name: object, known: list[object], message: str) -> None:
    assert nearest(name, known) == message
