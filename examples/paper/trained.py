"""The heads of the trained model: their roles and pages, and the circuits they form."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

import rllc
from rllc.analysis import ablation, attention, curvature, patching, roles
from rllc.analysis.pages import write_pages
from rllc.analysis.rows import common_start, mean_over_tokens
from rllc.analysis.tokens_in_context import tokens_in_context

from .averaged import averaged_checkpoints
from .data import Data
from .measure import keep, measured_folder
from .multigrams import multigram_masks
from .results import layer_of
from .settings import Settings

FEWEST_TOKENS = 20
"""A mask of fewer tokens says nothing."""
CANDIDATES = 2000
OTHER_SETS = 30
Heads = tuple[str, ...]
ROWS_OF_CIRCUIT = 64
"""Of the rows that no role was found on."""
PROBES = 4
ROWS_OF_HESSIAN = 16


def look_at_heads(settings: Settings, seed: int, data: Data) -> dict[str, pd.DataFrame]:
    """Classify the heads of the trained model, write their pages, and ablate their circuits.

    What was measured before is read again.

    Returns:
        ``"roles"``; ``"paths"``, from layer 0 into the keys of the head of layer 1 that matches
        prefixes best; ``"curvature"``, the trace of the Hessian of each head; and, if it can be
        told, ``"circuit"``, what it costs to ablate all multigram heads together.
    """
    last = averaged_checkpoints(settings, seed)[-1]
    folder = measured_folder(settings, seed, data)
    folder = folder / f"trained-{last.step}-{last.sha256()[:12]}"
    if not (folder / "roles.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = rllc.load(last, device=settings.device)
        found = tables_of(settings, seed, data, model)
        # The roles last: they say that all is there.
        for name in sorted(found, key=lambda name: name == "roles"):
            keep(folder / f"{name}.csv", found[name], settings.steps)
    return {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}


def tables_of(settings: Settings, seed: int, data: Data, model: Any) -> dict[str, pd.DataFrame]:
    """The tables of :func:`look_at_heads`, measured."""
    rows = data.random_rows(settings.rows, seed)
    start = common_start(rows.rows)
    contexts = tokens_in_context(model, rows, brackets=data.brackets, tokenizer=data.tokenizer)
    scores = attention.scores(model, data.repeats, bos=start, seed=seed)
    head_roles = roles.classify(model, rows, contexts=contexts, scores=scores)
    write_pages(settings.folder(seed) / "pages", model, contexts)

    repeats = data.repeats
    if repeats is None:
        repeats = attention.repeated_rows(model, bos=start, seed=seed)
    best = int(scores.prefix_matching[1].argmax())
    into_best = [f"0:{head}->1:{best}.K" for head in range(settings.heads)]
    paths = patching.patch_paths(model, repeats, into_best, seed=seed)
    probing = curvature.Probing(num_probes=PROBES, num_rows=ROWS_OF_HESSIAN, seed=seed)
    trace = curvature.hessian_trace(model, rows, rllc.heads(model), probing=probing, progress=False)
    found = {
        "roles": head_roles.to_dataframe(),
        "paths": paths.to_dataframe(),
        "curvature": trace.to_dataframe(),
    }
    cost = multigram_circuit(settings, seed, data, model, head_roles)
    return found if cost is None else {**found, "circuit": cost}


def multigram_circuit(
    settings: Settings, seed: int, data: Data, model: Any, head_roles: roles.Roles
) -> pd.DataFrame | None:
    """What it costs to ablate all multigram heads together, on tokens of each kind.

    ``None`` without multigram heads, without other sets like them, or without tokens that
    multigrams predict. Other sets have as many heads in each layer, and heads that matter as much
    alone: so what is compared is not how much the heads matter, but for what.

    Returns:
        Columns ``set, paths, mask, tokens, loss, loss_error``; the set is ``"circuit"`` or
        ``"random 1"``, ….
    """
    heads = head_roles.having("multigram")
    effects = dict(zip(head_roles.heads, head_roles.evidence["delta_loss"], strict=True))
    sets = {"circuit": tuple(heads), **sets_like(heads, effects, seed)}
    # Other rows than those that the roles were found on.
    unseen = data.random_rows(settings.rows, seed, part=1)[:ROWS_OF_CIRCUIT]
    masks = multigram_masks(data.base, unseen, data.vocab_size)
    masks = {name: mask for name, mask in masks.items() if mask.sum() >= FEWEST_TOKENS}
    if len(sets) == 1 or not masks:
        return None
    weights = [together(members) for members in sets.values()]
    rise = ablation.ablate(model, unseen, weights).tokens
    rows = []
    for number, (name, members) in enumerate(sets.items()):
        for mask_name, mask in masks.items():
            value, error = mean_over_tokens(rise[[number]], mask[:, 1:])
            rows.append(
                (name, ", ".join(members), mask_name, mask.sum(), float(value[0]), float(error[0]))
            )
    return pd.DataFrame(rows, columns=["set", "paths", "mask", "tokens", "loss", "loss_error"])


def together(heads: Sequence[str]) -> rllc.Weights:
    """The weights of some heads as one selection."""
    union = rllc.head(heads[0])
    for head in heads[1:]:
        union = union | rllc.head(head)
    return union


def sets_like(heads: Sequence[str], effects: Mapping[str, float], seed: int) -> dict[str, Heads]:
    """Other sets with as many heads in each layer, whose heads matter as much alone.

    Of :data:`CANDIDATES` random sets at most, the :data:`OTHER_SETS` whose mean effect is nearest.
    """
    stream = np.random.default_rng(seed)
    found: set[Heads] = set()
    layers = sorted(set(map(layer_of, effects)))
    for _ in range(CANDIDATES):
        members: list[str] = []
        for layer in layers:
            pool = [head for head in effects if layer_of(head) == layer]
            count = sum(layer_of(head) == layer for head in heads)
            members += sorted(stream.choice(pool, count, replace=False).tolist())
        found.add(tuple(members))
    found -= {tuple(sorted(heads)), ()}
    wanted = np.mean([effects[head] for head in heads]) if heads else 0.0

    def distance(members: Heads) -> float:
        return abs(float(np.mean([effects[head] for head in members]) - wanted))

    nearest = sorted(sorted(found), key=distance)[:OTHER_SETS]
    return {f"random {number}": members for number, members in enumerate(nearest, 1)}
