"""What arXiv 2410.02984 claims, as questions to the results of ``paper.py``: each claim, what was measured, holds or not.

Each function gives a :class:`Claim` from the runs of all seeds. Its criterion is written down beside it, so that it can be
argued with. Where there is nothing to measure, such as no induction head, or so few heads that no outcome could be told
from chance, the verdict says so instead of "holds" or "does not hold".
"""

# %% What the claims are asked of, and what comes out
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata, t
from sklearn.metrics import adjusted_rand_score

import rllc
from rllc.analysis.circuit import CircuitCost
from rllc.analysis.clustering import Clusters
from rllc.analysis.patching import Patching
from rllc.analysis.stages import Stages

SIMPLE = ("previous token", "current token", "induction", "bracket")
"""Roles of heads that run a simple algorithm, as against those that remember multigrams."""
HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not testable"
LEVEL = 0.05
"""Chance at which a claim about heads that do not differ would be said to hold."""


@dataclass(frozen=True)
class Run:
    """What was measured on one seed's model. Only heads whose every estimate is finite have a role here."""

    seed: int
    heads: rllc.Trajectory
    """wrLLC of each head, on the data trained on and on the others."""
    distilled: rllc.Trajectory
    """wrLLC of each head with ℓ = L1: against the one-layer model."""
    roles: Mapping[str, str]
    memorised: Mapping[str, int]
    """Different multigrams that each head remembers."""
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    """Name of the score -> head -> value at each step of ``heads``."""
    clusters: Clusters | None
    """Of the heads' curves on the data trained on, each layer apart; ``None`` where these are too few."""
    paths: Patching
    """From the heads of layer 0 into the keys of the head that matches prefixes best."""
    circuit: CircuitCost | None
    """All multigram heads ablated together, on rows that had no say in the roles; ``None`` where there are none."""
    stages: Stages | None
    """Of the LLC of all weights; ``None`` where fewer than 5 checkpoints have one."""
    base: str
    """Name of the data trained on."""
    code: str
    """Name of the data that induction heads are for: code, or repeats of the synthetic language."""

    def having(self, *roles: str, layer: int | None = None) -> list[str]:
        """Heads with one of these roles."""
        return [
            h for h, role in self.roles.items() if role in roles and layer in (None, layer_of(h))
        ]

    def curve(
        self, head: str, data: str, trajectory: rllc.Trajectory | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """λ̂ and its standard error at each step."""
        found = self.heads if trajectory is None else trajectory
        i = next(
            i
            for i, name in enumerate(zip(found.weights, found.data, strict=True))
            if name == (head, data)
        )
        return found.value[:, i], found.standard_error[:, i]

    def last(self, head: str, data: str) -> tuple[float, float]:
        """λ̂ and its standard error at the last step."""
        value, error = self.curve(head, data)
        return float(value[-1]), float(error[-1])

    @property
    def layers(self) -> list[list[str]]:
        """The heads of each layer."""
        return [
            [h for h in self.roles if layer_of(h) == layer]
            for layer in sorted({layer_of(h) for h in self.roles})
        ]


class Claim(NamedTuple):
    """A row of the table; the verdict is one of ``HOLDS``, ``FAILS`` and ``UNTESTED``."""

    claim: str
    criterion: str
    measured: str
    verdict: str


def all_claims(runs: Sequence[Run]) -> list[Claim]:
    """Every claim of the paper that this pipeline can put to the test, in the order of the paper's story."""
    questions = (
        *(induction_circuit, differentiation, simple_below_multigram, memory, clusters_are_roles),
        *(on_code, against_one_layer, stages_show, multigram_circuit),
    )
    return [question(runs) for question in questions]


# %% The heads
def induction_circuit(runs: Sequence[Run]) -> Claim:
    """The best prefix-matching head reads, with its keys, the best previous-token head."""
    found, right = [], 0
    for run in runs:
        matching, previous = of_layer(run, "prefix_matching", 1), of_layer(run, "previous_token", 0)
        best, sender = max(matching, key=matching.get), max(previous, key=previous.get)
        k = int(np.argmax(run.paths.effect))
        good = (
            matching[best] >= 0.3
            and previous[sender] >= 0.3
            and run.paths.paths[k] == f"{sender}->{best}.K"
        )
        right += bool(good and run.paths.effect[k] > 2 * run.paths.standard_error[k])
        found.append(
            f"{best} matches prefixes {matching[best]:.2f}, {sender} looks one back {previous[sender]:.2f}, strongest path "
            f"{run.paths.paths[k]} ({run.paths.effect[k]:+.3f} ± {run.paths.standard_error[k]:.3f} nats)"
        )
    return Claim(
        "an induction head forms, and a previous-token head feeds its keys",
        "in every seed both scores ≥ 0.3, and of layer 0 the previous-token head has the path of most effect, > 2 se",
        "; ".join(found),
        HOLDS if right == len(runs) else FAILS,
    )


def differentiation(runs: Sequence[Run]) -> Claim:
    """Heads of a layer start alike and come apart."""
    written, right = [], []
    for run in runs:
        layers = [
            [np.stack(part) for part in zip(*(run.curve(h, run.base) for h in heads), strict=True)]
            for heads in run.layers
            if len(heads) > 1
        ]
        first = float(np.sqrt(np.mean([values[:, 0].var(ddof=1) for values, _ in layers])))
        last = float(
            np.sqrt(
                np.mean([spread(values[:, -1], errors[:, -1]) ** 2 for values, errors in layers])
            )
        )
        error = float(np.sqrt(np.mean([(errors[:, -1] ** 2).mean() for _, errors in layers])))
        level = float(np.mean([values[:, -1].mean() for values, _ in layers]))
        written.append(f"{first:.2f} → {last:.2f} (errors {error:.2f}, mean λ̂ {level:.2f})")
        right.append(last > 2 * first and last > error)
    return Claim(
        "heads start alike and differentiate",
        "in every seed the standard deviation of λ̂ over the heads of a layer, at the end without what errors add, is more "
        f"than twice that at step {runs[0].heads.steps[0]}, errors included, and larger than the errors",
        "; ".join(written),
        HOLDS if all(right) else FAILS,
    )


def simple_below_multigram(runs: Sequence[Run]) -> Claim:
    """Heads with simple algorithms end below multigram heads of their layer."""
    tables, names = [], []
    for run in runs:
        for heads in run.layers:
            mine = [h for h in heads if run.roles[h] in (*SIMPLE, "multigram")]
            simple = [run.roles[h] in SIMPLE for h in mine]
            if len(set(simple)) == 2:
                tables.append(np.array([[run.last(h, run.base)[0] for h in mine], simple]).T)
                names.append(f"seed {run.seed} layer {layer_of(heads[0])}")

    def difference(values: np.ndarray, simple: np.ndarray) -> float:
        return values[simple == 1].mean() - values[simple == 0].mean()

    def both(table: np.ndarray) -> str:
        return " against ".join(f"{table[table[:, 1] == kind, 0].mean():.2f}" for kind in (1, 0))

    return by_permutation(
        "at the end, heads of simple algorithms have lower wrLLC than multigram heads",
        "mean difference within layers < 0",
        "no layer has heads of both kinds",
        *(tables, names, difference, both),
        lower=True,
    )


def memory(runs: Sequence[Run]) -> Claim:
    """Final wrLLC goes with the number of memorised multigrams, within layers."""
    tables, names = [], []
    for run in runs:
        for heads in run.layers:
            table = np.array([(run.last(h, run.base)[0], run.memorised[h]) for h in heads])
            if len(set(table[:, 1])) > 1:
                tables.append(table)
                names.append(f"seed {run.seed} layer {layer_of(heads[0])}")
    return by_permutation(
        "final wrLLC correlates with the number of memorised multigrams",
        "mean Spearman correlation over the heads of a layer > 0",
        "no head of a layer has memorised more than another",
        *(tables, names, rank_correlation, lambda table: f"ρ = {rank_correlation(*table.T):.2f}"),
    )


def clusters_are_roles(runs: Sequence[Run]) -> Claim:
    """Clusters of the curves, each layer apart, agree with the roles."""
    tables, names = [], []
    for run in runs:
        for group in [] if run.clusters is None else dict.fromkeys(run.clusters.groups):
            mine = [i for i, g in enumerate(run.clusters.groups) if g == group]
            roles = [run.roles[run.clusters.names[i]] for i in mine]
            if len(set(roles)) > 1:
                tables.append(
                    np.column_stack(
                        [run.clusters.labels[mine], np.unique(roles, return_inverse=True)[1]]
                    )
                )
                names.append(f"seed {run.seed} {group}")
    return by_permutation(
        "clustering the wrLLC curves recovers the roles",
        "mean adjusted Rand index over layers > 0",
        "in each layer all heads have one role",
        *(tables, names, adjusted_rand_score, lambda table: f"{adjusted_rand_score(*table.T):.2f}"),
    )


def by_permutation(
    claim: str,
    criterion: str,
    without: str,
    tables: Sequence[np.ndarray],
    names: Sequence[str],
    statistic: Callable[..., float],
    words: Callable[[np.ndarray], str],
    lower: bool = False,
) -> Claim:
    """A claim that the two columns of tables, one a layer, go together more than when the second is permuted."""
    criterion += f", p < {LEVEL} by permuting within each layer of each seed"
    if not tables:
        return Claim(claim, criterion, without, UNTESTED)
    observed, p, least = permuted(tables, statistic, lower=lower)
    each = ", ".join(f"{name} {words(table)}" for name, table in zip(names, tables, strict=True))
    measured = f"{each}; mean {observed:.2f}, p = {p:.2g}"
    if least >= LEVEL:
        return Claim(
            claim,
            criterion,
            f"{measured}; so few heads cannot give less than p = {least:.2g}",
            UNTESTED,
        )
    return Claim(
        claim,
        criterion,
        measured,
        HOLDS if p < LEVEL and (observed < 0 if lower else observed > 0) else FAILS,
    )


# %% Other data
def on_code(runs: Sequence[Run]) -> Claim:
    """On code, induction heads have a larger λ̂ than on all data, multigram heads a smaller one."""
    base, code = runs[0].base, runs[0].code
    changes = {
        role: [
            [
                (
                    run.last(h, code)[0] - run.last(h, base)[0],
                    run.last(h, code)[1],
                    run.last(h, base)[1],
                )
                for h in heads
            ]
            for run in runs
            if (heads := run.having(role))
        ]
        for role in ("induction", "multigram")
    }
    return by_change(
        f"on {code}, λ̂ of induction heads is larger than on {base}, and of multigram heads smaller",
        "the 95 % intervals of both mean differences are on those sides of 0",
        {f"{role} heads": found for role, found in changes.items()},
    )


def against_one_layer(runs: Sequence[Run]) -> Claim:
    """While the induction circuit forms, against ℓ = L1 layer-0 multigram heads fall and layer-1 ones rise."""
    changes: dict[str, list] = {"rise of layer 1": [], "rise of layer 0": []}
    windows = []
    for run in runs:
        window = forming(run)
        if window is None:
            continue
        windows.append("–".join(str(run.heads.steps[k]) for k in window))
        for layer, found in zip((1, 0), changes.values(), strict=True):
            curves = [
                run.curve(h, run.base, run.distilled) for h in run.having("multigram", layer=layer)
            ]
            if curves:
                found.append(
                    [(v[window[1]] - v[window[0]], e[window[1]], e[window[0]]) for v, e in curves]
                )
    claim = "against ℓ = L1, layer-0 multigram heads fall and layer-1 ones rise while the induction circuit forms"
    criterion = "the 95 % intervals of both mean changes over that window are on those sides of 0"
    if not windows:
        return Claim(claim, criterion, "no induction circuit forms", UNTESTED)
    asked = by_change(claim, criterion, changes)
    return asked._replace(measured=f"steps {', '.join(windows)}: {asked.measured}")


def by_change(
    claim: str,
    criterion: str,
    changes: Mapping[str, Sequence[Sequence[tuple[float, float, float]]]],
) -> Claim:
    """A claim that the first kind of heads rises and the second falls.

    Args:
        changes: kind -> for each seed that has such heads, for each of these: change, and standard errors of both ends.
    """
    found = {kind: mean_change(seeds) for kind, seeds in changes.items()}
    measured = ", ".join(
        f"{kind}: none" if not np.isfinite(mean) else f"{kind} {mean:+.2f} ± {half:.2f} ({count})"
        for kind, (mean, half, count) in found.items()
    )
    if any(not np.isfinite(half) for _, half, _ in found.values()):
        return Claim(claim, criterion, f"{measured}; one number is no mean", UNTESTED)
    (up, up_half, _), (down, down_half, _) = found.values()
    return Claim(claim, criterion, measured, HOLDS if up > up_half and down < -down_half else FAILS)


def mean_change(seeds: Sequence[Sequence[tuple[float, float, float]]]) -> tuple[float, float, str]:
    """Mean change, half its 95 % interval, and of how many.

    Heads of one model share minibatches, and with them an error of unknown size, at most that of each: so with three seeds
    or more, seeds are the units. With fewer, heads are, and the whole of the errors is added as if shared.
    """
    heads = [head for seed in seeds for head in seed]
    if len(seeds) > 2:
        units, shared, what = (
            [np.mean([change for change, *_ in seed]) for seed in seeds],
            0.0,
            "seeds",
        )
    else:
        units, what = [change for change, *_ in heads], "heads"
        shared = (
            float(sum(np.mean([head[k] for head in heads]) ** 2 for k in (1, 2))) if heads else 0.0
        )
    if not units:
        return np.nan, np.inf, what
    if len(units) == 1:
        return float(units[0]), np.inf, f"1 {what[:-1]}"
    own = np.var(units, ddof=1) / len(units)
    return (
        float(np.mean(units)),
        float(t.ppf(0.975, len(units) - 1) * np.sqrt(own + shared)),
        f"{len(units)} {what}",
    )


def stages_show(runs: Sequence[Run]) -> Claim:
    """The LLC of the whole model turns where stages of training meet."""
    claim = "the full-model LLC shows the stages of training"
    criterion = (
        "in every seed it turns at least once with probability ≥ 0.9, and where an induction circuit forms, the 95 % "
        "interval of a turn meets that window"
    )
    written, right = [], []
    for run in runs:
        if run.stages is None:
            return Claim(claim, criterion, f"seed {run.seed} has too few estimates of it", UNTESTED)
        turns = run.stages.turns
        window = forming(run)
        written.append(
            "turns at "
            + (", ".join(f"{t.step:.0f} [{t.low:.0f}, {t.high:.0f}]" for t in turns) or "none")
        )
        met = bool(turns)
        if window is not None:
            begin, end = (run.heads.steps[k] for k in window)
            written[-1] += f", the circuit forms {begin}–{end}"
            met = any(turn.low <= end and turn.high >= begin for turn in turns)
        right.append(met)
    return Claim(claim, criterion, "; ".join(written), HOLDS if all(right) else FAILS)


def multigram_circuit(runs: Sequence[Run]) -> Claim:
    """Multigram heads of both layers together are what complex multigrams need, more than simple ones."""
    claim = "multigram heads of both layers are needed for complex multigrams, more than for simple ones"
    criterion = (
        f"ablating them together costs complex multigrams, and these less the simple ones, more than all but {LEVEL:.0%} of "
        "other sets with as many heads in each layer do, in every seed where there are enough such sets"
    )
    found, right = [], []
    for run in runs:
        cost = run.circuit
        if cost is None or not {"simple", "complex"} <= set(cost.masks):
            found.append(f"seed {run.seed}: no circuit or no such tokens")
            continue
        layers = {layer_of(path) for path in cost.sets[0]}
        loss = dict(zip(cost.masks, cost.loss[0], strict=True))
        p, more = cost.p_value("complex"), cost.p_value("complex", less="simple")
        found.append(
            f"seed {run.seed}: {len(cost.sets[0])} heads, complex {loss['complex']:+.2f} nats (p = {p:.2g}), "
            f"simple {loss['simple']:+.2f} (difference p = {more:.2g}), {len(cost.sets) - 1} other sets"
        )
        if len(layers) < 2:
            found[-1] += ", all in one layer"
        elif 1 / len(cost.sets) < LEVEL:
            right.append(p < LEVEL and more < LEVEL)
    if not right:
        return Claim(claim, criterion, "; ".join(found), UNTESTED)
    return Claim(claim, criterion, "; ".join(found), HOLDS if all(right) else FAILS)


# %% Numbers
def layer_of(head: str) -> int:
    """The layer in ``"1:6"``."""
    return int(head.split(":")[0])


def of_layer(run: Run, score: str, layer: int) -> dict[str, float]:
    """A score at the last step, of the heads of a layer."""
    return {h: values[-1] for h, values in run.scores[score].items() if layer_of(h) == layer}


def forming(run: Run) -> tuple[int, int] | None:
    """Checkpoints between which the induction circuit forms; ``None`` where no head's prefix matching comes to 0.3.

    From the last at which the best previous-token score of layer 0 has not yet come a quarter of its way, to the first at
    which the best prefix-matching score of layer 1 has come three quarters of its own.
    """
    previous, matching = (
        np.max([values for h, values in run.scores[name].items() if layer_of(h) == layer], axis=0)
        for name, layer in (("previous_token", 0), ("prefix_matching", 1))
    )
    if matching[-1] < 0.3 or matching[-1] <= matching[0] or previous[-1] <= previous[0]:
        return None
    begin, end = (
        int(np.argmax(curve >= curve[0] + share * (curve[-1] - curve[0])))
        for curve, share in ((previous, 0.25), (matching, 0.75))
    )
    return min(begin, end) - 1, end


def spread(values: np.ndarray, errors: np.ndarray) -> float:
    """Standard deviation over heads, without what errors add to it; those that heads share add less than is taken off."""
    return float(np.sqrt(max(values.var(ddof=1) - (errors**2).mean(), 0.0)))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, with mean ranks for ties."""
    x, y = rankdata(x), rankdata(y)
    spreads = x.std() * y.std()
    return float(((x - x.mean()) * (y - y.mean())).mean() / spreads) if spreads else 0.0


def permuted(
    tables: Sequence[np.ndarray],
    statistic: Callable[..., float],
    *,
    lower: bool = False,
    count: int = 1000,
) -> tuple[float, float, float]:
    """Mean of a statistic of two columns over tables; its p value when the second is permuted within each; the least p.

    The p value counts the arrangement seen as one of those possible: (1 + #)/(1 + count). The least is the share of the
    most extreme arrangements: where it is not small, nothing could have been found.
    """
    stream, sign = np.random.default_rng(0), -1 if lower else 1

    def mean(shuffle: bool) -> float:
        seconds = [stream.permutation(table[:, 1]) if shuffle else table[:, 1] for table in tables]
        return float(
            np.mean(
                [
                    statistic(table[:, 0], second)
                    for table, second in zip(tables, seconds, strict=True)
                ]
            )
        )

    observed, others = mean(False), sign * np.array([mean(True) for _ in range(count)])
    most = max(others.max(), sign * observed)
    p, least = (
        (1 + (others >= edge - 1e-9).sum()) / (1 + count) for edge in (sign * observed, most)
    )
    return observed, float(p), float(least)
