"""Plans: names of cells, how two plans differ, which cells cover what."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

import rllc.storage.identity
import rllc.sweep.plan
from rllc.models.checkpoints import Checkpoint
from rllc.storage.identity import measurement
from rllc.sweep.identity import checkpoint_digest
from rllc.sweep.plan import Cell, Plan, cell_name, covering, differences

WHERE = {
    "step": 10,
    "source": "/runs/a",
    "revision": None,
    "file": "step0000010",
    "sha256": "c" * 64,
}
PLAN = Plan(
    settings={"lr": 1e-3, "n_beta": 30.0},
    num_draws=5,
    num_chains=4,
    loss="next token",
    checkpoints={10: WHERE},
    data={"code": "d" * 64},
    weights={"0:0": "e" * 64, "0:1": "f" * 64},
    cells=(Cell("n" * 32, 10, "code", ("0:0", "0:1"), (0, 4)),),
    versions={"rllc": "1"},
)


def with_settings(**changes: object) -> Plan:
    return replace(PLAN, settings=PLAN.settings | changes)


def at(**changes: object) -> dict[str, object]:
    """Where a checkpoint is, with changes."""
    return WHERE | changes


def test_a_plan_comes_back_from_its_text() -> None:
    again = Plan.of(PLAN.text())
    assert again.text() == PLAN.text()
    assert again.cells == PLAN.cells
    assert again.checkpoints == PLAN.checkpoints
    with pytest.raises(ValueError, match="of another kind"):
        Plan.of('{"kind": "rllc.Draws"}')


def name(plan=PLAN, where=WHERE, weights=("0:0",), chains=(0, 4)) -> str:
    return cell_name(plan, where, "code", weights, chains)


def names_of_other_cells() -> list[str]:
    """Names of cells that differ in one thing that can change their numbers."""
    return [
        name(),
        name(where=at(sha256="0" * 64)),
        name(where=at(step=11)),
        name(where=at(sha256=None)),
        name(where=at(sha256=None, source="/moved")),
        name(with_settings(lr=2e-3)),
        name(replace(PLAN, num_draws=6)),
        name(replace(PLAN, loss="other")),
        name(replace(PLAN, identity={"loss": "other"})),
        name(replace(PLAN, identity={"sampler": "other"})),
        name(replace(PLAN, data={"code": "0" * 64})),
        name(replace(PLAN, weights=PLAN.weights | {"0:0": "0" * 64})),
        name(weights=("0:1",)),
        name(weights=("0:0", "0:1")),
        name(weights=("0:1", "0:0")),
        name(chains=(0, 2)),
        name(chains=(4, 8)),
    ]


def test_a_cell_is_named_by_all_that_its_numbers_depend_on_and_nothing_else() -> None:
    same = [
        name(),
        name(where=at(source="/moved")),
        name(replace(PLAN, num_chains=8)),  # its own are in `chains`
        name(replace(PLAN, versions={"rllc": "2"})),
        name(replace(PLAN, cells=())),
    ]
    assert len(set(same)) == 1
    other = names_of_other_cells()
    assert len(set(other)) == len(other)


@pytest.mark.parametrize("part", ["model", "loss", "sampler", "settings", "data", "weights"])
def test_a_name_without_one_part_of_the_measurement_would_be_found(part: str, monkeypatch) -> None:
    def without(**parts: object) -> dict[str, object]:
        key = measurement(**parts)
        del key[part]
        return key

    monkeypatch.setattr(rllc.sweep.plan, "measurement", without)
    other = names_of_other_cells()
    assert len(set(other)) < len(other)


def test_another_version_of_the_numbers_is_another_cell(monkeypatch) -> None:
    before = name()
    monkeypatch.setattr(rllc.storage.identity, "NUMERICS", rllc.storage.identity.NUMERICS + 1)
    assert name() != before


@pytest.mark.parametrize(
    ("sentence", "changed"),
    [
        ("lr: 0.001 there, 0.002 now", with_settings(lr=2e-3)),
        ("momentum: None there, 1 now", with_settings(momentum=1)),
        ("loss: 'next token' there, 'm:f' now", replace(PLAN, loss="m:f")),
        (
            "checkpoint of step 10, SHA-256: cccccccc… there, 00000000… now",
            replace(PLAN, checkpoints={10: at(sha256="0" * 64)}),
        ),
        (
            "data 'code', SHA-256: dddddddd… there, 00000000… now",
            replace(PLAN, data={"code": "0" * 64}),
        ),
        (
            "weights '0:1', SHA-256: ffffffff… there, 00000000… now",
            replace(PLAN, weights={"0:1": "0" * 64}),
        ),
        ("num_draws: 5 there, 4 now (it can only grow)", replace(PLAN, num_draws=4)),
        ("num_chains: 4 there, 2 now (it can only grow)", replace(PLAN, num_chains=2)),
    ],
)
def test_differences_are_named(sentence: str, changed: Plan) -> None:
    assert differences([PLAN], changed) == [sentence]


def test_revisions_are_compared_where_contents_are_not_known() -> None:
    main, branch = (
        replace(PLAN, checkpoints={10: at(sha256=None, revision=revision)})
        for revision in ("step10", "b")
    )
    (sentence,) = differences([main], branch)
    assert sentence == "checkpoint of step 10, revision: 'step10' there, 'b' now"


def test_growing_going_back_and_moving_are_no_differences() -> None:
    more = replace(
        PLAN,
        num_draws=6,
        num_chains=8,
        checkpoints={20: at(step=20, sha256="0" * 64)},
        data={"prose": "0" * 64},
        weights={"1:0": "0" * 64},
    )
    assert differences([PLAN], more) == []
    assert differences([PLAN, more], PLAN) == []
    moved = replace(PLAN, checkpoints={10: at(source="/moved")})
    assert differences([PLAN], moved) == []


def reachable_chains(cells, num_rounds: int) -> set[int]:
    """Where one can get to from chain 0, cell after cell."""
    reached = {0}
    for _ in range(num_rounds):
        for cell in cells:
            if any(cell.chains[0] <= chain < cell.chains[1] for chain in reached):
                reached.add(cell.chains[1])
    return reached


def test_covering_is_found_whenever_there_is_one() -> None:
    """Against all subsets of six cells: a chain of cells from 0 to 8 without a gap."""
    blocks = [(0, 4), (0, 2), (2, 4), (4, 8), (2, 8), (6, 8)]
    every = [Cell(str(block), 0, "d", ("w",), block) for block in blocks]
    for size in range(7):
        for subset in itertools.combinations(every, size):
            chosen = covering(subset, 8)
            assert (chosen is not None) == (8 in reachable_chains(subset, 6))
            if chosen:
                chains = {chain for cell in chosen for chain in range(*cell.chains)}
                assert chains == set(range(8))
    # No chains beyond those asked for.
    assert [cell.name for cell in covering(every, 4)] == ["(0, 4)"]


# What a state dict is loaded into.


class Scaled(torch.nn.Module):
    """A linear map times a constant that is no weight."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = torch.nn.Linear(2, 1), scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.linear(x)


def test_a_module_is_known_by_all_but_the_weights_that_are_replaced() -> None:
    state = Scaled(1.0).state_dict()

    def of(**changes: object) -> str:
        return checkpoint_digest(Checkpoint(0, "memory", weights=state, **changes))

    assert of(into=Scaled(1.0)) == of(into=Scaled(1.0))
    assert of(into=Scaled(1.0)) != of(into=Scaled(2.0))
    assert of(into=Scaled(1.0)) != of()
    assert of(into=lambda: Scaled(1.0)) != of(into=lambda: Scaled(2.0))
    assert of(positions="standard") != of(positions="shortformer")
    same, other = Scaled(1.0), Scaled(1.0)
    other.load_state_dict(same.state_dict())
    modules = [Checkpoint(0, "memory", weights=module) for module in (same, other)]
    assert checkpoint_digest(modules[0]) == checkpoint_digest(modules[1])
    other.scale = 3.0
    assert checkpoint_digest(modules[0]) != checkpoint_digest(modules[1])
