"""Wheel and sdist hold what they should, and a wheel works without the source tree beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from test_examples import check_products

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    result = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", str(folder), cwd=ROOT)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "rllc/py.typed" in names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "rllc").rglob("*.py")}
    assert sources <= set(names)
    others = {name.split("/")[0] for name in names}
    assert {name for name in others if not name.endswith(".dist-info")} == {"rllc"}


@pytest.mark.slow
def test_the_sdist_holds_what_its_tests_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for needed in ("pyproject.toml", "README.md", "LICENSE", "examples/quickstart.py"):
        assert needed in names
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    assert tests <= names


@pytest.mark.slow
def test_a_wheel_runs_the_quickstart_without_the_source_tree(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    run(sys.executable, *install, cwd=tmp_path)
    place = run(sys.executable, "-c", "import rllc; print(rllc.__file__)", cwd=tmp_path, path=site)
    assert Path(place.strip()).is_relative_to(site)
    example = str(ROOT / "examples" / "quickstart.py")
    run(sys.executable, example, "--tiny", "--quiet", cwd=tmp_path, path=site)
    check_products(tmp_path / "rllc-out" / "quickstart", ["code", "prose"])
