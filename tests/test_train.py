"""Training: against a slow loop, through faults and resumes to the bit, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import rllc
from rllc.data import Minibatches, Tokens
from rllc.errors import FileError, InputError, RllcError
from rllc.models import AttentionOnlyConfig
from rllc.storage.files import load_arrays
from rllc.training import Training, schedule, train
from rllc.training.optimisers import Muon, orthogonalise

CONFIG = AttentionOnlyConfig(n_layers=2, d_model=8, n_heads=2, d_head=4, n_ctx=8, d_vocab=12)
TOKENS = Tokens(torch.randint(0, 12, (20, 7), generator=torch.Generator().manual_seed(0)), "toy")
SETTINGS: dict[str, Any] = {"num_steps": 12, "batch_size": 6, "lr": 1e-2}
STEPS = (0, 3, 4, 10, 12)
ARGUMENTS = ("seed", "resume", "device", "progress")
"""Of ``train``; all others are settings of ``Training``."""


def run(
    out: Path | None = None, config: Any = CONFIG, tokens: Any = TOKENS, **settings: Any
) -> Any:
    arguments = {name: settings.pop(name) for name in ARGUMENTS if name in settings}
    checkpoints = "paper" if "num_steps" in settings else STEPS
    training = Training(**SETTINGS | {"checkpoints": checkpoints} | settings)
    return train(config, tokens, out, training=training, **{"progress": False} | arguments)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def contents(folder: Path) -> dict[str, bytes]:
    """Checkpoints and losses: all that two runs must have in common."""
    files = sorted(path for path in folder.glob("step*/*") if path.is_file())
    losses = np.load(folder / "losses.npz")["loss"].tobytes()
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files} | {
        "losses": losses
    }


# The schedule.


def test_schedule_is_the_papers():
    paper = [0, 100, *range(200, 10001, 200), *range(10400, 20001, 400), *range(21000, 50001, 1000)]
    assert list(schedule(50_000)) == paper
    assert len(paper) == 107
    assert list(schedule(100_000)) == [2 * step for step in paper]


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100, 1500, 49_999])
def test_schedule_scales(num_steps):
    steps = schedule(num_steps)
    assert (steps[0], steps[-1]) == (0, num_steps)
    assert all(a < b for a, b in itertools.pairwise(steps))
    exact = np.array(schedule(50_000)) * num_steps / 50_000
    assert np.abs(np.array(steps)[:, None] - exact).min(1).max() <= 0.5


@pytest.mark.parametrize("bad", [0, -3, 2.5, "ten", None])
def test_schedule_refuses(bad):
    with pytest.raises(InputError, match=r"`num_steps` must be a whole number of at least 1, got"):
        schedule(bad)


# What a run does.


def slow_training(model: torch.nn.Module, tokens: Tokens, seed: int, clip: float) -> list[float]:
    """12 steps of AdamW (Loshchilov and Hutter 2019, algorithm 2), on transformers' own loss."""
    batches = Minibatches(len(tokens), 6, seed=("train", seed))
    first = {p: torch.zeros_like(p) for p in model.parameters()}
    second = {p: torch.zeros_like(p) for p in model.parameters()}
    losses = []
    for t in range(12):
        ids = tokens.rows[batches[t]].long()
        logits = model(input_ids=ids).logits
        loss = F.nll_loss(logits[:, :-1].log_softmax(-1).transpose(1, 2), ids[:, 1:])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                g = g * min(1.0, clip / (norm + 1e-6))  # as torch guards against a norm of 0
                first[p] = 0.9 * first[p] + 0.1 * g
                second[p] = 0.999 * second[p] + 0.001 * g**2
                mean = first[p] / (1 - 0.9 ** (t + 1))
                variance = second[p] / (1 - 0.999 ** (t + 1))
                p -= 1e-2 * (0.05 * p + mean / (variance.sqrt() + 1e-8))
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("clip", [1.0, 0.05])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_slow_loop(tmp_path, seed, clip):
    """In float64, where AdamW's epsilon is far above the rounding errors of zero gradients.

    In float32 it is not: AdamW makes such errors into full steps, of another sign on another
    processor.
    """
    model = run(tmp_path, seed=seed, gradient_clip=clip, dtype="float64")
    assert model.dtype == torch.float64
    slow = rllc.load(tmp_path, step=0).double()
    losses = slow_training(slow, TOKENS, seed, clip)
    assert np.load(tmp_path / "losses.npz")["loss"] == pytest.approx(losses, rel=1e-6)
    for name, tensor in weights(model).items():
        assert torch.allclose(tensor, slow.state_dict()[name], rtol=0, atol=1e-9), name


def test_loss_is_the_models_own():
    from rllc.training.run import mean_loss

    model = run()
    batch = TOKENS.rows[:5].long()
    ours = mean_loss(model, batch, None)
    theirs = model(input_ids=batch, labels=batch).loss
    parameters = list(model.parameters())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for a, b in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)


def test_learns(tmp_path):
    """Rows count upwards from a random start, so every next token is certain: the loss goes to
    0."""
    start = torch.randint(0, 12, (40, 1), generator=torch.Generator().manual_seed(1))
    run(
        tmp_path,
        tokens=Tokens((start + torch.arange(7)) % 12),
        num_steps=80,
        batch_size=20,
        lr=3e-2,
        checkpoints=(80,),
    )
    loss = np.load(tmp_path / "losses.npz")["loss"]
    assert loss.shape == (80,)
    assert loss[0] > 2.3
    assert loss[-1] < 0.1


def test_folder(tmp_path):
    model = run(tmp_path / "a" / "run")
    folder = tmp_path / "a" / "run"
    assert [checkpoint.step for checkpoint in rllc.checkpoints(folder)] == list(STEPS)
    assert same(rllc.load(folder), model)
    assert not any(module.training for module in model.modules())
    described = json.loads((folder / "training.json").read_text())
    assert described["settings"]["data"] == {
        "fingerprint": TOKENS.fingerprint,
        "rows": 20,
        "positions": 7,
    }
    assert described["settings"]["config"]["d_vocab"] == 12
    assert described["settings"]["lr"] == 1e-2
    (session,) = described["sessions"]
    assert session["schedule"] == list(STEPS)
    assert session["environment"]["torch"] == torch.__version__
    names = {path.name for path in folder.iterdir()}
    assert names == {
        ".lock",
        "training.json",
        "losses.npz",
        "resume.pt",
        *(f"step{s:07d}" for s in STEPS),
    }
    assert load_arrays(folder / "losses.npz")[0]["loss"].shape == (12,)


def test_a_flipped_byte_in_a_checkpoint_is_found_by_load(tmp_path):
    run(tmp_path)
    path = tmp_path / "step0000003" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileError, match="damaged or changed"):
        rllc.load(tmp_path, step=3)


def test_default_schedule_and_no_folder(tmp_path):
    one = run(tmp_path, num_steps=4)
    assert [checkpoint.step for checkpoint in rllc.checkpoints(tmp_path)] == [0, 1, 2, 3, 4]
    assert same(one, run(num_steps=4))


def test_seed_and_company_decide_nothing_else(tmp_path):
    torch.manual_seed(5)
    one = run()
    torch.manual_seed(6)
    assert same(one, run(tmp_path, resume_every=1))
    assert not same(one, run(seed=1))
    assert same(one, run(tokens=TOKENS.rows))


def test_globals_are_put_back():
    torch.manual_seed(3)
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    expected = torch.get_rng_state(), random.getstate(), numpy_state
    run()
    with pytest.raises(RllcError):
        run(lr=1e30)
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert random.getstate() == expected[1]
    assert np.array_equal(np.random.get_state()[1], expected[2])  # noqa: NPY002
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        run()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_two_threads_give_the_same_bits_each_time(monkeypatch):
    """Several threads sum an embedding's gradient in any order, unless kernels are
    deterministic."""
    config = AttentionOnlyConfig(n_layers=1, d_model=64, n_heads=2, d_head=4, n_ctx=64, d_vocab=5)
    tokens = Tokens(torch.randint(0, 5, (64, 64), generator=torch.Generator().manual_seed(0)))
    real, deterministic = Minibatches.__getitem__, []

    def watching(self: Minibatches, t: int) -> torch.Tensor:
        deterministic.append(torch.are_deterministic_algorithms_enabled())
        return real(self, t)

    monkeypatch.setattr(Minibatches, "__getitem__", watching)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        models = [run(config=config, tokens=tokens, num_steps=2, batch_size=64) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert all(
        deterministic
    )  # on a busy machine threads seldom meet, and equal bits alone say little
    assert all(same(models[0], model) for model in models)


def test_from_a_model(tmp_path):
    start = run(num_steps=3)
    before = weights(start)
    first = run(tmp_path, config=start)
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    assert not start.training
    assert same(rllc.load(tmp_path, step=0), start)
    assert same(run(tmp_path, config=start), first)
    with pytest.raises(InputError, match=r"initial_weights: '\w+' there, '\w+' now"):
        run(tmp_path, config=first)


def test_another_architecture_with_dropout(tmp_path):
    config = GPT2Config(
        vocab_size=12,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.3,
    )
    unbroken = run(config=config)
    run(tmp_path, config=config, num_steps=4, checkpoints=())
    model = run(tmp_path, config=config)
    assert isinstance(model, GPT2LMHeadModel)
    assert same(unbroken, model)
    assert same(rllc.load(tmp_path), model)


def test_bfloat16(tmp_path):
    low, exact = run(tmp_path / "low", autocast="bfloat16"), run(tmp_path / "exact")
    assert all(parameter.dtype == torch.float32 for parameter in low.parameters())
    assert not same(low, exact)
    losses = [np.load(tmp_path / name / "losses.npz")["loss"] for name in ("low", "exact")]
    assert np.abs(losses[0] - losses[1]).max() < 0.02


def test_progress_bar(tmp_path, capsys):
    run(progress=True)
    shown = capsys.readouterr().err
    assert "training: 100%" in shown
    assert "12/12" in shown
    assert "loss=2." in shown
    run(tmp_path, progress=False)  # transformers has a bar of its own for each checkpoint
    assert capsys.readouterr().err == ""


# Optimisers and rates.


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz acts on singular values alone: s -> 3.4445 s - 4.775 s^3 + 2.0315 s^5."""
    U, s, V = torch.linalg.svd(matrix, full_matrices=False)
    s = s / (s.norm() + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return U @ s.diag() @ V


@pytest.mark.parametrize("shape", [(3, 8, 4), (3, 4, 8), (2, 5, 5)])
def test_orthogonalise_keeps_singular_vectors(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.stack([orthogonalised(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), expected, atol=1e-6, rtol=0)
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3
    # The scale of a gradient does not matter, and one of zero gives no step.
    torch.testing.assert_close(orthogonalise(1e3 * matrices), expected, atol=1e-6, rtol=0)
    assert not orthogonalise(torch.zeros(shape)).any()


def test_against_torchs_muon():
    """On square matrices, where torch's scale is 1. Its products are bfloat16: 3 decimal digits."""
    generator = torch.Generator().manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(3, 6, 6, generator=generator))
    single = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    ours = Muon([stack], lr=0.02, weight_decay=0.05)
    theirs = torch.optim.Muon(single, lr=0.02, weight_decay=0.05, momentum=0.95)
    for _ in range(4):
        stack.grad = torch.randn(stack.shape, generator=generator)
        for parameter, gradient in zip(single, stack.grad, strict=True):
            parameter.grad = gradient.clone()
        ours.step()
        theirs.step()
    difference = stack.detach() - torch.stack([parameter.detach() for parameter in single])
    # Four steps of 0.02, each entry of which is at most about 1, to 2 %.
    assert difference.abs().max() < 0.02 * 4 * 0.02


def test_muon_against_a_slow_loop(tmp_path):
    """Heads' matrices by the written-down Muon, all else by torch's AdamW; rates rise and fall."""
    settings = {"muon_lr": 0.03, "muon_weight_decay": 0.1, "weight_decay": 0.02, "dtype": "float64"}
    rates = {"warmup_steps": 4, "decay": "linear", "decay_steps": 5, "gradient_clip": 0.5}
    model = run(tmp_path, optimizer="muon", **settings, **rates)
    slow = rllc.load(tmp_path, step=0).double()
    matrices = {n: p for n, p in slow.named_parameters() if ".attn.W_" in n}
    assert len(matrices) == 2 * 4
    rest = [p for n, p in slow.named_parameters() if n not in matrices]
    adamw = torch.optim.AdamW(rest, lr=1e-2, weight_decay=0.02)
    momenta = {name: torch.zeros_like(p) for name, p in matrices.items()}
    batches = Minibatches(len(TOKENS), 6, seed=("train", 0))
    rate = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28]
    for t in range(12):
        ids = TOKENS.rows[batches[t]].long()
        slow.zero_grad()
        slow(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(slow.parameters(), 0.5)
        adamw.param_groups[0]["lr"] = 1e-2 * rate[t]
        adamw.step()
        with torch.no_grad():
            for name, p in matrices.items():
                momenta[name] = 0.95 * momenta[name] + 0.05 * p.grad
                nesterov = 0.05 * p.grad + 0.95 * momenta[name]
                for head in range(2):
                    p[head] *= 1 - 0.03 * rate[t] * 0.1
                    p[head] -= 0.03 * rate[t] * orthogonalised(nesterov[head])
    for name, tensor in weights(model).items():
        assert torch.allclose(tensor, slow.state_dict()[name], rtol=0, atol=1e-7), name


def test_muon_needs_heads():
    config = GPT2Config(vocab_size=12, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    with pytest.raises(InputError, match=r"'muon' is for parameters .* GPT2LMHeadModel has none"):
        run(config=config, optimizer="muon")


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
def test_rates(decay):
    def rate(step: int, **settings: Any) -> float:
        return Training(num_steps=100, decay=decay, **settings).rate(step)

    assert rate(0) == 1
    assert rate(0, warmup_steps=10) == pytest.approx(0.1)
    assert rate(100) == pytest.approx(1 if decay == "constant" else 0.1)
    assert rate(50) == pytest.approx(1 if decay == "constant" else 0.55)
    if decay != "constant":
        assert rate(60, decay_steps=40) == 1
        assert rate(80, decay_steps=40) == pytest.approx(0.55)
        assert rate(100, decay_steps=40) == pytest.approx(0.1)
    falls = [rate(step) for step in range(101)]
    assert all(a >= b for a, b in itertools.pairwise(falls))


def test_a_run_with_muon_and_decay_resumes(tmp_path):
    settings = {"optimizer": "muon", "warmup_steps": 3, "decay": "cosine", "checkpoints": (0, 5)}
    unbroken = run(**settings)
    real = Minibatches.__getitem__

    def stopping(self: Minibatches, t: int) -> torch.Tensor:
        if t == 8:
            raise Stop
        return real(self, t)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Minibatches, "__getitem__", stopping)
        with pytest.raises(Stop):
            run(tmp_path, **settings)
    assert rllc.checkpoints(tmp_path)[-1].step == 5
    assert same(run(tmp_path, **settings), unbroken)
    # Rates that fall depend on the length of the run, so it cannot be made longer.
    with pytest.raises(InputError, match="num_steps: 12 there, 13 now"):
        run(tmp_path, **settings, num_steps=13)


def test_fast_is_a_preset():
    training = Training.fast(num_steps=50, weight_decay=0.1)
    assert (training.optimizer, training.num_steps, training.weight_decay) == ("muon", 50, 0.1)
    assert training.checkpoint_steps() == schedule(50, "log")
    assert (training.rate(1), training.rate(50)) == (0.02, pytest.approx(0.051))
    assert Training.fast(decay="constant").rate(10**6) == 1
    assert Training() == Training(num_steps=50_000, batch_size=100, lr=1e-3, weight_decay=0.05)
    assert Training().checkpoint_steps() == schedule(50_000)


def test_log_schedule():
    steps = schedule(10_000, "log")
    assert steps[:4] == (0, 1, 2, 3)
    ratios = np.array(steps[-20:]) / np.array(steps[-21:-1])
    # Steps are rounded, by less than a hundredth here.
    assert ratios == pytest.approx(10**0.1, rel=0.02)
    assert schedule(1, "log") == (0, 1)
    with pytest.raises(InputError, match="a schedule is 'paper' or 'log', got 'linear'"):
        schedule(10, "linear")


# Resume.


class Stop(BaseException):
    """As KeyboardInterrupt: not caught by any ``except Exception``."""


def test_resume_after_a_stop(tmp_path, monkeypatch):
    run(tmp_path / "unbroken", resume_every=2)
    expected = contents(tmp_path / "unbroken")
    real = Minibatches.__getitem__
    for stop_at in (0, 3, 4, 11):
        out = tmp_path / f"stop{stop_at}"

        def stopping(self: Minibatches, t: int, stop_at: int = stop_at) -> torch.Tensor:
            if t == stop_at:
                raise Stop
            return real(self, t)

        monkeypatch.setattr(Minibatches, "__getitem__", stopping)
        with pytest.raises(Stop):
            run(out, resume_every=2)
        assert [c.step for c in rllc.checkpoints(out)] == [
            s for s in STEPS if s <= stop_at
        ]  # what is written is kept
        taken: list[int] = []

        def counting(self: Minibatches, t: int, taken: list[int] = taken) -> torch.Tensor:
            taken.append(t)
            return real(self, t)

        monkeypatch.setattr(Minibatches, "__getitem__", counting)
        run(out, resume_every=2)
        assert contents(out) == expected
        last = max(s for s in (*STEPS, *range(0, 13, 2)) if s <= stop_at)
        assert taken == list(range(last, 12))


@pytest.mark.parametrize("after", [pytest.param(False, marks=pytest.mark.slow), True])
def test_resume_after_a_stop_in_every_write(tmp_path, monkeypatch, after):
    """Stops right before and after each rename, when a folder is between two states."""
    few = {"num_steps": 3, "checkpoints": (0, 1)}
    run(tmp_path / "unbroken", **few)
    expected = contents(tmp_path / "unbroken")
    real, count = os.replace, 0
    for stop_at in range(1000):
        out, count = tmp_path / f"stop{stop_at}", 0

        def stopping(source: Any, target: Any, stop_at: int = stop_at) -> None:
            nonlocal count
            count += 1
            if count == stop_at + 1 and not after:
                raise Stop
            real(source, target)
            if count == stop_at + 1:
                raise Stop

        monkeypatch.setattr(os, "replace", stopping)
        try:
            run(out, **few)
        except Stop:
            monkeypatch.setattr(os, "replace", real)
            run(out, **few)
            assert contents(out) == expected
            assert not list(out.glob(".*.tmp"))
        else:
            break
    assert stop_at == 1 + 3 * 3  # training.json, then checkpoint, losses and resume state each time


def test_longer_and_finished_runs(tmp_path, monkeypatch):
    run(tmp_path / "short", num_steps=5)
    run(tmp_path / "short")
    run(tmp_path / "unbroken")
    for name in ("step0000012/model.safetensors", "losses"):
        assert contents(tmp_path / "short")[name] == contents(tmp_path / "unbroken")[name]
    assert len(json.loads((tmp_path / "short" / "training.json").read_text())["sessions"]) == 2
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "unbroken").rglob("*")
        if path.name != ".lock"
    }
    monkeypatch.setattr(
        Minibatches, "__getitem__", lambda *_: pytest.fail("a finished run took a step")
    )
    assert same(run(tmp_path / "unbroken"), rllc.load(tmp_path / "short"))
    files = {path: path.stat().st_mtime_ns for path in before}
    assert {p for p in files if files[p] != before[p] and p.is_file()} == set()
    with pytest.raises(
        InputError,
        match=r"has taken 12 steps, more than `num_steps` = 5\. See rllc\.checkpoints\('",
    ):
        run(tmp_path / "unbroken", num_steps=5)


def test_a_removed_or_changed_checkpoint_at_the_resume_step_is_written_again(tmp_path):
    run(tmp_path)
    expected = contents(tmp_path)
    shutil.rmtree(tmp_path / "step0000012")
    run(tmp_path)
    assert contents(tmp_path) == expected
    (tmp_path / "step0000012" / "sha256.json").write_text("{}")
    run(tmp_path)
    assert contents(tmp_path) == expected


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    run(tmp_path, num_steps=2)
    unfinished = tmp_path / ".step0000003.rllc-17.tmp"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_text("torn")
    (tmp_path / ".resume.pt.rllc-17.abc.tmp").write_text("torn")
    foreign = [".mine.tmp", ".resume.pt.swp.tmp", ".notes.rllc-17.tmp"]
    for name in foreign:
        (tmp_path / name).mkdir()
    run(tmp_path)
    assert {path.name for path in tmp_path.glob(".*.tmp")} == set(foreign)


def test_the_state_of_another_run_is_not_gone_on_from(tmp_path):
    for folder, seed in (("one", 0), ("other", 1)):
        run(tmp_path / folder, num_steps=2, seed=seed)
    shutil.copy(tmp_path / "one" / "resume.pt", tmp_path / "other" / "resume.pt")
    with pytest.raises(rllc.FileError, match="it is of another run"):
        run(tmp_path / "other", num_steps=3, seed=1)


def test_a_field_that_was_at_its_default_is_compared(tmp_path):
    run(tmp_path)
    fields = CONFIG.to_diff_dict() | {"layer_norm_eps": 1e-3}
    with pytest.raises(rllc.InputError, match=r"config\.layer_norm_eps: 1e-05 there, 0\.001 now"):
        run(tmp_path, config=AttentionOnlyConfig(**fields))


def test_changed_settings_are_listed(tmp_path):
    run(tmp_path)
    config = AttentionOnlyConfig(**CONFIG.to_diff_dict() | {"init_scale": 0.5})
    with pytest.raises(InputError) as caught:
        run(
            tmp_path,
            config=config,
            tokens=TOKENS[:19],
            lr=1e-3,
            batch_size=5,
            seed=1,
            betas=(0.9, 0.99),
        )
    message = str(caught.value)
    assert "holds a run with other settings or data" in message
    assert "config.init_scale: 0.8 there, 0.5 now" in message
    assert (
        f"data.fingerprint: '{TOKENS.fingerprint}' there, '{TOKENS[:19].fingerprint}' now"
        in message
    )
    assert "data.rows: 20 there, 19 now" in message
    assert "lr: 0.01 there, 0.001 now" in message
    assert "batch_size: 6 there, 5 now" in message
    assert "seed: 0 there, 1 now" in message
    assert "betas: [0.9, 0.999] there, [0.9, 0.99] now" in message
    assert "weight_decay" not in message
    assert "positions" not in message
    for name, value in (("weight_decay", 0.1), ("gradient_clip", 2.0), ("autocast", "bfloat16")):
        with pytest.raises(InputError, match=rf"{name}: \S+ there, \S+ now\nGive the same"):
            run(tmp_path, **{"num_steps": 12, name: value})
    run(tmp_path, tokens=Tokens(TOKENS.rows, "another name"))


def test_changed_versions_or_threads_are_warned_of(tmp_path):
    run(tmp_path, num_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path, num_steps=4)
    path = tmp_path / "training.json"
    path.write_text(path.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "2.0"'))
    with pytest.warns(
        UserWarning, match=r"from step 4 with torch 2\.0 -> .*differ in its last bits"
    ) as caught:
        run(tmp_path)
    assert caught[0].filename == __file__


def test_resume_false(tmp_path):
    run(tmp_path, resume=False)
    with pytest.raises(FileError, match="holds a run already, and `resume` is False"):
        run(tmp_path, resume=False)


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, r"`num_steps` must be a whole number of at least 1, got 0"),
        ({"num_steps": 1.5}, r"`num_steps` must be a whole number of at least 1, got 1\.5"),
        ({"resume_every": 0}, r"`resume_every` must be a whole number of at least 1, got 0"),
        ({"lr": 0.0}, r"`lr` must be positive and finite, got 0\.0"),
        ({"lr": math.nan}, r"`lr` must be positive and finite, got nan"),
        (
            {"betas": (0.9, 1.0)},
            r"`betas` must be two numbers from 0 to below 1, got \(0\.9, 1\.0\)",
        ),
        ({"weight_decay": -0.1}, r"`weight_decay` must be finite and not negative, got -0\.1"),
        ({"gradient_clip": 0}, r"`gradient_clip` must be positive, got 0"),
        ({"muon_lr": 0}, r"`muon_lr` must be positive and finite, got 0; usual: 0\.02"),
        ({"muon_weight_decay": -1}, r"`muon_weight_decay` must be finite and not negative, got -1"),
        ({"optimizer": "sgd"}, r"`optimizer` must be 'adamw' or 'muon', got 'sgd'"),
        ({"decay": "step"}, r"`decay` must be 'constant' or 'cosine' or 'linear', got 'step'"),
        ({"dtype": "bfloat16"}, r"`dtype` must be 'float32' or 'float64', got 'bfloat16'"),
        ({"warmup_steps": -1}, r"`warmup_steps` must be a whole number of steps, got -1"),
        ({"decay": "linear", "decay_steps": 0}, r"`decay_steps` must be a whole number .* got 0"),
        ({"decay_steps": 3}, r"`decay_steps` = 3 has no effect on a constant rate"),
        (
            {"decay": "linear", "decay_steps": 13},
            r"`decay_steps` = 13 is more than `num_steps` = 12",
        ),
        ({"checkpoints": "often"}, r"a schedule is 'paper' or 'log', got 'often'"),
        ({"autocast": "float16"}, r"`autocast` must be None or 'bfloat16', got 'float16'"),
        (
            {"checkpoints": [0, 13]},
            r"`checkpoints` must hold whole numbers from 0 to `num_steps` = 12, got 13",
        ),
        ({"checkpoints": [0.5]}, r"`checkpoints` must hold whole numbers .* got 0\.5"),
        ({"batch_size": 0}, r"`batch_size` must be a whole number of at least 1, got 0"),
        ({"batch_size": 21}, r"a batch of 21 rows needs at least as many rows, got 20"),
        (
            {"config": {"n_layers": 2}},
            r"`config` must be a configuration of a causal language model.* got dict",
        ),
        (
            {"config": torch.nn.Linear(2, 2)},
            r"`config` must be .* got Linear\. For other models write your own loop",
        ),
        (
            {"tokens": Tokens([[0, 12]] * 6)},
            r"has token id 12, but the model's vocabulary has 12 ids \(0 to 11\)",
        ),
        (
            {"tokens": Tokens([[0] * 9] * 6)},
            r"has rows of 9 positions, but the model's context is 8",
        ),
    ],
)
def test_bad_input(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", **{"num_steps": 12} | change)
    assert not (tmp_path / "out").exists()


def test_divergence(tmp_path):
    with pytest.raises(
        RllcError, match=r"training diverged: the loss of step \d+ is (nan|inf)\. Checkpoints from"
    ):
        run(tmp_path, lr=1e30)
    for checkpoint in rllc.checkpoints(tmp_path):
        rllc.load(checkpoint)  # each is finite
    # After a last step there is no loss that would tell.
    with pytest.raises(
        RllcError, match=r"training diverged: after step 1, \S+ has values that are not finite"
    ):
        run(num_steps=1, lr=1e38, weight_decay=1e10)


def test_folder_that_cannot_be_written_is_found_first(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Minibatches, "__getitem__", lambda *_: pytest.fail("training began"))
    with pytest.raises(FileError, match=r"the folder `out` = \S+ cannot be written"):
        run(tmp_path / "file" / "run")
    if os.geteuid() != 0:  # root writes everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(FileError, match=r"the folder `out` = \S+ cannot be written"):
            run(tmp_path / "locked")


def test_folder_of_something_else(tmp_path):
    run(tmp_path / "run")
    (tmp_path / "run" / "training.json").unlink()
    with pytest.raises(FileError, match=r"has resume\.pt but no training\.json"):
        run(tmp_path / "run")
    for text in ("{", "[]", '{"kind": "other"}'):
        (tmp_path / "run" / "training.json").write_text(text)
        with pytest.raises(
            FileError, match=r"training\.json is damaged or was not written by rllc\.train"
        ):
            run(tmp_path / "run")


def test_damaged_resume_state(tmp_path):
    run(tmp_path)
    path = tmp_path / "resume.pt"
    whole = path.read_bytes()
    inside = whole.index(
        rllc.load(tmp_path).embed.W_E.detach().numpy().tobytes()
    )  # torch itself would not notice
    for damaged in (
        whole[:-100],
        whole[: inside + 5] + bytes([whole[inside + 5] ^ 1]) + whole[inside + 6 :],
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(
            FileError, match=r"resume\.pt is damaged .* remove it to train again from step 0"
        ):
            run(tmp_path)
    expected = contents(tmp_path)
    path.unlink()
    run(tmp_path)
    assert contents(tmp_path) == expected


def test_malicious_resume_state_is_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    run(tmp_path)
    torch.save({"step": Malicious()}, tmp_path / "resume.pt")
    with pytest.raises(FileError, match=r"resume\.pt is damaged"):
        run(tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_two_processes_on_one_folder(tmp_path):
    import fcntl

    run(tmp_path)
    with open(tmp_path / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FileError, match="another process is training in"):
            run(tmp_path)
    run(tmp_path)


# Killed and starved processes.


class Ended(NamedTuple):
    """How a process ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def train_to_the_end(out: Path, delay: float, largest: int) -> None:
    """Train, say where it starts, and be killed so many seconds after that, if not 0.

    Args:
        out: the folder.
        delay: of the SIGKILL.
        largest: bytes that a file may have, 0 for any number.
    """
    config = AttentionOnlyConfig(n_layers=2, d_model=16, n_heads=2, d_head=8, n_ctx=16, d_vocab=50)
    rows = torch.randint(0, 50, (64, 16), generator=torch.Generator().manual_seed(0))
    real, started = Minibatches.__getitem__, []

    def starting(self: Minibatches, t: int) -> torch.Tensor:
        if not started:
            started.append(t)
            print(t, flush=True)
            if delay:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return real(self, t)

    Minibatches.__getitem__ = starting  # type: ignore[method-assign]
    if largest:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    training = Training(num_steps=400, batch_size=8, resume_every=7)
    train(config, Tokens(rows), out, training=training, progress=False)


def child(out: Path, delay: float = 0.0, largest: int = 0) -> Ended:
    """Train in a copy of this process, which has imported everything."""
    pipes = {1: os.pipe(), 2: os.pipe()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks beside threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for number, (_, written) in pipes.items():
                os.dup2(written, number)
            sys.stdout = os.fdopen(1, "w")
            sys.stderr = os.fdopen(2, "w")
            train_to_the_end(out, delay, largest)
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    texts = []
    for read, written in pipes.values():
        os.close(written)
        with open(read) as file:
            texts.append(file.read())
    return Ended(code, *texts)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_sigkill_at_random_moments(tmp_path):
    done = child(tmp_path / "unbroken")
    assert done.returncode == 0, done.stderr
    expected = contents(tmp_path / "unbroken")
    dice, started = random.Random(0), []
    for _ in range(5):
        killed = child(tmp_path / "killed", delay=dice.uniform(0.02, 0.25))
        assert killed.returncode == -9, killed.stderr
        started.append(int(killed.stdout))
        for checkpoint in rllc.checkpoints(tmp_path / "killed"):
            rllc.load(checkpoint)  # whole, or not there
    assert len(set(started)) > 1, started  # they got on
    assert child(tmp_path / "killed").returncode == 0
    assert contents(tmp_path / "killed") == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files")
@pytest.mark.parametrize(
    ("largest", "name", "steps"),
    [
        (5_000, "step0000000", []),
        (40_000, "resume.pt", [0, 1]),
    ],  # bytes: a checkpoint takes 20,000, moments twice that
)
def test_full_disk(tmp_path, largest, name, steps):
    starved = child(tmp_path, largest=largest)
    assert starved.returncode == 1
    assert f"rllc.errors.FileError: training: writing {name} in" in starved.stderr
    assert "All that was written before is whole" in starved.stderr
    assert sorted(path.name for path in tmp_path.glob("step*")) == [
        f"step{step:07d}" for step in steps
    ]
    for checkpoint in rllc.checkpoints(tmp_path) if steps else ():
        rllc.load(checkpoint)
    assert child(tmp_path).returncode == 0
    assert not list(tmp_path.glob(".*.tmp"))
