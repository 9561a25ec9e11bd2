"""The whole pipeline, in the order of its stages."""

import time
from collections.abc import Mapping

import matplotlib

import rllc

from .claims import Claim, all_claims
from .collect import collect, results_of, share_flagged
from .cost import print_cost
from .data import Data, read_data
from .figures import draw_all
from .page import write_page
from .results import Run
from .settings import Settings, read_settings
from .sweep import plans, track
from .train import train


def main(argv: list[str] | None = None, description: str | None = None) -> list[Claim]:
    """Run the pipeline with these options; returns the claims."""
    matplotlib.use("Agg")
    begin = time.perf_counter()
    settings = read_settings(argv, description)
    settings.out.mkdir(parents=True, exist_ok=True)
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    data = read_data(settings, seeds)
    if settings.cost:
        print_cost(settings, data)
        return []
    train(settings, data)
    print(f"trained ({time.perf_counter() - begin:.0f} s so far)", flush=True)
    sweep_all(settings, data)
    print(f"sampled ({time.perf_counter() - begin:.0f} s so far)", flush=True)

    runs = []
    notes = []
    for seed in seeds:
        run = collect(settings, seed, data[seed])
        run.save(results_of(settings, seed))
        runs.append(run)
        notes += flagged(run)
        roles = [f"{head} {role}" for head, role in run.roles.items()]
        print(f"{run.name}: {', '.join(roles)}", flush=True)

    claims = all_claims(runs)
    figures = draw_all(runs, claims, settings.out / "figures")
    page = write_page(settings, claims, notes, figures)
    print("", *notes, sep="\n")
    for claim in claims:
        print(f"\n{claim.verdict.upper()}: {claim.claim}")
        if claim.effect is not None:
            low, high = claim.effect.interval
            print(f"    {claim.effect.value:+.2f} ({low:+.2f} … {high:+.2f}): {claim.scale}")
        print(f"    {claim.detail}")
    print(f"\n{time.perf_counter() - begin:.0f} s; all on one page: {page}")
    return claims


def sweep_all(settings: Settings, data: Mapping[int, Data]) -> None:
    """All sweeps of all seeds, those first that most claims need."""
    names = [plan.name for plan in plans(settings, next(iter(data.values())))]
    for name in names:
        for seed, of_seed in data.items():
            plan = next(plan for plan in plans(settings, of_seed) if plan.name == name)
            trajectory = track(settings, seed, plan)
            folder = settings.folder(seed)
            trajectory.to_dataframe().to_csv(folder / f"{name}.csv", index=False)
            rllc.report(folder / f"sweep-{name}", folder / f"sweep-{name}.html")


def flagged(run: Run) -> list[str]:
    """How many estimates of each sweep are flagged."""
    notes = []
    for name, trajectory in run.llc.items():
        share = share_flagged(trajectory)
        notes.append(f"{run.name}: {share:.0%} of the estimates of {name!r} are flagged")
    return notes
