"""Roles of heads: on models whose heads have known roles, and from evidence written down."""

from __future__ import annotations

import sys
from dataclasses import replace

import handmade
import matplotlib as mpl
import numpy as np
import pytest
import torch
from handmade import BOS, bracket_model, bracket_rows, induction_model, repeats
from tiny import tiny_model, tiny_tokens
from torch import nn

import rllc
from rllc.analysis import attention
from rllc.analysis.ablation import ablate
from rllc.analysis.attention import SCORES, Scores, scores
from rllc.analysis.roles import EVIDENCE, ROLES, Roles, RoleThresholds, classify, plot_roles
from rllc.analysis.tokens_in_context import Thresholds, tokens_in_context
from rllc.errors import InputError
from rllc.testing import unchanged

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")
ROWS = tiny_tokens(20, pos=8).rows.long()


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def copies() -> Roles:
    return classify(induction_model(), rllc.Tokens(repeats(num_rows=10), "copies"))


def test_hand_built_heads_have_their_roles(copies: Roles) -> None:
    for head, role in zip(copies.heads, copies.roles, strict=True):
        assert role == handmade.ROLES.get(head, "other")
    assert copies["L1H1"] == "induction"
    assert copies.having("previous token") == ("0:0",)
    assert copies.having("other") == ("0:2", "1:0", "1:2")
    assert copies.having("bracket") == ()


def test_a_hand_built_bracket_head_is_one() -> None:
    rows = bracket_rows(40)
    roles = classify(bracket_model(), rows, brackets={1: 3, 2: 4})
    assert roles.having("bracket") == ("2:0",)
    assert set(roles.roles) == {"bracket", "other"}
    share = roles.evidence["dyck"][roles.heads.index("2:0")]
    contexts = roles.contexts["2:0"]
    tokens = contexts.rows[contexts.row, contexts.position]
    assert share == np.isin(tokens, [3, 4]).mean()  # all closing brackets that it matters for


def test_without_brackets_no_head_is_a_bracket_head() -> None:
    assert classify(bracket_model(), bracket_rows(40)).having("bracket") == ()


def test_a_head_that_has_memorised_is_a_multigram_head() -> None:
    """A current-token head with a table, judged by what it matters for, not by where it looks."""
    rows = torch.tensor(
        [[BOS, 1, 2, 5, 6], [BOS, 3, 4, 6, 7], [BOS, 5, 1, 2, 8], [BOS, 8, 9, 3, 4]]
    )
    model = induction_model(bigrams={1: 2, 3: 4})
    assert classify(model, rows)["0:1"] == "current token"
    nowhere = RoleThresholds(
        current_token=1.0,
        previous_token=1.0,
        prefix_matching=1.0,
    )
    blurred = scores(model, bos=BOS)
    blurred = replace(blurred, current_token=0.9 * blurred.current_token)
    roles = classify(
        model,
        rows,
        thresholds=nowhere,
        scores=blurred,
    )
    assert roles["0:1"] == "multigram"
    i = roles.heads.index("0:1")
    assert roles.evidence["memorised"][i] == 2
    assert roles.evidence["multigram"][i] == 1


def evidence_of(head: dict[str, float]) -> dict[str, float]:
    return dict.fromkeys(EVIDENCE, 0.0) | {"tokens": 10.0} | head


@pytest.mark.parametrize(
    ("evidence", "role"),
    [
        ({}, "other"),
        (
            {"previous_token": 0.5, "induction": 1.0},
            "previous token",
        ),  # where it looks goes before what it is for
        ({"current_token": 0.5, "multigram": 1.0}, "current token"),
        ({"prefix_matching": 0.3, "multigram": 1.0}, "induction"),
        ({"prefix_matching": 0.29}, "other"),
        (
            {"prefix_matching": float("nan"), "induction": 0.4},
            "induction",
        ),  # not measured is no evidence
        (
            {
                "induction": 0.4,
                "dyck": 0.45,
                "multigram": 0.15,
            },
            "bracket",
        ),
        ({"dyck": 0.35, "multigram": 0.4}, "multigram"),
        ({"dyck": 0.29, "multigram": 0.29}, "other"),
        ({"multigram": 0.3}, "multigram"),
        ({"tokens": 0.0}, "other"),
    ],
)
def test_roles_from_evidence(evidence: dict[str, float], role: str) -> None:
    from rllc.analysis.roles import _role

    assert _role(evidence_of(evidence), RoleThresholds()) == role


def test_without_any_share_wanted_a_head_that_matters_nowhere_is_still_other() -> None:
    from rllc.analysis.roles import _role

    assert _role(evidence_of({"tokens": 0.0}), RoleThresholds(share=0.0)) == "other"


def test_evidence_is_what_the_analyses_say() -> None:
    model, rows = tiny_model(), ROWS % 5
    thresholds = Thresholds(effect=0.0, most=10_000)
    contexts = tokens_in_context(model, rows, brackets={1: 2}, thresholds=thresholds)
    measured, ablation = scores(model, seed=3), ablate(model, rows)
    roles = classify(model, rows, brackets={1: 2}, contexts=contexts, seed=3)
    evidence = roles.evidence
    for name in SCORES:
        assert np.array_equal(evidence[name], getattr(measured, name).ravel())
    assert np.array_equal(evidence["delta_loss"], ablation.delta)
    assert np.array_equal(evidence["delta_loss_se"], ablation.standard_error)
    kinds_of_share = {
        "induction": ["induction"],
        "dyck": ["dyck"],
        "multigram": ["n-gram", "skip n-gram"],
    }
    for i, head in enumerate(roles.heads):
        of_head = contexts[head]
        for name, kinds in kinds_of_share.items():
            assert evidence[name][i] == pytest.approx(np.isin(of_head.kind, kinds).mean())
        assert evidence["tokens"][i] == len(of_head)
        assert evidence["memorised"][i] == len(of_head.multigrams) > 0
    assert tuple(evidence) == EVIDENCE
    assert all(evidence[name].any() for name in EVIDENCE)


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    contexts, measured = tokens_in_context(model, ROWS), scores(model)
    calls = []

    def count(module: object, name: str) -> None:
        original = getattr(module, name)

        def counted(*args: object, **kwargs: object) -> object:
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    count(sys.modules["rllc.analysis.tokens_in_context"], "ablate")
    count(attention, "scores")
    classify(model, ROWS)
    assert calls == ["ablate", "scores"]
    classify(model, ROWS, contexts=contexts, scores=measured)
    assert calls == ["ablate", "scores"]


def test_random_rows_begin_as_the_given_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that rests on BOS does not where there is none."""
    first_ids = []
    original = attention.scores

    def recorded(model: nn.Module, bos: int | None, seed: int) -> Scores:
        first_ids.append(bos)
        return original(model, bos=bos, seed=seed)

    monkeypatch.setattr(attention, "scores", recorded)
    rows = ROWS.clone()
    classify(tiny_model(), rows)
    rows[:, 0] = 7
    classify(tiny_model(), rows)
    assert first_ids == [None, 7]


def test_some_heads_alone() -> None:
    model = tiny_model()
    contexts = tokens_in_context(model, ROWS, ablation=ablate(model, ROWS, ["1:2", "0:1"]))
    of_two, of_all = classify(model, ROWS, contexts=contexts), classify(model, ROWS)
    assert of_two.heads == ("1:2", "0:1")
    for name in EVIDENCE:
        assert np.allclose(of_two.evidence[name], of_all.evidence[name][[5, 1]], atol=1e-6)
    assert of_two.roles == (of_all["1:2"], of_all["0:1"])


def test_results_as_tables(copies: Roles) -> None:
    frame = copies.to_dataframe()
    assert list(frame.columns) == ["head", "role", *EVIDENCE]
    assert frame["role"].tolist() == list(copies.roles)
    assert (
        frame.set_index("head").loc["1:1", "prefix_matching"]
        == copies.evidence["prefix_matching"][4]
    )
    lines = repr(copies).splitlines()
    assert lines[0] == (
        "Roles on copies (thresholds: previous token 0.5, current token 0.5, "
        "prefix matching 0.3, share 0.3)"
    )
    assert lines[1].split() == [
        "head",
        "role",
        *(name for name in EVIDENCE if name != "delta_loss_se"),
    ]
    assert lines[6].split()[:5] == ["1:1", "induction", "0.045", "0.000", "1.000"]
    assert lines[6].split()[-2:] == ["80", "0"]


def test_figure_shows_evidence_and_roles(copies: Roles) -> None:
    _, ax = plt.subplots()
    assert plot_roles(copies, ax=ax) is ax
    shades = ax.images[0].get_array()
    for row, name in enumerate(EVIDENCE[:6]):
        assert np.array_equal(shades[row], copies.evidence[name])
    loss = copies.evidence["delta_loss"]
    assert np.allclose(shades[6], np.clip(loss / loss.max(), 0, 1))
    texts = [text.get_text() for text in ax.texts]
    assert texts[6 * 6 : 6 * 7] == [f"{value:.2f}" for value in loss]
    assert texts[6 * 7 : 6 * 8] == [str(n) for n in copies.evidence["memorised"]]
    assert texts[6 * 8 :] == list(copies.roles)
    labels = ax.get_xticklabels()
    colors = {role: label.get_color() for role, label in zip(copies.roles, labels, strict=True)}
    assert len(set(colors.values())) == len(set(copies.roles))


def test_figure_of_heads_without_any_evidence(copies: Roles) -> None:
    nothing = {name: np.zeros_like(values) for name, values in copies.evidence.items()}
    ax = plot_roles(replace(copies, evidence=nothing))
    assert np.array_equal(ax.images[0].get_array(), np.zeros((8, 6)))  # no division by 0


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    with unchanged(model):
        classify(model, ROWS)
    assert model.training


def test_roles_have_names_and_colours() -> None:
    assert set(handmade.ROLES.values()) <= set(ROLES)
    assert len(set(ROLES)) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: classify(nn.Linear(2, 2), ROWS),
            r"classify: expected an rllc\.models\.AttentionOnly",
        ),
        (
            lambda m: classify(m, torch.tensor([[1, 99]])),
            "classify: the tokens 'tokens' have id 99",
        ),
        (
            lambda m: classify(m, ROWS, scores=scores(tiny_model(n_layers=1))),
            "the scores have no head '1:0'; make both",
        ),
        (lambda m: classify(m, ROWS)["2:0"], r"roles\['2:0'\]: no such head; did you mean"),
        (
            lambda m: classify(m, ROWS).having("brackets"),
            r"roles.having\('brackets'\): no such role; did you mean 'bracket'",
        ),
        (lambda m: RoleThresholds(share=2), "`share` must be from 0 to 1, got 2"),
    ],
)
def test_errors_say_what_to_type(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny_model())
