"""Imports point one way: no module knows more than the design lets it know, and ``import rllc``
stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import tiny_model

PACKAGE = Path(__file__).parents[1] / "rllc"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "conftest.py"  # for examples in docstrings
}
SAMPLING = {
    "samplers",
    "sampling",
    "observables",
    "engine",
    "statistics",
    "estimates",
    "calibration",
    "covariances",
    "limits",
    "sweep",
}
"""Parts of rllc that know that there is sampling."""
HEAVY = {
    "transformers",
    "datasets",
    "matplotlib",
    "pandas",
    "tokenizers",
    "scipy",
    "sklearn",
    "tslearn",
    "arviz",
    "xarray",
    "distributed",
}
HEAVY_FOR_DATA = {"transformers", "datasets", "tokenizers", "fsspec", "zstandard"}
NUMBERS = {"torch", "numpy"}
LEAVES = {
    "arguments",
    "errors",
    "limits",
    "seeds",
    "storage.files",
    "storage.same",
    "tables",
    "wrappers",
}


def imports(module: str, *, typing: bool = False, lazy: bool = True) -> Iterator[str]:
    """Dotted names that a module imports; those for type checkers, and those inside functions, on
    request."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if (
                isinstance(child, ast.If)
                and ast.unparse(child.test) == "TYPE_CHECKING"
                and not typing
            ):
                continue
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
                continue
            yield child
            yield from walk(child)

    for node in walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def known(module: str, **options: bool) -> set[str]:
    """Modules of rllc that a module imports, without the leading ``rllc.``; a package also by its
    own name."""
    found = {
        name.removeprefix("rllc.")
        for name in imports(module, **options)
        if name.split(".")[0] == "rllc"
    }
    return {name for name in found if name != "rllc"}


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def outside(module: str, **options: bool) -> set[str]:
    names = tops(set(imports(module, **options)))
    return {name for name in names if name != "rllc" and name not in sys.stdlib_module_names}


def under(prefix: str) -> list[str]:
    return [m for m in MODULES if m == f"rllc.{prefix}" or m.startswith(f"rllc.{prefix}.")]


def test_the_walk_sees_imports() -> None:
    assert "estimates.estimate" in known("rllc.sweep.trajectory")
    assert "torch" in outside("rllc.engine.layout")
    assert "pandas" not in outside("rllc.sampling.draws", lazy=False)
    assert "pandas" in outside("rllc.sampling.draws")


NUMBERS_ONLY = [
    "weights.selection",
    "weights.subspace",
    "engine.layout",
    "samplers",
    "sampling.draws",
    "statistics",
]


@pytest.mark.parametrize("name", NUMBERS_ONLY)
def test_these_know_only_numbers(name: str) -> None:
    for module in under(name):
        assert outside(module, lazy=False) <= NUMBERS, module
        own = {m.removeprefix("rllc.") for m in under(name)}
        allowed = own | LEAVES | {"weights.names"}
        if name.startswith("weights"):
            parts = {"description", "indices", "resolving", "selection"}
            allowed |= {"anatomy", "engine.layout"} | {f"weights.{part}" for part in parts}
        assert known(module) <= allowed, module


def test_an_anatomy_knows_modules_and_no_selection() -> None:
    for module in under("anatomy"):
        own = {m.removeprefix("rllc.") for m in under("anatomy")}
        assert known(module) <= own | LEAVES | {"engine.modes", "tables"}, module
        assert outside(module) <= NUMBERS, module


def test_errors_seeds_names_and_files_know_nothing() -> None:
    assert known("rllc.errors") == set()
    assert known("rllc.seeds") == set()
    assert known("rllc.threads") == set()
    assert known("rllc.storage.npz") <= {"errors"}
    assert known("rllc.storage.files") <= {"errors", "storage.npz"}
    assert known("rllc.weights.names") <= {"errors"}
    assert known("rllc.weights.indices") <= {"errors"}
    assert known("rllc.wrappers") <= {"errors"}
    assert known("rllc.arguments") <= {"errors"}
    assert known("rllc.storage.same") == set()
    assert known("rllc.tables") == set()
    assert outside("rllc.errors") == set()


def test_theory_is_arithmetic() -> None:
    for module in under("theory"):
        assert tops(known(module)) <= LEAVES | {"theory"}, module
        assert outside(module) <= {"numpy"}, module


@pytest.mark.parametrize("name", ["models", "data"])
def test_models_and_data_do_not_know_that_sampling_exists(name: str) -> None:
    other = {"models": "data", "data": "models"}[name]
    for module in under(name):
        assert not tops(known(module, typing=True)) & (
            SAMPLING - {"engine"} | {"plots", "analysis", "training", "testing", other}
        ), module


def test_the_loss_does_not_know_how_it_is_sampled() -> None:
    assert not tops(known("rllc.losses.contract")) & (
        SAMPLING - {"engine"} | {"data", "models", "weights", "plots"}
    )


def test_the_engine_does_not_know_models_or_results() -> None:
    for module in under("sampling") + under("weights.refinement"):
        assert not tops(known(module)) & {
            "models",
            "estimates",
            "sweep",
            "plots",
            "analysis",
            "training",
        }, module


def test_nothing_imports_what_only_looks_at_results() -> None:
    for module in MODULES:
        here = module.removeprefix("rllc.").split(".")[0]
        if module not in ("rllc", "rllc.sweep.report") and here not in ("analysis", "plots"):
            names = known(module)
            assert not (tops(names) - {here}) & {"analysis", "plots", "testing"}, module
            assert "sweep.report" not in names, module


def test_no_two_modules_import_each_other() -> None:
    """Following imports at module level never leads back."""
    after = {
        m: {f"rllc.{k}" for k in known(m, lazy=False)} & set(MODULES)
        for m in MODULES
        if m != "rllc"
    }
    path: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module in done:
            return
        path.append(module)
        for other in sorted(after.get(module, ())):
            # a package imports its files to name them, and they its name when they import one
            # another
            if not module.startswith(other + "."):
                visit(other)
        path.pop()
        done.add(module)

    for module in after:
        visit(module)


def test_imports_and_a_listing_are_light_and_make_no_noise(tmp_path: Path) -> None:
    """``import rllc``, then ``import rllc.data``, then a listing of checkpoints, in one process."""
    tiny_model().save_pretrained(tmp_path / "step0000000")
    code = f"""
import sys, rllc
print(sorted({HEAVY!r} & set(sys.modules)))
import rllc.data
print(sorted({HEAVY_FOR_DATA!r} & set(sys.modules)))
print(len(rllc.checkpoints({str(tmp_path)!r})), "transformers" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.splitlines() == ["[]", "[]", "1 False"]
    assert done.stderr == ""


def test_public_names_are_there_and_documented() -> None:
    import rllc

    names = [name for name in dir(rllc) if not name.startswith("_")]
    for name in names:
        if callable(getattr(rllc, name)):
            assert getattr(rllc, name).__doc__, name
    expected = """
        estimate sample iterate track load checkpoints everything layer head heads parameters
        masks sgld
        Sampling Compute Estimate Draws Trajectory Tracker Tokens Weights plot_heads
        plot_traces plot_trajectory Observable Limits Sweep
        data models
    """
    assert set(expected.split()) <= set(names)
    doors = [name for name in rllc.__all__ if isinstance(getattr(rllc, name), type(rllc))]
    assert len(rllc.__all__) - len(doors) <= 53
    assert "distillation" in rllc.losses.__all__
