"""Curvature, tokens in context and their pages, and values of tokens, on models of other types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pages import Parsed
from test_stream import OTHER, ROWS, loud
from tiny import QUIET, SHORT
from torch import Tensor

import rllc
from rllc.analysis.ablation import ablate
from rllc.analysis.curvature import Probing
from rllc.analysis.pages import page, write_pages
from rllc.analysis.patterns import patterns
from rllc.analysis.surface import surfaces
from rllc.analysis.token_pages import write_token_page
from rllc.analysis.tokens_in_context import tokens_in_context
from rllc.errors import InputError
from rllc.testing import unchanged

NAMES = pytest.mark.parametrize("name", ["gpt2", "llama"])


def mean_loss(model: Any) -> Tensor:
    logits = model(ROWS).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ROWS[:, 1:].flatten())


@NAMES
def test_products_with_the_hessian_of_a_head_are_differences_of_slopes(name: str) -> None:
    model = loud(name).double()
    head = rllc.head("1:1")
    probing = Probing(num_probes=2, batch_size=2)
    with unchanged(model):
        (surface,) = surfaces(model, rllc.Tokens(ROWS), head, None, probing, "test")
        vector = torch.randn(1, surface.dim, generator=torch.Generator().manual_seed(5))
        product = surface.product(vector.double())
    masks = dict(sorted(head.masks(model).items()))
    parameters = {name: model.get_parameter(name) for name in masks}

    def slope(step: float) -> Tensor:
        """Of the loss, with the head's weights moved along the vector."""
        start = 0
        with torch.no_grad():
            for tensor, mask in masks.items():
                size = int(mask.sum())
                parameters[tensor][mask] += step * vector[0, start : start + size].double()
                start += size
        slopes = torch.autograd.grad(mean_loss(model), list(parameters.values()))
        return torch.cat([s[m] for s, m in zip(slopes, masks.values(), strict=True)])

    size = 1e-3  # some norms compute in float32
    after = slope(size)
    before = slope(-2 * size)
    expected = (after - before) / (2 * size)
    assert expected.abs().max() > 0.01
    assert torch.allclose(product[0], expected, atol=1e-3 * float(expected.abs().max()))


@NAMES
def test_tokens_in_context_and_their_pages(name: str, tmp_path: Path) -> None:
    model = loud(name)
    tokens = rllc.Tokens(torch.cat([ROWS, OTHER]))
    with unchanged(model):
        contexts = tokens_in_context(model, tokens)
        paths = write_pages(tmp_path, model, contexts, num_tokens=2)
    assert tuple(paths) == rllc.anatomy(model).heads
    head = next(head for head in contexts.heads if len(contexts[head]))
    layer, number = (int(part) for part in head.split(":"))
    of_head = contexts[head]
    rise = ablate(model, tokens, head, method="mean").tokens[0]
    place = of_head.row[0], of_head.position[0] - 1
    assert rise[place] == pytest.approx(rise.max(), rel=1e-4)
    # Where the page says that the head looks, from the position before the token.
    attention = patterns(model, tokens)[of_head.row[0], layer, number, of_head.position[0] - 1]
    spans = [a for _, a in Parsed(page(model, contexts, head, num_tokens=1)).elements]
    looks = [span["data-look"] for span in spans if span.get("data-look")]
    shares = {int(share.split(":")[1]) for look in looks for share in look.split()}
    assert round(100 * float(attention.max())) in shares


def test_values_of_tokens_have_a_page(tmp_path: Path) -> None:
    model = loud("llama")
    rows = rllc.Tokens(ROWS)
    observe = {"rows": rllc.losses_on(rows)}
    draws = rllc.sample(model, rows, ["0:1", "1:2"], sampling=SHORT, compute=QUIET, observe=observe)
    values = rllc.covariances.token_llc(draws)
    path = write_token_page(tmp_path / "page.html", rows, values, draws.names)
    spans = [a for _, a in Parsed(path.read_text("utf-8")).elements if "data-value" in a]
    shown = np.array([span["data-value"].split() for span in spans], dtype=float)
    np.testing.assert_allclose(shown, values.value.reshape(2, -1).T, rtol=1e-2, atol=1e-6)


def test_pages_of_models_that_see_later_tokens_are_refused() -> None:
    contexts = tokens_in_context(loud("gpt2"), rllc.Tokens(torch.cat([ROWS, OTHER])))
    with pytest.raises(InputError, match="page: BertForMaskedLM sees later tokens"):
        page(loud("bert"), contexts, "1:1")
