"""The page of tokens coloured by λ̂: escaped, complete, and right in a browser's parser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_pages import Evil, Parsed, browse  # noqa: F401
from tiny import QUIET, SHORT, tiny_model, tiny_tokens

import rllc
from rllc.analysis.token_pages import write_token_page
from rllc.errors import InputError

ROWS = tiny_tokens(4)


@pytest.fixture(scope="module")
def draws() -> rllc.Draws:
    observe = {"rows": rllc.losses_on(ROWS)}
    heads = ["0:1", "1:2"]
    return rllc.sample(tiny_model(), ROWS, heads, sampling=SHORT, compute=QUIET, observe=observe)


def spans_of(page: Parsed) -> list[dict]:
    return [attributes for tag, attributes in page.elements if "data-value" in attributes]


def test_every_token_has_its_value_for_each_head(draws: rllc.Draws, tmp_path: Path) -> None:
    llc = rllc.covariances.token_llc(draws)
    path = write_token_page(tmp_path / "page.html", ROWS, llc, draws.names, num_rows=3)
    page = Parsed(path.read_text(encoding="utf-8"))
    spans = spans_of(page)
    assert len(spans) == 3 * 6
    values = np.array([span["data-value"].split() for span in spans], dtype=float)
    expected = llc.value[:, :3].reshape(2, 18).T
    np.testing.assert_allclose(values, expected, rtol=1e-2)
    assert [span["data-id"] for span in spans] == list(
        map(str, ROWS.rows[:3, 1:].flatten().tolist())
    )
    radios = [a for tag, a in page.elements if tag == "input"]
    assert [radio["value"] for radio in radios] == ["0", "1"]
    # The keyboard enters each row once.
    assert [span["tabindex"] for span in spans].count("0") == 3
    # The mean over the page's tokens is λ̂ on these rows.
    whole = write_token_page(tmp_path / "whole.html", ROWS, llc, draws.names)
    values = [span["data-value"].split() for span in spans_of(Parsed(whole.read_text("utf-8")))]
    of_heads = np.array(values, dtype=float).mean(axis=0)
    np.testing.assert_allclose(of_heads, llc.value.mean(axis=(1, 2)), rtol=2e-2)


def test_no_text_breaks_the_page(draws: rllc.Draws, tmp_path: Path) -> None:
    llc = rllc.covariances.token_llc(draws)
    names = rllc.weights.names.Names(("<b>0:1", "{style}"), ("x", "x"))
    path = write_token_page(
        tmp_path / "page.html", ROWS, llc, names, tokenizer=Evil(), title="<i>&"
    )
    text = path.read_text(encoding="utf-8")
    page = Parsed(text)
    assert not [tag for tag, _ in page.elements if tag in ("img", "b0:1", "i")]
    assert text.count("<script>") == 1
    assert "default-src 'none'" in text
    shown = [t for t in page.texts["t"] if "hacked" in t]
    assert shown


def test_the_wrong_rows_are_refused(draws: rllc.Draws, tmp_path: Path) -> None:
    llc = rllc.covariances.token_llc(draws)
    with pytest.raises(
        InputError, match=r"\[refinement, row, pos\] = \[2, 3, 6\].*got \[2, 4, 6\]"
    ):
        write_token_page(tmp_path / "a.html", ROWS[:3], llc, draws.names)
    with pytest.raises(InputError, match="`num_rows` must be an integer of at least 1"):
        write_token_page(tmp_path / "a.html", ROWS, llc, draws.names, num_rows=0)


@pytest.mark.slow
def test_pointer_and_keyboard_in_a_browser(
    browse,  # noqa: F811
    draws: rllc.Draws,
    tmp_path: Path,
) -> None:
    llc = rllc.covariances.token_llc(draws)
    path = write_token_page(tmp_path / "tokens.html", ROWS, llc, draws.names, tokenizer=Evil())
    walk = """
        document.querySelectorAll("input[name=head]")[1].click();
        const first = document.querySelector(".t[tabindex='0']");
        first.focus();
        first.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
        document.body.dataset.resources = performance.getEntriesByType("resource").length;
        document.body.dataset.title = document.title;
    """
    page = browse(path.read_text(encoding="utf-8"), walk)
    token = int(ROWS.rows[0, 2])
    said = page.texts["output"][0]
    assert said.startswith(f"position 2, id {token}: {llc.value[1, 0, 1]:.3g}"[:-1])
    body = page.named("body")[0]
    assert (body["data-resources"], body["data-title"]) == ("0", "λ̂ of each token")
    reached = page.named("span", tabindex="0", **{"data-position": "2"})
    assert len(reached) == 1
