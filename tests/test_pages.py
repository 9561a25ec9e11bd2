"""Pages of heads: their structure and escaping read by a parser, their numbers from the model, and a browser's view."""

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
from rllc.analysis.patterns import patterns
from rllc.analysis.pages import page, write_pages
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
    """A page as nested elements: every start has its end; texts by class of the element that they are in."""

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
        return [
            a
            for t, a in self.elements
            if t == tag and all(v in (a.get(k) or "") for k, v in attributes.items())
        ]


@pytest.fixture(scope="module")
def copies():
    """A hand-built induction head on repeated rows."""
    model = induction_model()
    return model, tokens_in_context(model, rllc.Tokens(repeats(num_rows=4), "copies"))


def test_one_article_a_token_with_its_target_framed(copies) -> None:
    model, result = copies
    mine = result["1:1"]
    parsed = Parsed(page(model, result, "1:1", num_tokens=10))
    assert parsed.texts["title"] == parsed.texts["h1"] == ["Head 1:1 on copies"]
    assert [a["data-kind"] for a in parsed.named("article")] == ["induction"] * 10
    targets = parsed.named("span", **{"class": "target"})
    for i, target in enumerate(targets):
        token = int(mine.rows[mine.row[i], mine.position[i]])
        assert target["title"].startswith(
            f"position {mine.position[i]}, id {token}, Δloss +{mine.effect[i]:.3f} nats"
        )
    assert len(targets) == 10
    buttons = [a["data-kind"] for a in parsed.named("button")]
    assert buttons == list(KINDS)
    assert parsed.texts["kind"][:5] == [
        "induction 32",
        "dyck 0",
        "n-gram 0",
        "skip n-gram 0",
        "other 0",
    ]
    assert "32 tokens in all, the first 10 shown" in parsed.texts["small"]


def test_pointing_shows_the_attention_of_the_position_before() -> None:
    model, rows = tiny_model(n_layers=3), tiny_tokens(6, pos=8).rows.long()
    result = tokens_in_context(model, rows, thresholds=EVERYTHING)
    A = patterns(model, rows).numpy()
    mine = result["2:1"]
    text = page(model, result, "2:1", num_tokens=200, context=7)
    for i, article in enumerate(re.findall("<article.*?</article>", text, re.DOTALL)):
        spans = Parsed(article).named("span", **{"class": "t"})
        shown = [int(re.match(r"position (\d+)", a["title"])[1]) for a in spans]
        assert mine.position[i] in shown
        assert set(range(max(0, mine.position[i] - 7), mine.position[i] + 1)) <= set(shown)
        for place, span in zip(shown, spans, strict=True):
            drawn = {
                shown[int(j)]: int(p)
                for j, p in (pair.split(":") for pair in span.get("data-look", "").split())
            }
            whole = A[mine.row[i], 2, 1, place - 1] if place else np.zeros(8)
            expected = {
                j: round(100 * float(w)) for j, w in enumerate(whole) if w >= 0.01 and j in shown
            }
            assert drawn == expected
    assert i + 1 == min(200, len(mine))


def test_colours_are_the_change_of_loss(copies) -> None:
    model, rows = tiny_model(), tiny_tokens(6, pos=8).rows.long()
    ablation = ablate(model, rows)
    result = tokens_in_context(model, rows, ablation=ablation, thresholds=EVERYTHING)
    mine = result["1:0"]
    text = page(model, result, "1:0", num_tokens=100)
    seen = set()
    for i, article in enumerate(re.findall("<article.*?</article>", text, re.DOTALL)):
        for span in Parsed(article).named("span", **{"class": "t"}):
            place = int(re.match(r"position (\d+)", span["title"])[1])
            color = re.search(r"rgba\((\d+),\d+,\d+,([\d.]+)\)", span.get("style", ""))
            if place == 0:  # is not predicted
                assert color is None
                continue
            effect = ablation.tokens[3, mine.row[i], place - 1]
            strength = min(abs(effect) / 2, 1) * 0.75
            if color is None:
                assert strength < 0.025
            else:
                assert int(color[1]) == (230 if effect > 0 else 0)
                assert float(color[2]) == pytest.approx(strength, abs=0.0051)
                seen.add(color[1])
    assert seen == {"230", "0"}


def test_what_is_far_back_is_shown_with_its_surroundings(copies) -> None:
    model, result = copies
    mine = result["1:1"]
    first = re.search("<article.*?</article>", page(model, result, "1:1", context=2), re.DOTALL)[0]
    shown = [int(p) for p in re.findall(r'title="position (\d+)', first)]
    at, position = mine.attended[0, 0], mine.position[0]
    expected = {*range(at - 3, at + 4), *range(position - 2, position + 3)} & set(range(19))
    assert shown == sorted(expected)
    gaps = sum(b != a + 1 for a, b in zip([-1, *shown], [*shown, 19], strict=True))
    assert first.count("<i>…</i>") == gaps > 1


def test_texts_of_tokens_cannot_break_the_page() -> None:
    model, rows = (
        tiny_model(),
        rllc.Tokens(tiny_tokens(20, pos=8).rows % 6, '"><script>x</script> & more'),
    )
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


def test_a_page_loads_nothing(copies) -> None:
    model, result = copies
    text = page(model, result, "1:1")
    parsed = Parsed(text)
    assert not {"src", "href", "srcset", "action", "data", "poster"} & {
        key for _, a in parsed.elements for key in a
    }
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = parsed.named("meta", **{"http-equiv": "Content-Security-Policy"})
    assert (
        policy["content"]
        == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    assert parsed.named("main", **{"class": "ids"})  # no tokenizer: ids are set apart


def test_multigrams_are_listed() -> None:
    rows = torch.tensor(
        [[0, 1, 2, 5, 6], [0, 3, 4, 6, 7], [0, 5, 1, 2, 8], [0, 8, 9, 3, 4], [0, 6, 7, 1, 2]]
    )
    model = induction_model(bigrams={1: 2, 3: 4})
    result = tokens_in_context(model, rows)
    parsed = Parsed(page(model, result, "0:1"))
    assert parsed.texts["summary"] == ["2 memorised multigrams"]
    means = [m.effect for m in result["0:1"].multigrams]
    assert parsed.texts["td"] == [
        "n-gram",
        "3",
        "3",
        f"{means[0]:.2f}",
        "n-gram",
        "2",
        "2",
        f"{means[1]:.2f}",
    ]
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
    model, rows = (
        tiny_model(),
        rllc.Tokens(tiny_tokens(20, pos=8).rows % 6, '"><script>x</script> & {style}'),
    )
    result = tokens_in_context(model, rows, thresholds=EVERYTHING)
    paths = write_pages(tmp_path, model, result, num_tokens=1)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert (
        parsed.texts["h1"] == parsed.texts["title"] == ['6 heads on "><script>x</script> & {style}']
    )
    links = [a["href"] for a in parsed.named("a")]
    assert [tmp_path / link for link in links] == list(paths.values())
    assert all((tmp_path / link).is_file() for link in links)
    assert parsed.texts["a"] == list(result.heads)
    assert parsed.texts["th"] == [
        "head",
        "tokens",
        *KINDS,
        "memorised multigrams",
        "Δloss (nats per token)",
        "± se",
    ]
    cells = np.array(parsed.texts["td"]).reshape(6, -1)
    for head, row in zip(result.heads, cells, strict=True):
        mine = result[head]
        kinds = [str(np.sum(mine.kind == kind)) for kind in KINDS]
        memorised = len({(m.tokens, m.target, m.kind) for m in mine.multigrams})
        effect = ablate(model, rows, head)[head]
        assert row[:-2].tolist() == [str(len(mine)), *kinds, str(memorised)]
        assert row[-2:].astype(float) == pytest.approx(effect, abs=6e-5)
    assert cells[:, 6].astype(int).any()
    (policy,) = parsed.named("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert not {"src", "srcset", "action", "data", "poster"} & {
        key for _, a in parsed.elements for key in a
    }
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
            r"page: expected an rllc\.models\.AttentionOnly",
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
def test_errors_say_what_to_type(copies, call, message) -> None:
    with pytest.raises(InputError, match=message):
        call(*copies)


# In a browser.


@pytest.fixture
def browse(tmp_path: Path):
    """Open a page in headless Chromium, with a script behind its own, and give back the document as it then is."""
    binary = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if binary is None:
        pytest.skip("no chromium or google-chrome")
    quiet = [
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]

    def run(text: str, script: str) -> Parsed:
        file = tmp_path / "page.html"
        file.write_text(
            text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8"
        )
        command = [
            binary,
            "--headless",
            "--no-sandbox",
            *quiet,
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        done = subprocess.run(
            [*command, "--dump-dom", file.as_uri()],
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
    point = """
        const tokens = document.querySelectorAll("article p")[1].querySelectorAll(".t");
        tokens[2].dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
        document.querySelector("button.kind[data-kind='" + document.querySelector("article").dataset.kind + "']").click();
        document.body.dataset.resources = performance.getEntriesByType("resource").length;
    """
    seen = browse(text, point)
    assert seen.texts["title"] == ["Head 1:1 on evil"]
    (body,) = seen.named("body")
    assert body["data-resources"] == "0"
    articles, before = seen.named("article"), Parsed(text).named("article")
    assert [("hidden" in a) for a in articles] == [
        a["data-kind"] == before[0]["data-kind"] for a in before
    ]
    spans, parts, index = seen.named("span", **{"class": "t"}), [], 0
    for article in re.findall("<article.*?</article>", text, re.DOTALL):
        count = len(Parsed(article).named("span", **{"class": "t"}))
        parts.append(spans[index : index + count])
        index += count
    for i, part in enumerate(parts):
        (asking,) = [s for s in part if ("asked" if i == 1 else "target") in s["class"].split()]
        if i == 1:
            assert asking == part[2]
        looks = {int(pair.split(":")[0]) for pair in asking["data-look"].split()}
        assert (
            {j for j, s in enumerate(part) if "box-shadow" in (s.get("style") or "")}
            == looks
            != set()
        )


@pytest.mark.slow
def test_a_page_of_long_rows_opens_in_two_seconds(browse) -> None:
    """The paper's model and context, untrained; the time from the start of navigation to the end of the page's script."""
    with torch.random.fork_rng(devices=[]):
        model = AttentionOnly(AttentionOnlyConfig())
    rows = torch.randint(5000, (2, 1024), generator=torch.Generator().manual_seed(0))
    result = tokens_in_context(
        model, rows, ablation=ablate(model, rows, "1:6"), thresholds=Thresholds(0.0, attention=0.01)
    )
    text = page(model, result, "1:6")
    assert text.count("<article") == 60
    assert text.count('class="t') > 1500
    seen = browse(text, "document.body.dataset.ms = performance.now()")
    assert float(seen.named("body")[0]["data-ms"]) < 2000
