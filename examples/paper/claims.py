"""What arXiv 2410.02984 claims, as questions: each claim, what was measured, holds or not.

Each function gives a :class:`Claim` from the runs of all seeds. Its criterion is written beside it,
so that it can be argued with. Where nothing can be measured, such as no induction head, or so few
heads that no outcome could be told from chance, the verdict says so.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.metrics import adjusted_rand_score

from .results import FORMED, Run, layer_of
from .significance import Change, Statistic, mean_change, permuted, rank_correlation, spread

SIMPLE = ("previous token", "current token", "induction", "bracket")
"""Roles of heads that run a simple algorithm, as against those that remember multigrams."""
HOLDS = "holds"
FAILS = "does not hold"
UNTESTED = "not testable"
LEVEL = 0.05
"""Chance at which a claim about heads that do not differ would be said to hold."""


class Claim(NamedTuple):
    """A row of the table; the verdict is one of ``HOLDS``, ``FAILS`` and ``UNTESTED``."""

    claim: str
    criterion: str
    measured: str
    verdict: str


def all_claims(runs: Sequence[Run]) -> list[Claim]:
    """Every claim of the paper that this pipeline can test, in the order of the paper's story."""
    questions = (
        induction_circuit,
        differentiation,
        simple_below_multigram,
        memory,
        clusters_are_roles,
        on_code,
        against_one_layer,
        stages_show,
        multigram_circuit,
    )
    return [question(runs) for question in questions]


def verdict(holds: bool) -> str:
    return HOLDS if holds else FAILS


# The heads.


def induction_circuit(runs: Sequence[Run]) -> Claim:
    """The best prefix-matching head reads, with its keys, the best previous-token head."""
    measured = []
    holds = []
    for run in runs:
        matching = run.final_scores("prefix_matching", 1)
        previous = run.final_scores("previous_token", 0)
        best = max(matching, key=matching.__getitem__)
        sender = max(previous, key=previous.__getitem__)
        strongest = int(np.argmax(run.paths.effect))
        path = run.paths.paths[strongest]
        effect = run.paths.effect[strongest]
        error = run.paths.standard_error[strongest]
        formed = matching[best] >= FORMED and previous[sender] >= FORMED
        holds.append(bool(formed and path == f"{sender}->{best}.K" and effect > 2 * error))
        measured.append(
            f"{best} matches prefixes {matching[best]:.2f}, "
            f"{sender} looks one back {previous[sender]:.2f}, "
            f"strongest path {path} ({effect:+.3f} ± {error:.3f} nats)"
        )
    return Claim(
        "an induction head forms, and a previous-token head feeds its keys",
        f"in every seed both scores ≥ {FORMED}, and of layer 0 the previous-token head has the "
        "path of most effect, > 2 se",
        "; ".join(measured),
        verdict(all(holds)),
    )


def differentiation(runs: Sequence[Run]) -> Claim:
    """Heads of a layer start alike and come apart."""
    measured = []
    holds = []
    for run in runs:
        first = []
        last = []
        errors = []
        levels = []
        for heads in run.layers.values():
            if len(heads) < 2:
                continue
            curves = [run.curve(head, run.base) for head in heads]
            values = np.stack([value for value, _ in curves])
            standard_errors = np.stack([error for _, error in curves])
            first.append(values[:, 0].std(ddof=1))
            last.append(spread(values[:, -1], standard_errors[:, -1]))
            errors.append(root_mean_square(standard_errors[:, -1]))
            levels.append(values[:, -1].mean())
        at_start = root_mean_square(first)
        at_end = root_mean_square(last)
        error = root_mean_square(errors)
        measured.append(
            f"{at_start:.2f} → {at_end:.2f} (errors {error:.2f}, mean λ̂ {np.mean(levels):.2f})"
        )
        holds.append(at_end > 2 * at_start and at_end > error)
    return Claim(
        "heads start alike and differentiate",
        "in every seed the standard deviation of λ̂ over the heads of a layer, at the end without "
        f"what errors add, is more than twice that at step {runs[0].heads.steps[0]}, errors "
        "included, and larger than the errors",
        "; ".join(measured),
        verdict(all(holds)),
    )


def root_mean_square(values: np.ndarray | Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


# Heads of one layer beside each other.


def simple_below_multigram(runs: Sequence[Run]) -> Claim:
    """Heads with simple algorithms end below multigram heads of their layer."""
    tables = {}
    for run in runs:
        for layer, heads in run.layers.items():
            classified = [head for head in heads if run.roles[head] in (*SIMPLE, "multigram")]
            simple = [run.roles[head] in SIMPLE for head in classified]
            if len(set(simple)) == 2:
                values = [run.last(head, run.base)[0] for head in classified]
                tables[layer_name(run, layer)] = np.column_stack([values, simple])

    def difference(values: np.ndarray, simple: np.ndarray) -> float:
        return float(values[simple == 1].mean() - values[simple == 0].mean())

    def both_means(values: np.ndarray, simple: np.ndarray) -> str:
        return f"{values[simple == 1].mean():.2f} against {values[simple == 0].mean():.2f}"

    return by_permutation(
        Question(
            "at the end, heads of simple algorithms have lower wrLLC than multigram heads",
            "mean difference within layers < 0",
            "no layer has heads of both kinds",
        ),
        tables,
        difference,
        both_means,
        lower=True,
    )


def memory(runs: Sequence[Run]) -> Claim:
    """Final wrLLC goes with the number of memorised multigrams, within layers."""
    tables = {}
    for run in runs:
        for layer, heads in run.layers.items():
            values = [run.last(head, run.base)[0] for head in heads]
            memorised = [run.memorised[head] for head in heads]
            if len(set(memorised)) > 1:
                tables[layer_name(run, layer)] = np.column_stack([values, memorised])
    return by_permutation(
        Question(
            "final wrLLC correlates with the number of memorised multigrams",
            "mean Spearman correlation over the heads of a layer > 0",
            "no head of a layer has memorised more than another",
        ),
        tables,
        rank_correlation,
        lambda values, memorised: f"ρ = {rank_correlation(values, memorised):.2f}",
    )


def clusters_are_roles(runs: Sequence[Run]) -> Claim:
    """Clusters of the curves, each layer apart, agree with the roles."""
    tables = {}
    for run in runs:
        if run.clusters is None:
            continue
        groups = np.array(run.clusters.groups)
        for group in dict.fromkeys(run.clusters.groups):
            members = np.flatnonzero(groups == group)
            roles = [run.roles[run.clusters.names[k]] for k in members]
            if len(set(roles)) > 1:
                _, role_numbers = np.unique(roles, return_inverse=True)
                labels = run.clusters.labels[members]
                tables[f"seed {run.seed} {group}"] = np.column_stack([labels, role_numbers])
    return by_permutation(
        Question(
            "clustering the wrLLC curves recovers the roles",
            "mean adjusted Rand index over layers > 0",
            "in each layer all heads have one role",
        ),
        tables,
        adjusted_rand_score,
        lambda labels, roles: f"{adjusted_rand_score(labels, roles):.2f}",
    )


class Question(NamedTuple):
    """A claim before it is put to the test."""

    claim: str
    criterion: str
    untestable: str
    """Why it cannot be asked if there is no table."""


def layer_name(run: Run, layer: int) -> str:
    return f"seed {run.seed} layer {layer}"


def by_permutation(
    question: Question,
    tables: Mapping[str, np.ndarray],
    statistic: Statistic,
    words: Callable[[np.ndarray, np.ndarray], str],
    lower: bool = False,
) -> Claim:
    """Test whether two columns go together more than when the second is permuted.

    Args:
        question: what is asked.
        tables: arrays ``[head, 2]`` by the name of their layer.
        statistic: of both columns; its mean over tables is tested.
        words: what to say of one table.
        lower: whether the statistic is claimed to be negative.
    """
    claim = question.claim
    criterion = f"{question.criterion}, p < {LEVEL} by permuting within each layer of each seed"
    if not tables:
        return Claim(claim, criterion, question.untestable, UNTESTED)
    mean, p, least = permuted(list(tables.values()), statistic, lower=lower)
    by_layer = ", ".join(f"{name} {words(*table.T)}" for name, table in tables.items())
    measured = f"{by_layer}; mean {mean:.2f}, p = {p:.2g}"
    if least >= LEVEL:
        measured += f"; so few heads cannot give less than p = {least:.2g}"
        return Claim(claim, criterion, measured, UNTESTED)
    has_claimed_sign = mean < 0 if lower else mean > 0
    return Claim(claim, criterion, measured, verdict(p < LEVEL and has_claimed_sign))


# Other data, and another loss.


def on_code(runs: Sequence[Run]) -> Claim:
    """On code, induction heads have a larger λ̂ than on all data, multigram heads a smaller one."""
    base = runs[0].base
    code = runs[0].code

    def changes(role: str) -> list[list[Change]]:
        seeds = []
        for run in runs:
            heads = run.having(role)
            if heads:
                seeds.append([change_on_code(run, head) for head in heads])
        return seeds

    claim = (
        f"on {code}, λ̂ of induction heads is larger than on {base}, and of multigram heads smaller"
    )
    return by_change(
        claim,
        "the 95 % intervals of both mean differences are on those sides of 0",
        rising=("induction heads", changes("induction")),
        falling=("multigram heads", changes("multigram")),
    )


def change_on_code(run: Run, head: str) -> Change:
    on_base, error_on_base = run.last(head, run.base)
    on_code, error_on_code = run.last(head, run.code)
    return on_code - on_base, error_on_code, error_on_base


def against_one_layer(runs: Sequence[Run]) -> Claim:
    """While the induction circuit forms, multigram heads with ℓ = L1 fall in layer 0, rise in 1."""
    claim = (
        "against ℓ = L1, layer-0 multigram heads fall and layer-1 ones rise while the induction "
        "circuit forms"
    )
    criterion = "the 95 % intervals of both mean changes over that window are on those sides of 0"
    windows = {run.seed: run.forming() for run in runs}
    formed = [run for run in runs if windows[run.seed] is not None]
    if not formed:
        return Claim(claim, criterion, "no induction circuit forms", UNTESTED)

    def changes(layer: int) -> list[list[Change]]:
        seeds = []
        for run in formed:
            heads = run.having("multigram", layer=layer)
            if heads:
                seeds.append([change_while_forming(run, head) for head in heads])
        return seeds

    answer = by_change(
        claim,
        criterion,
        rising=("rise of layer 1", changes(1)),
        falling=("rise of layer 0", changes(0)),
    )
    steps = ", ".join(window_of_steps(run) for run in formed)
    return answer._replace(measured=f"steps {steps}: {answer.measured}")


def change_while_forming(run: Run, head: str) -> Change:
    window = run.forming()
    assert window is not None
    begin, end = window
    value, error = run.curve(head, run.base, run.distilled)
    return float(value[end] - value[begin]), float(error[end]), float(error[begin])


def window_of_steps(run: Run) -> str:
    window = run.forming()
    assert window is not None
    return "–".join(str(run.heads.steps[k]) for k in window)


def by_change(
    claim: str,
    criterion: str,
    rising: tuple[str, Sequence[Sequence[Change]]],
    falling: tuple[str, Sequence[Sequence[Change]]],
) -> Claim:
    """Test whether the first kind of heads rises and the second falls.

    Args:
        claim: what is claimed.
        criterion: by what it is judged.
        rising: name of the kind that is claimed to rise, and for each seed with such heads their
            changes.
        falling: the same of the kind that is claimed to fall.
    """
    up, up_half, up_count = mean_change(rising[1])
    down, down_half, down_count = mean_change(falling[1])
    measured = (
        f"{in_words(rising[0], up, up_half, up_count)}, "
        f"{in_words(falling[0], down, down_half, down_count)}"
    )
    if not np.isfinite([up_half, down_half]).all():
        return Claim(claim, criterion, f"{measured}; one number is no mean", UNTESTED)
    return Claim(claim, criterion, measured, verdict(up > up_half and down < -down_half))


def in_words(kind: str, mean: float, half: float, count: str) -> str:
    if not np.isfinite(mean):
        return f"{kind}: none"
    return f"{kind} {mean:+.2f} ± {half:.2f} ({count})"


# The whole model, and the multigram circuit.


def stages_show(runs: Sequence[Run]) -> Claim:
    """The LLC of the whole model turns where stages of training meet."""
    claim = "the full-model LLC shows the stages of training"
    criterion = (
        "in every seed it turns at least once with probability ≥ 0.9, and where an induction "
        "circuit forms, the 95 % interval of a turn meets that window"
    )
    measured = []
    holds = []
    for run in runs:
        if run.stages is None:
            reason = f"seed {run.seed} has too few estimates of it"
            return Claim(claim, criterion, reason, UNTESTED)
        turns = run.stages.turns
        places = [f"{turn.step:.0f} [{turn.low:.0f}, {turn.high:.0f}]" for turn in turns]
        words = f"turns at {', '.join(places) or 'none'}"
        meets = bool(turns)
        window = run.forming()
        if window is not None:
            begin, end = (run.heads.steps[k] for k in window)
            words += f", the circuit forms {begin}–{end}"
            meets = any(turn.low <= end and turn.high >= begin for turn in turns)
        measured.append(words)
        holds.append(meets)
    return Claim(claim, criterion, "; ".join(measured), verdict(all(holds)))


def multigram_circuit(runs: Sequence[Run]) -> Claim:
    """Complex multigrams need multigram heads of both layers, more than simple ones do."""
    claim = (
        "multigram heads of both layers are needed for complex multigrams, "
        "more than for simple ones"
    )
    criterion = (
        "ablating them together costs complex multigrams, and these less the simple ones, more "
        f"than all but {LEVEL:.0%} of other sets with as many heads in each layer do, in every "
        "seed where there are enough such sets"
    )
    measured = []
    holds = []
    for run in runs:
        cost = run.circuit
        if cost is None or not {"simple", "complex"} <= set(cost.masks):
            measured.append(f"seed {run.seed}: no circuit or no such tokens")
            continue
        heads = cost.sets[0]
        loss = dict(zip(cost.masks, cost.loss[0], strict=True))
        p = cost.p_value("complex")
        p_difference = cost.p_value("complex", less="simple")
        words = (
            f"seed {run.seed}: {len(heads)} heads, complex {loss['complex']:+.2f} nats "
            f"(p = {p:.2g}), simple {loss['simple']:+.2f} (difference p = {p_difference:.2g}), "
            f"{len(cost.sets) - 1} other sets"
        )
        in_one_layer = len({layer_of(head) for head in heads}) < 2
        if in_one_layer:
            words += ", all in one layer"
        elif 1 / len(cost.sets) < LEVEL:
            holds.append(p < LEVEL and p_difference < LEVEL)
        measured.append(words)
    answer = verdict(all(holds)) if holds else UNTESTED
    return Claim(claim, criterion, "; ".join(measured), answer)
