"""Pages of heads: read by a parser, compared with the model, and opened in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import induction_model, repeats
from tiny import tiny_model, tiny_tokens
from torch import nn

import rllc
from rllc.analysis.ablation import ablate
from rllc.analysis.pages import page, write_pages
from rllc.analysis.patterns import patterns
from rllc.analysis.tokens_in_context import KINDS, Thresholds, tokens_in_context
from rllc.errors import InputError
from rllc.models import AttentionOnly, AttentionOnlyConfig

EVERYTHING = Thresholds(effect=0.0, most=10_000)
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Evil:
    """A tokenizer whose texts would break a page that does not escape them."""

    texts = (
        "</span></p><script>document.title='hacked'</script>",
        "\"><img src=x onerror=document.title='hacked'>",
        "'&amp;\n",
        "{style}",
        "   \t",
        "",
    )

    def decode(self, ids: list[int]) -> str:
        return "".join(self.texts[i % len(self.texts)] for i in ids)


class Parsed(HTMLParser):
    """A page as nested elements, and its texts by the class of the element that they are in."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[tuple[str, dict]] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = defaultdict(list)
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.stack:
            tag, attributes = self.stack[-1]
            self.texts[(attributes.get("class") or tag).split()[0]].append(data)

    def named(self, tag: str, **attributes: str) -> list[dict]:
        """The attributes of the elements with a tag and with attributes that contain texts."""
        chosen = []
        for own_tag, own in self.elements:
            fits = [text in (own.get(name) or "") for name, text in attributes.items()]
            if own_tag == tag and all(fits):
                chosen.append(own)
        return chosen


def articles_of(text: str) -> list[str]:
    return re.findall("<article.*?</article>", text, re.DOTALL)


def spans_of(article: str) -> list[dict]:
    """The attributes of the tokens of an article."""
    return Parsed(article).named("span", **{"class": "t"})


def position_of(span: dict) -> int:
    return int(re.match(r"position (\d+)", span["title"])[1])


def look_of(span: dict) -> dict[int, int]:
    """Index among the shown tokens to percent."""
    pairs = [pair.split(":") for pair in span.get("data-look", "").split()]
    return {int(index): int(percent) for index, percent in pairs}


@pytest.fixture(scope="module")
def copies():
    """A hand-built induction head on repeated rows."""
    model = induction_model()
    return model, tokens_in_context(model, rllc.Tokens(repeats(num_rows=4), "copies"))


def test_one_article_a_token_with_its_target_framed(copies) -> None:
    model, result = copies
    of_head = result["1:1"]
    parsed = Parsed(page(model, result, "1:1", num_tokens=10))
    assert parsed.texts["title"] == parsed.texts["h1"] == ["Head 1:1 on copies"]
    kinds = [attributes["data-kind"] for attributes in parsed.named("article")]
    assert kinds == ["induction"] * 10
    targets = parsed.named("span", **{"class": "target"})
    assert len(targets) == 10
    for i, target in enumerate(targets):
        position, effect = of_head.position[i], of_head.effect[i]
        token = int(of_head.rows[of_head.row[i], position])
        expected = f"position {position}, id {token}, Δloss +{effect:.3f} nats"
        assert target["title"].startswith(expected)


def test_kinds_are_counted_on_buttons(copies) -> None:
    model, result = copies
    parsed = Parsed(page(model, result, "1:1", num_tokens=10))
    buttons = [attributes["data-kind"] for attributes in parsed.named("button")]
    assert buttons == list(KINDS)
    counts = ["induction 32", "dyck 0", "n-gram 0", "skip n-gram 0", "other 0"]
    assert parsed.texts["kind"][:5] == counts
    assert "32 tokens in all, the first 10 shown" in parsed.texts["small"]


def test_pointing_shows_the_attention_of_the_position_before() -> None:
    model, rows = tiny_model(n_layers=3), tiny_tokens(6, pos=8).rows.long()
    result = tokens_in_context(model, rows, thresholds=EVERYTHING)
    pattern = patterns(model, rows).numpy()[:, 2, 1]
    of_head = result["2:1"]
    articles = articles_of(page(model, result, "2:1", num_tokens=200, context=7))
    assert len(articles) == min(200, len(of_head))
    for i, article in enumerate(articles):
        spans = spans_of(article)
        shown = [position_of(span) for span in spans]
        target = of_head.position[i]
        assert set(range(max(0, target - 7), target + 1)) <= set(shown)
        for position, span in zip(shown, spans, strict=True):
            drawn = {shown[index]: percent for index, percent in look_of(span).items()}
            if position == 0:  # is not predicted
                assert drawn == {}
                continue
            weights = pattern[of_head.row[i], position - 1]
            keys = [key for key in shown if weights[key] >= 0.01]
            assert drawn == {key: round(100 * float(weights[key])) for key in keys}


def test_colours_are_the_change_of_loss() -> None:
    model, rows = tiny_model(), tiny_tokens(6, pos=8).rows.long()
    ablation = ablate(model, rows)
    result = tokens_in_context(model, rows, ablation=ablation, thresholds=EVERYTHING)
    of_head = result["1:0"]
    reds = set()
    for i, article in enumerate(articles_of(page(model, result, "1:0", num_tokens=100))):
        for span in spans_of(article):
            position = position_of(span)
            color = re.search(r"rgba\((\d+),\d+,\d+,([\d.]+)\)", span.get("style", ""))
            if position == 0:  # is not predicted
                assert color is None
                continue
            effect = ablation.tokens[3, of_head.row[i], position - 1]
            strength = min(abs(effect) / 2, 1) * 0.75
            if color is None:
                assert strength < 0.025
                continue
            red, opacity = int(color[1]), float(color[2])
            assert red == (230 if effect > 0 else 0)
            assert opacity == pytest.approx(strength, abs=0.0051)
            reds.add(red)
    assert reds == {230, 0}


def test_what_is_far_back_is_shown_with_its_surroundings(copies) -> None:
    model, result = copies
    of_head = result["1:1"]
    first = articles_of(page(model, result, "1:1", context=2))[0]
    shown = [position_of(span) for span in spans_of(first)]
    key, position = of_head.attended[0, 0], of_head.position[0]
    around_key = set(range(key - 3, key + 4))
    around_token = set(range(position - 2, position + 3))
    assert shown == sorted((around_key | around_token) & set(range(19)))
    steps = np.diff([-1, *shown, 19])
    gaps = int((steps > 1).sum())
    assert first.count("<i>…</i>") == gaps > 1


def test_texts_of_tokens_cannot_break_the_page() -> None:
    model = tiny_model()
    rows = rllc.Tokens(tiny_tokens(20, pos=8).rows % 6, '"><script>x</script> & more')
    result = tokens_in_context(model, rows, thresholds=EVERYTHING, tokenizer=Evil())
    assert result["1:1"].multigrams
    text = page(model, result, "1:1", num_tokens=50)
    parsed = Parsed(text)
    assert len(parsed.named("script")) == 1
    assert parsed.named("img") == []
    assert parsed.texts["h1"] == ['Head 1:1 on "><script>x</script> & more']
    shown = set(parsed.texts["t"])
    assert Evil.texts[0] in shown
    assert "'&amp;⏎" in shown
    assert "   ⇥" in shown
    assert "∅" in shown  # an empty text can still be pointed at
    assert "{style}" in shown  # not filled in
    assert any("␣×3" in text for text in parsed.texts["q"])
    assert parsed.named("main", **{"class": "ids"}) == []


LOADING = {"src", "href", "srcset", "action", "data", "poster"}
"""Attributes by which an element loads something."""


def attribute_names(parsed: Parsed) -> set[str]:
    names = set()
    for _, attributes in parsed.elements:
        names |= attributes.keys()
    return names


def test_a_page_loads_nothing(copies) -> None:
    model, result = copies
    text = page(model, result, "1:1")
    parsed = Parsed(text)
    assert not LOADING & attribute_names(parsed)
    for loads in ("://", "url(", "@import"):
        assert loads not in text
    (policy,) = parsed.named("meta", **{"http-equiv": "Content-Security-Policy"})
    inline_only = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert policy["content"] == inline_only


def test_without_a_tokenizer_ids_are_set_apart(copies) -> None:
    model, result = copies
    assert Parsed(page(model, result, "1:1")).named("main", **{"class": "ids"})


def test_multigrams_are_listed() -> None:
    rows = [[0, 1, 2, 5, 6], [0, 3, 4, 6, 7], [0, 5, 1, 2, 8], [0, 8, 9, 3, 4], [0, 6, 7, 1, 2]]
    model = induction_model(bigrams={1: 2, 3: 4})
    result = tokens_in_context(model, torch.tensor(rows))
    parsed = Parsed(page(model, result, "0:1"))
    assert parsed.texts["summary"] == ["2 memorised multigrams"]
    first, second = (f"{multigram.effect:.2f}" for multigram in result["0:1"].multigrams)
    cells = ["n-gram", "3", "3", first, "n-gram", "2", "2", second]
    assert parsed.texts["td"] == cells
    assert parsed.texts["q"][:4] == ["1", "2", "3", "4"]


def test_a_head_without_tokens_has_a_page(copies) -> None:
    model, result = copies
    parsed = Parsed(page(model, result, "1:0"))
    assert parsed.named("article") == []
    assert "No token's loss rises enough when this head is ablated." in parsed.texts["p"]


def test_files_are_written(copies, tmp_path: Path) -> None:
    model, result = copies
    paths = write_pages(tmp_path / "new", model, result, num_tokens=3)
    assert list(paths) == list(result.heads)
    assert paths["1:1"].name == "head-1-1.html"
    assert paths["1:1"].read_text(encoding="utf-8") == page(model, result, "L1H1", num_tokens=3)
    assert len(list((tmp_path / "new").iterdir())) == 6 + 1


def test_an_index_has_a_row_a_head(tmp_path: Path) -> None:
    model = tiny_model()
    rows = rllc.Tokens(tiny_tokens(20, pos=8).rows % 6, '"><script>x</script> & {style}')
    result = tokens_in_context(model, rows, thresholds=EVERYTHING)
    paths = write_pages(tmp_path, model, result, num_tokens=1)
    parsed = Parsed((tmp_path / "index.html").read_text(encoding="utf-8"))
    title = '6 heads on "><script>x</script> & {style}'
    assert parsed.texts["h1"] == parsed.texts["title"] == [title]
    links = [tmp_path / attributes["href"] for attributes in parsed.named("a")]
    assert links == list(paths.values())
    assert all(link.is_file() for link in links)
    assert parsed.texts["a"] == list(result.heads)
    last = ["memorised multigrams", "Δloss (nats per token)", "± se"]
    assert parsed.texts["th"] == ["head", "tokens", *KINDS, *last]
    cells = np.array(parsed.texts["td"]).reshape(6, -1)
    for head, row in zip(result.heads, cells, strict=True):
        of_head = result[head]
        kinds = [str(np.sum(of_head.kind == kind)) for kind in KINDS]
        distinct = {(m.tokens, m.target, m.kind) for m in of_head.multigrams}
        assert row[:-2].tolist() == [str(len(of_head)), *kinds, str(len(distinct))]
        effect = ablate(model, rows, head)[head]
        assert row[-2:].astype(float) == pytest.approx(effect, abs=6e-5)
    assert cells[:, 6].astype(int).any()


def test_an_index_loads_nothing_but_its_links(tmp_path: Path) -> None:
    model = tiny_model()
    result = tokens_in_context(model, tiny_tokens(20, pos=8), thresholds=EVERYTHING)
    write_pages(tmp_path, model, result, num_tokens=1)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    parsed = Parsed(text)
    (policy,) = parsed.named("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert attribute_names(parsed) & LOADING == {"href"}
    assert "://" not in text
    assert not parsed.named("script")


def test_one_page_needs_no_index(copies, tmp_path: Path) -> None:
    model, result = copies
    assert list(write_pages(tmp_path, model, result["1:1"], num_tokens=1)) == ["1:1"]
    assert [path.name for path in tmp_path.iterdir()] == ["head-1-1.html"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, r: page(nn.Linear(2, 2), r, "1:1"),
            r"heads\(Linear\): expected attention",
        ),
        (lambda m, r: page(m, r, "5:1"), r"tokens_in_context\['5:1'\]: no such head; did you mean"),
        (
            lambda m, r: page(m, r, "1:1", num_tokens=0),
            "page: `num_tokens` must be an integer of at least 1, got 0",
        ),
        (
            lambda m, r: page(m, r, "1:1", context=2.0),
            r"page: `context` must be an integer of at least 1, got 2\.0",
        ),
    ],
)
def test_errors_say_what_to_type(
    copies,
    call,
    message,
) -> None:
    with pytest.raises(InputError, match=message):
        call(*copies)


# In a browser.


@pytest.fixture
def browse(tmp_path: Path):
    """Open a page in headless Chromium, with another script behind its own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    binaries = [binary for binary in map(shutil.which, names) if binary]
    if not binaries:
        pytest.skip("no chromium or google-chrome")
    command = [
        binaries[0],
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]

    def run(text: str, script: str) -> Parsed:
        file = tmp_path / "page.html"
        text = text.replace("</body>", f"<script>{script}</script></body>")
        file.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [*command, file.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return Parsed(done.stdout)

    return run


@pytest.mark.slow
def test_a_browser_shows_attention_and_runs_nothing_else(browse) -> None:
    model, rows = tiny_model(), rllc.Tokens(tiny_tokens(20, pos=8).rows % 6, "evil")
    result = tokens_in_context(model, rows, thresholds=EVERYTHING, tokenizer=Evil())
    text = page(model, result, "1:1", num_tokens=4)
    point_and_click = """
        const paragraph = document.querySelectorAll("article p")[1];
        const tokens = paragraph.querySelectorAll(".t:not(.target)");
        tokens[2].dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
        const kind = document.querySelector("article").dataset.kind;
        document.querySelector("button.kind[data-kind='" + kind + "']").click();
        const resources = performance.getEntriesByType("resource").length;
        document.body.dataset.resources = resources;
    """
    browsed = browse(text, point_and_click)
    assert browsed.texts["title"] == ["Head 1:1 on evil"]
    (body,) = browsed.named("body")
    assert body["data-resources"] == "0"
    kinds = [article["data-kind"] for article in Parsed(text).named("article")]
    hidden = ["hidden" in article for article in browsed.named("article")]
    assert hidden == [kind == kinds[0] for kind in kinds]
    spans = browsed.named("span", **{"class": "t"})
    for i, article in enumerate(articles_of(text)):
        count = len(spans_of(article))
        of_article, spans = spans[:count], spans[count:]
        mark = "asked" if i == 1 else "target"
        (asking,) = [span for span in of_article if mark in span["class"].split()]
        if i == 1:
            others = [span for span in of_article if "target" not in span["class"].split()]
            assert asking == others[2]
        barred = {
            j for j, span in enumerate(of_article) if "box-shadow" in (span.get("style") or "")
        }
        assert barred == set(look_of(asking)) != set()


@pytest.mark.slow
def test_a_page_of_long_rows_opens_in_two_seconds(browse) -> None:
    """The paper's model and context, untrained; from the start to the end of the page's script."""
    with torch.random.fork_rng(devices=[]):
        model = AttentionOnly(AttentionOnlyConfig())
    rows = torch.randint(5000, (2, 1024), generator=torch.Generator().manual_seed(0))
    ablation = ablate(model, rows, "1:6")
    thresholds = Thresholds(0.0, attention=0.01)
    result = tokens_in_context(model, rows, ablation=ablation, thresholds=thresholds)
    text = page(model, result, "1:6")
    assert text.count("<article") == 60
    assert text.count('class="t') > 1500
    browsed = browse(text, "document.body.dataset.ms = performance.now()")
    assert float(browsed.named("body")[0]["data-ms"]) < 2000
