"""What arXiv 2410.02984 claims, as questions to the results of ``paper.py``: each claim, what was measured, holds or not.

Each function gives a :class:`Claim` from the runs of all seeds. Its criterion is written down beside it, so that it can be
argued with; where there is nothing to measure, such as no induction head, the verdict says so instead of "holds".
"""

# %% What the claims are asked of, and what comes out
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import rllc
from rllc.analysis.circuit import CircuitCost
from rllc.analysis.clustering import Clusters
from rllc.analysis.patching import Patching
from rllc.analysis.stages import Stages

SIMPLE = ("previous token", "current token", "induction", "bracket")
"""Roles of heads that run a simple algorithm, as against those that remember multigrams."""
HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not testable"


@dataclass(frozen=True)
class Run:
    """What was measured on one seed's model."""

    heads: rllc.Trajectory
    """wrLLC of each head, on the data trained on and on the others."""
    whole: rllc.Trajectory
    """LLC of all weights."""
    distilled: rllc.Trajectory
    """wrLLC of each head with ℓ = L1: against the one-layer model."""
    roles: Mapping[str, str]
    memorised: Mapping[str, int]
    """Different multigrams that each head remembers."""
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    """Name of the score -> head -> value at each step of ``heads``."""
    clusters: Clusters
    """Of the heads' curves on the data trained on, each layer apart."""
    paths: Patching
    """From the heads of layer 0 into the keys of the head that matches prefixes best."""
    circuit: CircuitCost | None
    """All multigram heads ablated together; ``None`` where there are fewer than two, or only such heads."""
    stages: Stages
    base: str
    """Name of the data trained on."""
    code: str
    """Name of the data that induction heads are for: code, or repeats of the synthetic language."""

    def having(self, *roles: str, layer: int | None = None) -> list[str]:
        """Heads with one of these roles."""
        return [h for h, role in self.roles.items() if role in roles and layer in (None, int(h.split(":")[0]))]

    def curve(self, head: str, data: str, trajectory: rllc.Trajectory | None = None) -> tuple[np.ndarray, np.ndarray]:
        """λ̂ and its standard error at each step."""
        t = self.heads if trajectory is None else trajectory
        i = next(i for i, name in enumerate(zip(t.weights, t.data, strict=True)) if name == (head, data))
        return t.value[:, i], t.standard_error[:, i]

    def last(self, head: str, data: str) -> tuple[float, float]:
        """λ̂ and its standard error at the last step."""
        value, error = self.curve(head, data)
        return float(value[-1]), float(error[-1])


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
        matching = {h: values[-1] for h, values in run.scores["prefix_matching"].items() if not h.startswith("0:")}
        previous = {h: values[-1] for h, values in run.scores["previous_token"].items() if h.startswith("0:")}
        best, sender = max(matching, key=matching.get), max(previous, key=previous.get)
        k = int(np.argmax(run.paths.effect))
        good = matching[best] >= 0.3 and previous[sender] >= 0.3 and run.paths.paths[k] == f"{sender}->{best}.K"
        right += bool(good and run.paths.effect[k] > 2 * run.paths.standard_error[k])
        found.append(
            f"{best} matches prefixes {matching[best]:.2f}, {sender} looks one back {previous[sender]:.2f}, strongest path "
            f"{run.paths.paths[k]} (+{run.paths.effect[k]:.3f} ± {run.paths.standard_error[k]:.3f} nats)"
        )
    return Claim(
        "an induction head forms, and a previous-token head feeds its keys",
        "in every seed both scores ≥ 0.3, and of layer 0 the previous-token head has the path of most effect, > 2 se",
        "; ".join(found),
        HOLDS if right == len(runs) else FAILS,
    )


def differentiation(runs: Sequence[Run]) -> Claim:
    """Heads start alike and come apart: the spread of λ̂ over heads, without what its errors add."""
    written, right = [], []
    for run in runs:
        values, errors = (np.stack(part) for part in zip(*(run.curve(h, run.base) for h in run.roles), strict=True))
        first, last = (spread(values[:, k], errors[:, k]) for k in (0, -1))
        error = float(np.sqrt((errors[:, -1] ** 2).mean()))
        written.append(f"{first:.2f} at step {run.heads.steps[0]}, {last:.2f} at the end (errors {error:.2f})")
        right.append(last > 2 * first and last > error)
    return Claim(
        "heads start alike and differentiate",
        "in every seed the spread of λ̂ over heads, without that of its errors, is more than twice that at the start, and "
        "larger than the errors",
        ", ".join(written),
        HOLDS if all(right) else FAILS,
    )


def simple_below_multigram(runs: Sequence[Run]) -> Claim:
    """Heads with simple algorithms end below multigram heads."""
    claim = "at the end, heads of simple algorithms have lower wrLLC than multigram heads"
    criterion = "mean difference < 0, p < 0.05 by permuting roles within each seed"
    labelled = [
        [(run.last(h, run.base)[0], role in SIMPLE) for h, role in run.roles.items() if role in (*SIMPLE, "multigram")]
        for run in runs
    ]
    tested = [np.array(pairs) for pairs in labelled if {simple for _, simple in pairs} == {True, False}]
    if not tested:
        return Claim(claim, criterion, "no seed has heads of both kinds", UNTESTED)

    def difference(values: np.ndarray, simple: np.ndarray) -> float:
        return values[simple == 1].mean() - values[simple == 0].mean()

    observed, p = permuted(tested, difference, lower=True)
    means = [[pairs[pairs[:, 1] == kind, 0].mean() for kind in (1, 0)] for pairs in tested]
    written = ", ".join(f"{simple:.2f} against {multigram:.2f}" for simple, multigram in means)
    return Claim(
        claim,
        criterion,
        f"means {written}; difference {observed:.2f}, p = {p:.3f}",
        HOLDS if observed < 0 and p < 0.05 else FAILS,
    )


def memory(runs: Sequence[Run]) -> Claim:
    """Final wrLLC goes with the number of memorised multigrams."""
    claim = "final wrLLC correlates with the number of memorised multigrams"
    criterion = "mean Spearman correlation over heads > 0, p < 0.05 by permuting heads within each seed"
    tested = [np.array([(run.last(h, run.base)[0], run.memorised[h]) for h in run.roles]) for run in runs]
    tested = [pairs for pairs in tested if len(set(pairs[:, 1])) > 1]
    if not tested:
        return Claim(claim, criterion, "no head has memorised more than another", UNTESTED)
    observed, p = permuted(tested, rank_correlation)
    each = ", ".join(f"{rank_correlation(*pairs.T):.2f}" for pairs in tested)
    return Claim(claim, criterion, f"ρ = {each}; mean {observed:.2f}, p = {p:.3f}", _positive(observed, p))


def clusters_are_roles(runs: Sequence[Run]) -> Claim:
    """Clusters of the curves, each layer apart, agree with the roles."""
    claim = "clustering the wrLLC curves recovers the roles"
    criterion = "mean adjusted Rand index over layers and seeds > 0, p < 0.05 by permuting roles within layers"
    tested, names = [], []
    for k, run in enumerate(runs):
        for group in dict.fromkeys(run.clusters.groups):
            mine = [i for i, g in enumerate(run.clusters.groups) if g == group]
            roles = [run.roles[run.clusters.names[i]] for i in mine]
            if len(set(roles)) > 1:
                codes = np.unique(roles, return_inverse=True)[1]
                tested.append(np.column_stack([run.clusters.labels[mine], codes]))
                names.append(f"seed {k} {group}")
    if not tested:
        return Claim(claim, criterion, "in each layer all heads have one role", UNTESTED)
    observed, p = permuted(tested, adjusted_rand_index)
    each = ", ".join(f"{name} {adjusted_rand_index(*pairs.T):.2f}" for name, pairs in zip(names, tested, strict=True))
    return Claim(claim, criterion, f"{each}; mean {observed:.2f}, p = {p:.3f}", _positive(observed, p))


# %% Other data
def on_code(runs: Sequence[Run]) -> Claim:
    """On code, induction heads have a larger λ̂ than on all data, multigram heads a smaller one."""
    claim = f"on {runs[0].code}, λ̂ of induction heads is larger than on {runs[0].base}, and of multigram heads smaller"
    criterion = "mean difference of each kind of head has that sign, by more than 2 of its standard errors over heads"
    rises: dict[str, list[float]] = {"induction": [], "multigram": []}
    for run in runs:
        for role, found in rises.items():
            found += [run.last(h, run.code)[0] - run.last(h, run.base)[0] for h in run.having(role)]
    missing = [role for role, found in rises.items() if not found]
    if missing:
        return Claim(claim, criterion, f"no {' and no '.join(missing)} heads", UNTESTED)
    (up, up_error), (down, down_error) = (mean_and_error(found) for found in rises.values())
    counts = [f"{sum(d > 0 for d in found)} of {len(found)} {role} heads above" for role, found in rises.items()]
    return Claim(
        claim,
        criterion,
        f"induction {up:+.2f} ± {up_error:.2f}, multigram {down:+.2f} ± {down_error:.2f}; {', '.join(counts)}",
        HOLDS if up > 2 * up_error and down < -2 * down_error else FAILS,
    )


def against_one_layer(runs: Sequence[Run]) -> Claim:
    """While the induction circuit forms, against ℓ = L1 layer-0 multigram heads fall and layer-1 ones rise."""
    claim = "against ℓ = L1, layer-0 multigram heads fall and layer-1 ones rise while the induction circuit forms"
    criterion = "mean change over that window has these signs, by more than 2 of its standard errors over heads"
    changes: dict[int, list[float]] = {0: [], 1: []}
    windows = []
    for run in runs:
        begin, end = forming(run)
        if begin == end:
            continue
        windows.append(f"{run.heads.steps[begin]}–{run.heads.steps[end]}")
        for layer, found in changes.items():
            curves = [run.curve(h, run.base, run.distilled)[0] for h in run.having("multigram", layer=layer)]
            found += [curve[end] - curve[begin] for curve in curves]
    if not all(changes.values()):
        why = "no circuit forms" if not windows else "a layer has no multigram heads"
        return Claim(claim, criterion, why, UNTESTED)
    (fall, fall_error), (rise, rise_error) = (mean_and_error(found) for found in changes.values())
    return Claim(
        claim,
        criterion,
        f"steps {', '.join(windows)}: layer 0 {fall:+.2f} ± {fall_error:.2f}, layer 1 {rise:+.2f} ± {rise_error:.2f}",
        HOLDS if fall < -2 * fall_error and rise > 2 * rise_error else FAILS,
    )


def stages_show(runs: Sequence[Run]) -> Claim:
    """The LLC of the whole model turns where stages of training meet."""
    written = []
    for run in runs:
        turns = ", ".join(f"{t.step:.0f} [{t.low:.0f}, {t.high:.0f}]" for t in run.stages.turns) or "none"
        begin, end = (run.heads.steps[k] for k in forming(run))
        written.append(f"turns at {turns}; circuit forms {begin}–{end}" if begin != end else f"turns at {turns}")
    return Claim(
        "the full-model LLC shows the stages of training",
        "in every seed it turns at least once with probability ≥ 0.9",
        "; ".join(written),
        HOLDS if all(run.stages.turns for run in runs) else FAILS,
    )


def multigram_circuit(runs: Sequence[Run]) -> Claim:
    """Multigram heads of both layers together are what complex multigrams need, more than simple ones."""
    claim = "multigram heads form a circuit for complex multigrams"
    criterion = (
        "in every seed with such heads, ablating them together costs complex multigrams more than 95 % of random sets of "
        "their size do, and more than it costs simple ones"
    )
    found, right = [], []
    for run in runs:
        if run.circuit is None or "complex" not in run.circuit.masks:
            continue
        cost = dict(zip(run.circuit.masks, run.circuit.loss[0], strict=True))
        p = run.circuit.p_value("complex")
        simple = f" (simple +{cost['simple']:.2f})" if "simple" in cost else ""
        found.append(f"{len(run.circuit.sets[0])} heads: complex {cost['complex']:+.2f} nats{simple}, p = {p:.2f}")
        right.append(p <= 0.05 and cost["complex"] > cost.get("simple", -np.inf))
    if not found:
        return Claim(claim, criterion, "no seed has multigram heads and complex multigrams to test", UNTESTED)
    return Claim(claim, criterion, "; ".join(found), HOLDS if all(right) else FAILS)


# %% Numbers
def forming(run: Run) -> tuple[int, int]:
    """Checkpoints between which the induction circuit forms.

    From the first at which the best previous-token score has come a quarter of its way, to the first at which the best
    prefix-matching score has come three quarters of its own. Equal where no head comes to 0.3.
    """
    previous, matching = (
        np.max(list(run.scores[name].values()), axis=0) for name in ("previous_token", "prefix_matching")
    )
    if matching[-1] < 0.3:
        return 0, 0
    begin, end = (
        int(np.argmax(curve >= curve[0] + share * (curve[-1] - curve[0])))
        for curve, share in ((previous, 0.25), (matching, 0.75))
    )
    return min(begin, end), end


def spread(values: np.ndarray, errors: np.ndarray) -> float:
    """Standard deviation over heads, without what the errors of the values add to it."""
    return float(np.sqrt(max(values.var(ddof=1) - (errors**2).mean(), 0.0)))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; infinite with one value, which shows nothing."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, with mean ranks for ties."""
    from scipy.stats import rankdata

    x, y = rankdata(x), rankdata(y)
    spreads = x.std() * y.std()
    return float(((x - x.mean()) * (y - y.mean())).mean() / spreads) if spreads else 0.0


def adjusted_rand_index(labels: np.ndarray, roles: np.ndarray) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(roles, labels))


def permuted(
    tables: Sequence[np.ndarray], statistic: Callable[..., float], *, lower: bool = False, count: int = 2000
) -> tuple[float, float]:
    """Mean of a statistic of two columns over tables, and its p value when the second is permuted within each.

    The p value counts the arrangement seen as one of those possible: (1 + #)/(1 + count).
    """
    stream = np.random.default_rng(0)

    def mean(shuffle: bool) -> float:
        seconds = [stream.permutation(t[:, 1]) if shuffle else t[:, 1] for t in tables]
        return float(np.mean([statistic(t[:, 0], second) for t, second in zip(tables, seconds, strict=True)]))

    observed, others = mean(False), np.array([mean(True) for _ in range(count)])
    as_far = others <= observed + 1e-9 if lower else others >= observed - 1e-9
    return observed, float((1 + as_far.sum()) / (1 + count))


def _positive(observed: float, p: float) -> str:
    return HOLDS if observed > 0 and p < 0.05 else FAILS
