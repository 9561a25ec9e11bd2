"""The fixed parts of the HTML pages that :mod:`rllc.analysis.pages` writes."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 1.5rem auto; padding: 0 1rem;
  color: #222; background: #fff }
h1 { font-size: 1.4rem; margin: 0 }
h3 { font-size: .85rem; font-weight: normal; margin: 0 0 .3rem; color: #555 }
header p { margin: .3rem 0; color: #444 }
small, .legend { color: #666; font-size: .8rem }
.legend b { color: #222; font-weight: normal; padding: 0 .4em; border-radius: 2px }
article { border-top: 1px solid #ddd; padding: .7rem 0 }
article p { margin: 0; font: 14px/1.9 ui-monospace, monospace }
article i { color: #999; font-style: normal; margin: 0 .4em }
.t { white-space: pre-wrap; border-radius: 2px; margin-right: 1px; padding: 1px 0; cursor: default }
.ids .t { margin-right: .5em; padding: 1px 3px }
.target { outline: 2px solid #222 }
.asked { outline: 2px dotted #222 }
q { quotes: "‘" "’"; font-family: ui-monospace, monospace; white-space: pre-wrap; color: #222 }
.kind { font-weight: normal; color: #fff; border: 0; border-radius: 3px; padding: 0 .5em;
  font-size: .8rem }
button.kind { margin: 0 .3em .2em 0; font: inherit; font-size: .8rem; cursor: pointer }
button[aria-pressed=false] { opacity: .3 }
.k0 { background: #0072b2 }
.k1 { background: #00785a }
.k2 { background: #b84e00 }
.k3 { background: #8a6100 }
.k4 { background: #6b6b6b }
table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0 }
td, th { padding: .1rem .7rem; text-align: left; border-bottom: 1px solid #eee }
summary { cursor: pointer }
"""

SCRIPT = """
"use strict";

// Draw where the head looks to predict one token: a bar under each token, as thick as its weight.
function show(token) {
  const all = token.parentElement.querySelectorAll(".t");
  for (const t of all) {
    t.style.boxShadow = "";
    t.classList.remove("asked");
  }
  if (!token.classList.contains("target")) token.classList.add("asked");
  for (const pair of (token.dataset.look || "").split(" ")) {
    const [index, percent] = pair.split(":").map(Number);
    if (!percent) continue;
    const height = (1 + percent / 20).toFixed(1);
    const opacity = (0.25 + 0.0075 * percent).toFixed(2);
    all[index].style.boxShadow = "0 " + height + "px 0 rgba(120,0,160," + opacity + ")";
  }
}

for (const p of document.querySelectorAll("article p")) {
  const target = p.querySelector(".target");
  show(target);
  p.addEventListener("mouseover", e => { if (e.target.classList.contains("t")) show(e.target); });
  p.addEventListener("mouseleave", () => show(target));
}

for (const button of document.querySelectorAll("button.kind"))
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    for (const a of document.querySelectorAll("article"))
      if (a.dataset.kind === button.dataset.kind) a.hidden = !on;
  });
"""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
<header><h1>{title}</h1><p>{summary}</p><p>{counts}</p>
<p class="legend">A token's colour is what ablating the head does to its loss:
<b style="background:rgba(230,120,0,.75)">up by 2 nats or more</b>
<b style="background:rgba(0,114,178,.75)">down by 2 or more</b>.
Purple bars: where the head looks to predict the framed token; point at another token to see it for
that one.</p>
{multigrams}</header>
<main{ids}>
{articles}
</main>
<script>{script}</script></body></html>
"""

INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}
td, th {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }}
</style></head><body>
<header><h1>{title}</h1><p>{summary}</p>
<p class="legend">How many tokens in context each head has, in all and by kind; how many distinct
multigrams it has memorised; and what its ablation adds to the mean loss.</p></header>
<main><table><thead><tr>{header}</tr></thead>
<tbody>
{lines}
</tbody></table></main>
</body></html>
"""
