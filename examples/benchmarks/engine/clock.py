"""(b) The wall clock, beside devinterp in alternation."""

import argparse
import statistics
from functools import partial
from typing import Any

import rllc

from .tables import multiplies_bfloat16, table
from .work import (
    CHAINS,
    SIZES,
    one_of_each_layer,
    ours,
    paper_model,
    random_tokens,
    their_seconds,
    timed,
)


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds of a run's step, by size and library."""
    model = paper_model()
    results = {}
    rows = []
    for size, (context, batch) in SIZES.items():
        results[size] = alternate(model, context, batch, args.rounds)
        of_devinterp = statistics.median(results[size]["devinterp"])
        for library, seconds in results[size].items():
            median = statistics.median(seconds)
            rows.append(
                [
                    size,
                    library,
                    f"{1e3 * median:.1f}",
                    f"{1e3 * min(seconds):.1f}–{1e3 * max(seconds):.1f}",
                    f"{batch * context / median:,.0f}",
                    f"{of_devinterp / median:.2f}",
                ]
            )
    columns = ["context × batch", "", "ms, median", "range", "tokens/s", "× devinterp"]
    title = (
        f"(b) Wall clock of a run's step, {args.rounds} alternations, {args.threads} threads each"
    )
    table(title, columns, rows)
    print(
        f"    Same numbers as run by run through any-module evaluation: {equality(model):.1e} "
        "in λ̂, the largest difference."
    )
    return results


def alternate(model: Any, context: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a run's step, of rllc in each precision and of devinterp, round by round."""
    num_runs = CHAINS * len(rllc.heads(model))
    tokens = random_tokens(model, context)
    iterators = {"float32": ours(model, tokens, batch)}
    if multiplies_bfloat16():
        iterators["bfloat16"] = ours(model, tokens, batch, autocast="bfloat16")
    seconds: dict[str, list[float]] = {name: [] for name in [*iterators, "devinterp"]}
    for _ in range(rounds):
        for name, steps in iterators.items():
            of_all_runs = timed(partial(next, steps))
            seconds[name].append(of_all_runs / num_runs)
        of_layers = [
            statistics.median(their_seconds(model, tokens, batch, weights, steps=3))
            for weights in one_of_each_layer(model)
        ]
        seconds["devinterp"].append(statistics.mean(of_layers))
    return seconds


def equality(model: Any) -> float:
    """The largest difference in λ̂ of a draw between the engine and one run after another."""
    tokens = random_tokens(model, 64, rows=8)
    sampling = rllc.Sampling(num_chains=2, num_draws=5, batch_size=4, control_variate=False)

    def plain(module: Any, rows: Any) -> Any:
        """The same loss, in a form for which the engine has nothing special."""
        return rllc.next_token(module, rows)

    def llc(loss: Any) -> Any:
        draws = rllc.sample(
            model,
            tokens,
            ["0:1", "1:6"],
            loss=loss,
            sampling=sampling,
            compute=rllc.Compute(progress=False),
        )
        return draws.llc

    return float(abs(llc(None) - llc(plain)).max())
