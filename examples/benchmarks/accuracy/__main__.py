"""How right the estimates are: every problem with an exact truth, beside devinterp 2.0.1.

    python -m examples.benchmarks.accuracy      # one CPU core, below 10 minutes

Run it in the folder of the repository; it needs scipy and devinterp==2.0.1. It prints a table; the
folder of ``--out`` gets it as ``accuracy.md`` and ``accuracy.csv``. Then it says what of it holds.
One row a problem, sampler and library: truth, estimate, standard error, z = (estimate −
truth)/error, relative error, and seconds of CPU time. Batches are full, so chains have no
minibatches in common, and errors are ``rllc.statistics.diagnostics.mcse``.

Two kinds of truth
------------------
``law``: what λ̂ is at these very settings. For quadratics and for single layers of linear networks
it is :class:`rllc.theory.SGLDLaw`, step size and start included (rmsprop_sgld: with the scales that
its chains came to hold; the samplers without an error of the step size: at ε → 0). For normal
crossings in a box and for reduced-rank regression around zero it is E[nβ ℓ] under
p(v) ∝ exp(−nβ ℓ) × prior, by quadrature: exact for mala and hmc, whereas the others add an error of
their step size, which nobody knows in closed form off quadratics and which is kept small here.
Judged by z.

``λ``: the learning coefficient, which no finite nβ has. λ̂ is then taken at three or four nβ and
extrapolated: log Z has the leading term −λ log nβ + (m − 1) log log nβ, so that

- multiplicity m = 1: λ̂(nβ) = λ + b nβ^−p, the next pole being a power away; λ, b and p are fitted;
- m > 1: λ̂(nβ) = λ − (m − 1)/(log nβ + c); λ and c are fitted. Where that does not fit (χ² beyond
  1e-3: the asymptotic regime is not reached), the first form is used.

The fit is told m, not λ. Its error covers noise, not the form. Problems whose minimum is regular
need no extrapolation: one large nβ, and a localization that is weak against it. Judged by the
relative error.

Some problems are many independent copies in one module, whose losses and so λs add; all numbers are
for one copy. Copies make a chain worth many, for every library.

What devinterp is given
-----------------------
The same module, data, nβ, localization or box, and the lr of the sgld and rmsprop_sgld rows beside
it; full batches, so that taking its baseline from other batches costs it nothing; 4 chains, its
default, of 500 steps (its default is 200), 1000 on the small quadratic and for the head, 300 on
each single layer, 50 where a step takes long. That is about as much CPU time as rllc's sgld takes
(a ladder takes several times as much), but fewer draws, as its chains run one after another. The
value is that of its own ``llc``, which averages over all steps from w* on, burn-in included; so
where chains settle slowly most of its error is that they have not, and where rllc was given a
burn-in it has an advantage. Its truth in a law row is that of rllc's row; for its sgld that of
settled chains at this lr.

It has no box with reflecting walls: its ``bounding_box_size`` clamps. And it has nothing to
extrapolate with: a λ row of it is its value at the one nβ that the row names, chosen low enough
that its chains move within their steps.

All settings were chosen with the truths in view, as one chooses an instrument's; ``--seed 1`` is a
run they were not chosen on.
"""

import argparse
import importlib.util
import time
from pathlib import Path

import torch

from .estimates import Settings
from .rows import COLUMNS, Row, line, verdict, write
from .zoo import PARTS


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("rllc-out/accuracy"), help="output folder")
    parser.add_argument(
        "--parts",
        default="".join(PARTS),
        help="of: quadratics, crossings, reduced rank, places, layers, networks, attention",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--without-devinterp", action="store_true", help="rllc's rows only")
    parser.add_argument(
        "--tiny", action="store_true", help="a fiftieth of the draws, to see that it runs"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Row]:
    """Run the parts that are asked for; print and write their rows."""
    args = arguments(argv)
    begin = time.perf_counter()
    torch.set_num_threads(1)  # small matrices: a second thread slows them down
    if not args.without_devinterp and importlib.util.find_spec("devinterp") is None:
        raise SystemExit(
            "comparing with devinterp: it is not installed; type: pip install devinterp==2.0.1, "
            "or --without-devinterp"
        )
    settings = Settings(args.seed, args.tiny, with_devinterp=not args.without_devinterp)
    rows = []
    print(line(COLUMNS))
    for letter in args.parts:
        for row in PARTS[letter](settings):
            rows.append(row)
            print(line(row.cells), flush=True)
    words = verdict(rows)
    print(f"\n{words}\n{time.perf_counter() - begin:.0f} s in all")
    write(rows, words, args.out)
    return rows


if __name__ == "__main__":
    main()
