"""The heads of the trained model: their roles and pages, and the circuits they form."""

from typing import Any, NamedTuple

import rllc
from rllc.analysis import attention, circuit, patching, roles
from rllc.analysis.pages import write_pages
from rllc.analysis.rows import common_start
from rllc.analysis.tokens_in_context import tokens_in_context

from .data import Data
from .multigrams import multigram_masks
from .results import layer_of
from .settings import Settings

FEWEST_TOKENS = 20
"""A mask of fewer tokens says nothing."""


class Trained(NamedTuple):
    """What the heads of a trained model do."""

    roles: roles.Roles
    paths: patching.Patching
    """From layer 0 into the keys of the head of layer 1 that matches prefixes best."""
    circuit: circuit.CircuitCost | None
    """What it costs to ablate all multigram heads together."""


def look_at_heads(settings: Settings, seed: int, data: Data) -> Trained:
    """Classify the heads of the trained model, write their pages, and ablate their circuits."""
    folder = settings.folder(seed)
    rows = data.random_rows(settings.rows, seed)
    start = common_start(rows.rows)
    model: Any = rllc.load(folder / "checkpoints", device=settings.device)
    contexts = tokens_in_context(model, rows, brackets=data.brackets, tokenizer=data.tokenizer)
    scores = attention.scores(model, data.repeats, bos=start, seed=seed)
    head_roles = roles.classify(model, rows, contexts=contexts, scores=scores)
    write_pages(folder / "pages", model, contexts)
    head_roles.to_dataframe().to_csv(folder / "roles.csv", index=False)
    contexts.multigrams_to_dataframe().to_csv(folder / "multigrams.csv", index=False)

    repeats = data.repeats
    if repeats is None:
        repeats = attention.repeated_rows(model, bos=start, seed=seed)
    best = int(scores.prefix_matching[1].argmax())
    into_best = [f"0:{head}->1:{best}.K" for head in range(settings.heads)]
    paths = patching.patch_paths(model, repeats, into_best, seed=seed)
    paths.to_dataframe().to_csv(folder / "paths.csv", index=False)

    cost = multigram_circuit(settings, seed, data, model, head_roles)
    (folder / "circuit.csv").unlink(missing_ok=True)
    if cost is not None:
        cost.to_dataframe().to_csv(folder / "circuit.csv", index=False)
    return Trained(head_roles, paths, cost)


def multigram_circuit(
    settings: Settings, seed: int, data: Data, model: Any, head_roles: roles.Roles
) -> circuit.CircuitCost | None:
    """What it costs to ablate all multigram heads together, on tokens of each kind.

    ``None`` without multigram heads, without other heads of their layers to compare with, or
    without tokens that multigrams predict.
    """
    multigram_heads = head_roles.having("multigram")
    other_heads = [head for head in head_roles.heads if head not in multigram_heads]
    shared_layers = set(map(layer_of, multigram_heads)) & set(map(layer_of, other_heads))
    if not shared_layers:
        return None
    # Other rows than those that the roles were found on.
    unseen = data.random_rows(settings.rows, seed, part=1)
    masks = multigram_masks(data.base, unseen, data.vocab_size)
    masks = {name: mask for name, mask in masks.items() if mask.sum() >= FEWEST_TOKENS}
    if not masks:
        return None
    return circuit.ablate_circuit(model, unseen, multigram_heads, masks, seed=seed)
