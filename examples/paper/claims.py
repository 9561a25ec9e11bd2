"""What arXiv 2410.02984 claims, as effects: how large, how well known, and what that says.

    python -m examples.paper.claims                            # of the stored results, in a minute
    python -m examples.paper.claims rllc-out/paper-small/results --figures rllc-out/figures

Each function makes one :class:`Claim` from the runs of all seeds and texts. λ̂ is compared within a
layer and on a log scale, so an effect of 0.2 is 22 %. A claim *holds* if the 95 % interval of its
effect lies on the claimed side of 0. It is *contradicted* if the interval lies on the other side,
or leaves out every effect of a size that would matter. Else it is *too weak to tell*; the table
says what would have been seen in 80 % of trials. Where nothing can be compared it is *not
testable*.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score

from rllc.analysis import clustering, stages

from .effects import (
    Block,
    Effect,
    beyond_permutations,
    contrast,
    has_contrast,
    of_correlation,
    partial_rank_correlation,
    pooled,
    rank_correlation,
    spread,
)
from .power import HEAD_SD, RATIO_SD, Trial, of_contrasts, of_correlations, smallest_seen
from .results import Run, layer_of, load_runs

SIMPLE = ("previous token", "current token", "induction", "bracket")
"""Roles of heads that run a simple algorithm, as against those that remember multigrams."""
HOLDS = "holds"
CONTRADICTED = "contradicted"
WEAK = "too weak to tell"
UNTESTED = "not testable"
STORED = Path(__file__).parent / "results"

ENOUGH_CHECKPOINTS = 12
"""With fewer, a curve of all weights may turn between them unseen."""
MATTERS = 0.2
"""On a log scale: less than 22 % would not matter."""
MATTERS_CORRELATION = 0.2
"""The same of atanh ρ."""


class Claim(NamedTuple):
    """A row of the table."""

    claim: str
    effect: Effect | None
    scale: str
    """What the effect is, and in which unit."""
    verdict: str
    detail: str = ""
    """What is beside it: parts, other readings."""
    seen: float = float("nan")
    """The smallest effect that made-up heads of this layout would have shown in 80 % of trials."""


def all_claims(runs: Sequence[Run]) -> list[Claim]:
    """Every claim of the paper that this pipeline can test, in the order of the paper's story."""
    questions = (
        induction_circuit,
        differentiation,
        induction_below_others,
        lookers_below_multigram,
        memory,
        memory_beyond_ablation,
        clusters_are_roles,
        induction_on_code,
        multigram_on_code,
        layer_one_rises,
        layer_zero_falls,
        stages_show,
        multigram_circuit,
    )
    return [question(runs) for question in questions]


def judge(effect: Effect, matters: float) -> str:
    """The verdict on an effect that is claimed to be above 0."""
    low, high = effect.interval
    if low > 0:
        return HOLDS
    if high < 0 or (high < matters and low > -matters):
        return CONTRADICTED
    return WEAK


# The circuit, and whether heads part.


def induction_circuit(runs: Sequence[Run]) -> Claim:
    """The best prefix-matching head reads, with its keys, the heads that look one token back."""
    claim = "an induction head forms, and heads that look one token back feed its keys"
    scale = (
        "effect of a path from one of them (score at least half of the best) into its keys, less "
        "that from another head of layer 0, nats"
    )
    blocks = []
    details = []
    for run in runs:
        _, gain = run.gain()
        paths = run.tables["paths"]
        scores = last_rows(run).set_index("head")
        looking = scores["previous_token"][paths["sender"]].to_numpy()
        receiver = paths["receiver"].iloc[0]
        details.append(
            f"{run.name}: gain {gain[-1]:.2f} nats; looking back {looking.max():.2f}, "
            f"{receiver} matching {scores['prefix_matching'][receiver]:.2f}; strongest path from "
            f"{paths['sender'][paths['effect'].idxmax()]}"
        )
        if run.forming() is None:
            continue
        effect = paths["effect"].to_numpy()
        error = paths["standard_error"].to_numpy()
        blocks.append(Block(run.name, effect, error, looking >= looking.max() / 2))
    if not blocks:
        return untested(claim, scale, "no induction circuit forms")
    effect = pooled([contrast(block) for block in blocks if has_contrast(block)])
    return Claim(claim, effect, scale, judge(effect, 0.01), "; ".join(details))


def last_rows(run: Run) -> pd.DataFrame:
    """The table of heads at the last step."""
    table = run.tables["heads"]
    return table[table["step"] == table["step"].max()]


def differentiation(runs: Sequence[Run]) -> Claim:
    """Heads of a layer start alike and come apart."""
    claim = "heads start alike and differentiate"
    scale = "log of the spread within a layer at the end over that where λ̂ is first above 0"
    effects = []
    details = []
    for run in runs:
        for layer, heads in layers(run).items():
            curves = [run.curve("heads", head) for head in heads]
            if len(curves[0][0]) < 2:
                continue
            values = np.stack([value for _, value, _ in curves])
            errors = np.stack([error for _, _, error in curves])
            first = spread(values[:, 0], errors[:, 0])
            last = spread(values[:, -1], errors[:, -1])
            # The logarithm of a standard deviation of n normal values has this error.
            error = 1 / np.sqrt(2 * (len(heads) - 1))
            ratio = float(np.log(last / first))
            effects.append(Effect(ratio, error * np.sqrt(2), len(heads) - 1))
            details.append(f"{run.name} layer {layer}: {first:.1f} → {last:.1f}")
    if not effects:
        return untested(claim, scale, "there is one checkpoint")
    effect = pooled(effects)
    return Claim(claim, effect, scale, judge(effect, np.log(2)), "; ".join(details))


def layers(run: Run) -> dict[int, list[str]]:
    """The heads of each layer."""
    heads_of: dict[int, list[str]] = {}
    for head in run.heads:
        heads_of.setdefault(layer_of(head), []).append(head)
    return heads_of


# Heads of one layer beside each other.


def induction_below_others(runs: Sequence[Run]) -> Claim:
    """Induction heads end below the other heads of layer 1."""
    return lower(
        runs,
        "at the end, induction and bracket heads have lower wrLLC than the others of layer 1",
        layer=1,
        group=("induction", "bracket"),
    )


def lookers_below_multigram(runs: Sequence[Run]) -> Claim:
    """Previous- and current-token heads end below multigram heads of layer 0."""
    return lower(
        runs,
        "at the end, previous- and current-token heads have lower wrLLC than the others of layer 0",
        layer=0,
        group=("previous token", "current token"),
    )


def lower(
    runs: Sequence[Run], claim: str, layer: int, group: Sequence[str], sweep: str = "heads"
) -> Claim:
    """How far heads of some roles lie below the others of their layer, log λ̂."""
    scale = f"log λ̂ of the other heads of layer {layer}, less theirs"
    blocks = []
    for run in runs:
        if sweep not in run.llc:
            continue
        values, errors = log_llc(run, sweep, run.base, layers(run)[layer])
        marked = np.array([run.roles[head] in group for head in layers(run)[layer]])
        blocks.append(Block(run.name, -values, errors, marked))
    return of_blocks(claim, scale, blocks)


def log_llc(
    run: Run, sweep: str, data: str, heads: Sequence[str], beyond_slope: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """log λ̂ of heads at the last step, and its error; NaN where λ̂ is not above 0."""
    values = []
    errors = []
    for head in heads:
        value, error = run.last(sweep, head, data)
        if beyond_slope:
            value -= run.last_slope(sweep, head, data)
        positive = value if value > 0 else np.nan
        values.append(np.log(positive))
        errors.append(error / positive)
    return np.array(values), np.array(errors)


def of_blocks(claim: str, scale: str, blocks: Sequence[Block], head_sd: float = HEAD_SD) -> Claim:
    """The claim that the group of each block has larger values; heads are assumed to differ so."""
    finite = [only_finite(block) for block in blocks]
    usable = [block for block in finite if has_contrast(block)]
    if not usable:
        return untested(claim, scale, "no layer has heads of both kinds")
    effects = [contrast(block) for block in usable]
    effect = pooled(effects)
    parts = []
    for block, part in zip(usable, effects, strict=True):
        parts.append(f"{block.name} {part.value:+.2f} ({int(block.group.sum())} heads)")
    seen = smallest(of_contrasts([block.group for block in usable], head_sd))
    return Claim(claim, effect, scale, judge(effect, MATTERS), "; ".join(parts), seen)


def only_finite(block: Block) -> Block:
    there = np.isfinite(block.values)
    return Block(block.name, block.values[there], block.errors[there], block.group[there])


def smallest(trial: Trial) -> float:
    """The smallest effect that is seen in 80 % of trials, looked for coarsely."""
    return smallest_seen(trial, tuple(0.1 * k for k in range(1, 31)))


def untested(claim: str, scale: str, reason: str) -> Claim:
    return Claim(claim, None, scale, UNTESTED, reason)


def by_resolution(runs: Sequence[Run]) -> str:
    """How far induction heads lie below the others of layer 1 at each nβ and γ, as a table."""
    names = ["heads", "paper"]
    for run in runs:
        names += [name for name in run.llc if name.startswith("resolution-")]
    lines = ["| nβ | γ | log λ̂ of the others less that of induction heads |", "|---|---|---|"]
    for name in dict.fromkeys(names):
        answer = lower(runs, "", 1, ("induction", "bracket"), sweep=name)
        if answer.effect is None:
            continue
        settings = next(run.llc[name].settings for run in runs if name in run.llc)
        low, high = answer.effect.interval
        effect = f"{answer.effect.value:+.2f} ({low:+.2f} … {high:+.2f})"
        lines.append(f"| {settings['n_beta']:g} | {settings['localization']:g} | {effect} |")
    return "\n".join(lines)


def beside_other_measures(runs: Sequence[Run]) -> str:
    """How far induction heads lie below the others of layer 1 at equal other measures, a table.

    log λ̂ less the log of how much the loss rises without the head, or of its Hessian's trace.
    """
    lines = ["| log λ̂ less the log of | the others less induction heads |", "|---|---|"]
    for name in ("Δloss", "tr H"):
        blocks = []
        for run in runs:
            heads = layers(run)[1]
            llc, errors = log_llc(run, "heads", run.base, heads)
            trace = run.tables["curvature"].set_index("weights")["value"].to_dict()
            other = run.evidence("delta_loss") if name == "Δloss" else trace
            ratio = llc - np.log([other[head] for head in heads])
            marked = np.array([run.roles[head] == "induction" for head in heads])
            blocks.append(Block(run.name, -ratio, errors, marked))
        answer = of_blocks("", "", blocks)
        if answer.effect is not None:
            low, high = answer.effect.interval
            value = f"{answer.effect.value:+.2f} ({low:+.2f} … {high:+.2f}); {answer.detail}"
            lines.append(f"| {name} | {value} |")
    return "\n".join(lines)


# Memory.


def memory(runs: Sequence[Run]) -> Claim:
    """Final wrLLC goes with the number of memorised multigrams, within layers."""
    return correlated(
        runs,
        "final wrLLC correlates with the number of memorised multigrams",
        lambda llc, memorised, _: rank_correlation(llc, memorised),
        num_given=0,
    )


def memory_beyond_ablation(runs: Sequence[Run]) -> Claim:
    """The same beyond what both share with how much a head matters."""
    return correlated(
        runs,
        "it does so beyond how much the loss rises without the head",
        partial_rank_correlation,
        num_given=1,
    )


def correlated(
    runs: Sequence[Run],
    claim: str,
    statistic: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    num_given: int,
) -> Claim:
    """A rank correlation of log λ̂ with memorised multigrams, within layers."""
    scale = "atanh of Spearman's ρ within layers"
    effects = []
    details = []
    counts = []
    for run in runs:
        for layer, heads in layers(run).items():
            llc, memorised, ablation = beside_llc(run, heads)
            if len(llc) < 5 + num_given or len(set(memorised)) == 1:
                continue
            rho = statistic(llc, memorised, ablation)
            effects.append(of_correlation(rho, len(llc), num_given))
            counts.append(len(llc) - num_given)
            with_ablation = rank_correlation(llc, ablation)
            details.append(f"{run.name} layer {layer}: {rho:.2f} (Δloss {with_ablation:.2f})")
    if not effects:
        return untested(claim, scale, "no layer has heads that differ in it")
    effect = pooled(effects)
    seen = smallest(of_correlations(counts))
    verdict = judge(effect, MATTERS_CORRELATION)
    return Claim(claim, effect, scale, verdict, "; ".join(details), seen)


def beside_llc(run: Run, heads: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log λ̂ of heads, their memorised multigrams, and the loss without them."""
    llc, _ = log_llc(run, "heads", run.base, heads)
    memorised = np.array([run.evidence("memorised")[head] for head in heads])
    ablation = np.array([run.evidence("delta_loss")[head] for head in heads])
    there = np.isfinite(llc)
    return llc[there], memorised[there], ablation[there]


def clusters_are_roles(runs: Sequence[Run]) -> Claim:
    """Clusters of the curves, each layer apart, agree with the roles."""
    claim = "clustering the wrLLC curves recovers the roles"
    scale = "adjusted Rand index of clusters and roles, less that by chance"
    effects = []
    details = []
    for run in runs:
        found = clusters_of(run)
        if found is None:
            continue
        groups = np.array(found.groups)
        for group in dict.fromkeys(found.groups):
            members = np.flatnonzero(groups == group)
            roles = [run.roles[found.names[k]] for k in members]
            if len(set(roles)) == 1:
                continue
            _, numbers = np.unique(roles, return_inverse=True)
            part = beyond_permutations(found.labels[members], numbers, adjusted_rand_score)
            effects.append(part)
            details.append(f"{run.name} {group}: {part.value:.2f}")
    if not effects:
        return untested(claim, scale, "in each layer all heads have one role")
    effect = pooled(effects)
    return Claim(claim, effect, scale, judge(effect, 0.1), "; ".join(details))


def clusters_of(run: Run) -> clustering.Clusters | None:
    """Clusters of the heads' curves, each layer apart; ``None`` where a layer has under 3.

    From the step on from which λ̂ of all heads is above 0.
    """
    if min(len(heads) for heads in layers(run).values()) < 3:
        return None
    trajectory = run.llc["heads"]
    steps = np.array(trajectory.steps)
    there = np.isfinite(trajectory.value).all(1) & (steps >= run.settled())
    if there.sum() < 4:
        return None
    curves = {}
    for head in run.heads:
        column = trajectory.names.index(head, run.base)
        curves[head] = trajectory.value[there, column].tolist()
    return clustering.cluster(curves, steps=steps[there].tolist(), per_layer=True)


# Other data, and another loss.


def induction_on_code(runs: Sequence[Run]) -> Claim:
    """Induction heads have a larger λ̂ on code than on prose, relative to their layer."""
    claim = "on code against prose, induction heads are higher than the others of their layer"
    scale = "log(λ̂ on code ÷ on prose), theirs less that of the other heads of layer 1"
    blocks = []
    without_slope = []
    shares = []
    for run in runs:
        if "subsets" not in run.llc:
            continue
        heads = layers(run)[1]
        marked = np.array([run.roles[head] == "induction" for head in heads])
        values, errors = log_ratio(run, heads)
        blocks.append(Block(run.name, values, errors, marked))
        values, errors = log_ratio(run, heads, beyond_slope=True)
        without_slope.append(Block(run.name, values, errors, marked))
        shares.append(f"{run.name} {slope_shares(run, 'induction')}")
    answer = of_blocks(claim, scale, blocks, RATIO_SD)
    if answer.effect is None:
        return answer
    curvature = of_blocks(claim, scale, without_slope).effect
    assert curvature is not None
    low, high = curvature.interval
    beside = (
        f"without the slope's part {curvature.value:+.2f} ({low:+.2f} … {high:+.2f}); "
        f"the slope's share of λ̂ of these heads on code / prose: {', '.join(shares)}"
    )
    return answer._replace(detail=f"{answer.detail}; {beside}")


def multigram_on_code(runs: Sequence[Run]) -> Claim:
    """Multigram heads of layer 1 have a smaller λ̂ on code than on prose.

    Not against the others of their layer: that would be the claim about induction heads again.
    """
    claim = "on code, multigram heads are lower than on prose"
    scale = "log(λ̂ on prose ÷ on code), mean over the multigram heads of layer 1"
    effects = []
    details = []
    for run in runs:
        heads = run.having(("multigram",), 1)
        if "subsets" not in run.llc or len(heads) < 2:
            continue
        values, _ = log_ratio(run, heads)
        values = -values[np.isfinite(values)]
        error = values.std(ddof=1) / np.sqrt(len(values))
        effects.append(Effect(float(values.mean()), float(error), len(values) - 1))
        details.append(f"{run.name} {values.mean():+.2f} ({len(values)} heads)")
    if not effects:
        return untested(claim, scale, "no layer has two multigram heads")
    effect = pooled(effects)
    shares = [
        f"{run.name} {slope_shares(run, 'multigram')}" for run in runs if "subsets" in run.llc
    ]
    details.append(f"the slope's share of λ̂ on code / prose: {', '.join(shares)}")
    return Claim(claim, effect, scale, judge(effect, MATTERS), "; ".join(details))


def log_ratio(
    run: Run, heads: Sequence[str], beyond_slope: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """log(λ̂ on code ÷ on prose) at the last step, with its error."""
    code, code_error = log_llc(run, "subsets", run.code, heads, beyond_slope)
    prose, prose_error = log_llc(run, "subsets", run.prose, heads, beyond_slope)
    return code - prose, np.hypot(code_error, prose_error)


def slope_shares(run: Run, role: str) -> str:
    """Mean share of λ̂ that the slope at w* gives, on code and on prose."""
    words = []
    for data in (run.code, run.prose):
        shares = []
        for head in run.having((role,), 1):
            value, _ = run.last("subsets", head, data)
            shares.append(run.last_slope("subsets", head, data) / value)
        words.append(f"{np.mean(shares):+.0%}" if shares else "–")
    return " / ".join(words)


def layer_one_rises(runs: Sequence[Run]) -> Claim:
    """While the circuit forms, multigram heads of layer 1 rise against ℓ = L1."""
    claim = "against ℓ = L1, layer-1 multigram heads rise while the induction circuit forms"
    return while_forming(runs, claim, 1, 1)


def layer_zero_falls(runs: Sequence[Run]) -> Claim:
    """While the circuit forms, multigram heads of layer 0 fall against ℓ = L1."""
    claim = "against ℓ = L1, layer-0 multigram heads fall while the induction circuit forms"
    return while_forming(runs, claim, 0, -1)


def while_forming(runs: Sequence[Run], claim: str, layer: int, sign: int) -> Claim:
    """The mean change of λ̂ of a layer's multigram heads, relative to its mean before.

    Without the part of the slope at w*, which is no minimum of ℓ = L1: the better a model is than
    one layer can be, the further chains run downhill, and the more that part takes off.
    """
    word = "rise" if sign > 0 else "fall"
    scale = f"{word} of λ̂ without the slope's part, as a share of its mean before"
    effects = []
    details = []
    for run in runs:
        heads = run.having(("multigram",), layer)
        window = run.forming()
        if window is None or len(heads) < 2 or "distilled" not in run.llc:
            continue
        relative, steps = changes_in(run, heads, window, beyond_slope=True)
        relative = sign * relative
        error = relative.std(ddof=1) / np.sqrt(len(relative))
        effects.append(Effect(float(relative.mean()), float(error), len(relative) - 1))
        as_it_is, _ = changes_in(run, heads, window, beyond_slope=False)
        details.append(
            f"{run.name}: steps {steps[0]}–{steps[1]}, {relative.mean():+.2f}, with the slope's "
            f"part {sign * as_it_is.mean():+.2f}"
        )
    if not effects:
        return untested(
            claim, scale, "no sweep with ℓ = L1, no circuit, or no two heads of the kind"
        )
    effect = pooled(effects)
    return Claim(claim, effect, scale, judge(effect, 0.1), "; ".join(details))


def changes_in(
    run: Run, heads: Sequence[str], window: tuple[float, float], beyond_slope: bool
) -> tuple[np.ndarray, tuple[int, int]]:
    """How much λ̂ against ℓ = L1 changes over a window, relative to the heads' mean before it.

    Returns:
        The change of each head, and the steps between which it was measured.
    """
    before = []
    after = []
    for head in heads:
        steps, value, _ = run.curve("distilled", head, beyond_slope=beyond_slope)
        begin = np.flatnonzero(steps <= window[0])[-1]
        end = np.flatnonzero(steps >= window[1])[0]
        before.append(value[begin])
        after.append(value[end])
    change = np.array(after) - np.array(before)
    return change / abs(np.mean(before)), (int(steps[begin]), int(steps[end]))


# The whole model, and the multigram circuit.


def stages_show(runs: Sequence[Run]) -> Claim:
    """The LLC of the whole model turns where the induction circuit forms."""
    claim = "the full-model LLC shows the stages: it turns where the induction circuit forms"
    scale = "probability of a turn whose 95 % interval meets that window"
    probabilities = []
    details = []
    fewest = 1000
    for run in runs:
        found = stages_of(run)
        window = run.forming()
        if found is None or window is None:
            continue
        met = [0.0]
        for turn in (*found.turns, *found.doubtful):
            if turn.low <= window[1] and turn.high >= window[0]:
                met.append(turn.probability)
        probabilities.append(max(met))
        fewest = min(fewest, len(found.steps))
        turns = ", ".join(f"{turn.step:.0f}" for turn in found.turns) or "none"
        details.append(
            f"{run.name}: {len(found.steps)} checkpoints, turns at {turns}; circuit "
            f"{window[0]}–{window[1]}"
        )
    if not probabilities:
        return untested(claim, scale, "no circuit forms, or too few estimates of all weights")
    verdict = WEAK
    if min(probabilities) >= 0.9:
        verdict = HOLDS
    elif max(probabilities) <= 0.1 and fewest >= ENOUGH_CHECKPOINTS:
        verdict = CONTRADICTED
    words = ", ".join(f"{probability:.2f}" for probability in probabilities)
    return Claim(claim, None, f"{scale}: {words}", verdict, "; ".join(details))


def stages_of(run: Run) -> stages.Stages | None:
    """Stages of the LLC of all weights; ``None`` where under 5 steps above 0 have one."""
    if "whole" not in run.llc:
        return None
    whole = run.llc["whole"]
    steps = np.array(whole.steps)
    there = np.isfinite(whole.value[:, 0]) & (steps > 0)
    if there.sum() < 5:
        return None
    return stages.stages(whole.value[there, 0], steps[there], whole.standard_error[there, 0])


def multigram_circuit(runs: Sequence[Run]) -> Claim:
    """Complex multigrams need multigram heads of both layers, more than simple ones do."""
    claim = "multigram heads of both layers are needed for complex multigrams more than simple ones"
    scale = (
        "cost of complex less simple tokens, nats: the circuit's, less that of sets with as many "
        "heads that matter as much"
    )
    effects = []
    details = []
    for run in runs:
        if "circuit" not in run.tables:
            continue
        table = run.tables["circuit"]
        cost = table.pivot_table(index="set", columns="mask", values="loss")
        if not {"simple", "complex"} <= set(cost.columns):
            continue
        differences = cost["complex"] - cost["simple"]
        others = differences.drop("circuit")
        if len(others) < 5:
            continue
        heads = table.loc[table["set"] == "circuit", "paths"].iloc[0].split(", ")
        if len(set(map(layer_of, heads))) < 2:
            continue
        value = float(differences["circuit"] - others.mean())
        effects.append(Effect(value, float(others.std(ddof=1)), len(others) - 1))
        details.append(f"{run.name}: {len(heads)} heads, {len(others)} other sets")
    if not effects:
        return untested(claim, scale, "no multigram heads in both layers, or no sets like them")
    effect = pooled(effects)
    return Claim(claim, effect, scale, judge(effect, 0.1), "; ".join(details))


# The table.


def as_markdown(claims: Sequence[Claim], detail: bool = True) -> str:
    """The table of claims."""
    columns = ["claim", "effect (95 % interval)", "seen in 80 % of trials", "verdict"]
    if detail:
        columns.append("parts")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for claim in claims:
        cells = [claim.claim, effect_in_words(claim), seen_in_words(claim), claim.verdict]
        if detail:
            cells.append(claim.detail)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def effect_in_words(claim: Claim) -> str:
    if claim.effect is None:
        return claim.scale if claim.verdict != UNTESTED else "–"
    low, high = claim.effect.interval
    return f"{claim.effect.value:+.2f} ({low:+.2f} … {high:+.2f}): {claim.scale}"


def seen_in_words(claim: Claim) -> str:
    if claim.effect is None:
        return "–"
    if np.isfinite(claim.seen):
        return f"{claim.seen:.2f}"
    return f"{claim.effect.detectable:.2f}"


def main(argv: Sequence[str] | None = None) -> list[Claim]:
    """Print the table of stored results, and draw their figures."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.paper.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, help="of results; default: the stored ones"
    )
    parser.add_argument("--figures", type=Path, help="also draw the figures, into this folder")
    args = parser.parse_args(argv)
    runs = load_runs(args.folders or [STORED])
    if not runs:
        parser.error("there are no results in these folders")
    claims = all_claims(runs)
    print(as_markdown(claims))
    print(f"\n{by_resolution(runs)}\n\n{beside_other_measures(runs)}")
    if args.figures:
        from .figures import draw_all

        for path in draw_all(runs, claims, args.figures):
            print(path)
    return claims


if __name__ == "__main__":
    main()
