"""The paper's training loop: AdamW at a constant rate, checkpoints on a schedule, interrupted and resumed without a trace.

A run is a folder:

- ``step0000100/``: a checkpoint in ``save_pretrained`` form, with ``sha256.json``; :func:`rllc.load` verifies it;
- ``training.json``: settings, fingerprint of the data, and versions of what trained;
- ``losses.npz``: ``loss [step]``, in nats per token; entry t is the loss of minibatch t at the weights after t steps;
- ``resume.pt``: model, optimizer and losses at one step, from which the same call goes on.

Everything is written whole or not at all. Minibatches and random numbers are functions of (seed, step), and kernels are
deterministic, so a run that was killed and resumed has, bit for bit, the weights of one that was not.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import operator
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rllc.data.tokens import Minibatches, Tokens
from rllc.errors import FileError, InputError, RllcError, first_line
from rllc.files import save_arrays, sha256, write_atomically
from rllc.engine.bind import is_attention_only
from rllc.engine.unembedding import Target, UnembedLoss
from rllc.models.checkpoints import SUMS
from rllc.seeds import stable_hash

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PAPER_STEPS = (
    0,
    100,
    *range(200, 10_001, 200),
    *range(10_400, 20_001, 400),
    *range(21_000, 50_001, 1000),
)
"""The 107 of 50,000 steps at which arXiv 2410.02984 estimates LLCs."""

_STEPS_BETWEEN_READS = 20
"""Losses stay on the device and are read together: reading one makes the host wait for a GPU."""


def schedule(num_steps: int) -> tuple[int, ...]:
    """The paper's 107 checkpoints scaled to a run of ``num_steps``: dense early, where most happens, and sparse late.

    Each step s of the paper's becomes round(s · num_steps / 50,000); shorter runs have fewer, since equal ones merge.

    >>> schedule(1000)[:4], schedule(1000)[-2:], len(schedule(50_000))
    ((0, 2, 4, 8), (980, 1000), 107)

    Args:
        num_steps: optimiser steps of the run, at least 1.

    Returns:
        Steps in increasing order, from 0 to ``num_steps``.

    Raises:
        InputError: ``num_steps`` is not a whole number of at least 1.
    """
    num_steps = _count("num_steps", num_steps)
    return tuple(sorted({round(step * num_steps / PAPER_STEPS[-1]) for step in PAPER_STEPS}))


def train(
    config: PreTrainedConfig | PreTrainedModel,
    tokens: Tokens | Tensor,
    *,
    num_steps: int,
    batch_size: int = 100,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.05,
    gradient_clip: float = 1.0,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    schedule: Iterable[int] | None = None,
    resume: bool = True,
    resume_every: int | None = None,
    device: torch.device | str | None = None,
    autocast: str | None = None,
    progress: bool = True,
) -> PreTrainedModel:
    """Train a language model to predict the next token, and keep its checkpoints.

    >>> from rllc.models import AttentionOnlyConfig
    >>> config = AttentionOnlyConfig(n_layers=1, d_model=8, n_heads=2, d_head=4, n_ctx=6, d_vocab=10)
    >>> model = train(config, Tokens([[0, 1, 2], [0, 3, 4]]), num_steps=2, batch_size=2, progress=False)

    The same call on the same folder goes on where the last one ended, whether that was killed or finished with fewer
    ``num_steps``; a finished run is only loaded. The result is bit-equal to that of an unbroken run on one kind of device
    with the same versions and number of threads (a warning tells where these differ). Torch's global random state and
    settings are as before when this returns or raises.

    Args:
        config: of a causal language model, such as :class:`rllc.models.AttentionOnlyConfig`; its weights are drawn from
            ``seed``. Or a model to start from, which is copied and stays as it is; one in float64 trains in float64.
        tokens: rows ``[row, pos]``. Each row is used once before any is used again.
        num_steps: optimiser steps in all, counted from the start of the run; 50,000 in the paper.
        batch_size: rows a step; 100 rows of 1024 tokens in the paper.
        lr: AdamW's learning rate, constant, as in the paper.
        betas: AdamW's decay rates of the two moments; the paper's.
        weight_decay: decoupled; the paper's 0.05, here on all parameters, biases and LayerNorms too (the paper says no
            more than "AdamW").
        gradient_clip: largest norm of the whole gradient; the paper's.
        seed: of initial weights, order of rows and dropout, if the model has any.
        out: the run's folder; ``None`` writes nothing.
        schedule: steps at which checkpoints are written; by default :func:`schedule`. The last step always is one. Steps
            that a resumed run has behind it are not made up for.
        resume: ``False`` refuses a folder that holds a run already.
        resume_every: also write ``resume.pt`` every so many steps; by default only with checkpoints. A killed run loses
            the steps since the last.
        device: where to train; by default the CPU, or where the given model is.
        autocast: ``"bfloat16"`` does the forward pass's matrix products in that precision; weights and optimizer stay
            float32. Off by default, as in the paper.
        progress: show a bar with the loss.

    Returns:
        The model, float32 unless it was given in float64, on ``device``, in eval mode.

    Raises:
        InputError: an argument cannot be used, or the folder holds a run with other settings or data (they are listed).
        FileError: the folder cannot be written or holds something else, or ``resume.pt`` is damaged.
        RllcError: the loss or a weight stopped being finite.

    Reference: arXiv 2410.02984, section on training; Loshchilov and Hutter 2019, "Decoupled weight decay regularization".
    """
    tokens = tokens if isinstance(tokens, Tokens) else Tokens(tokens)
    num_steps = _count("num_steps", num_steps)
    every = None if resume_every is None else _count("resume_every", resume_every)
    steps = _checked_schedule(schedule, num_steps)
    _check_settings(lr, betas, weight_decay, gradient_clip, autocast)
    batches = Minibatches(len(tokens), batch_size, seed=("train", seed))
    _check_data(config, tokens)

    model, place = _initial(config, seed, device)
    settings = {
        "config": _fields(model.config),
        "initial_weights": _digest(model.state_dict()) if isinstance(config, nn.Module) else None,
        "data": {
            "fingerprint": tokens.fingerprint,
            "rows": len(tokens),
            "positions": tokens.num_positions,
        },
        **{
            "batch_size": batch_size,
            "lr": float(lr),
            "betas": [float(beta) for beta in betas],
            "seed": seed,
        },
        **{
            "weight_decay": float(weight_decay),
            "gradient_clip": float(gradient_clip),
            "autocast": autocast,
        },
    }
    run = _Run.begin(model.to(place), settings, num_steps)
    plan = {"num_steps": num_steps, "schedule": sorted(steps), "data_name": tokens.name}
    with _Folder.locked(out) as folder, _reproducible(place):
        start = read = folder.take_up(run, settings, plan, resume)
        with tqdm(
            total=num_steps, initial=start, desc="training", unit="step", disable=not progress
        ) as bar:
            for step in range(start, num_steps + 1):
                at_resume = step in steps or (every is not None and step % every == 0)
                if at_resume or step - read >= _STEPS_BETWEEN_READS:
                    read = _read(run.losses, read, step, bar)
                if step in steps:
                    _check_finite(run.model, step)
                    folder.write_checkpoint(run.model, step)
                if at_resume:
                    folder.write_resume(run, step)
                if step < num_steps:
                    _seed_dropout(seed, step, place)
                    run.take_step(step, _batch(tokens, batches[step], place))
                    bar.update()
    return model.eval()


# One step.


@dataclass(frozen=True, eq=False)
class _Run:
    """What a step changes, and how."""

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    losses: Tensor
    """``[step]``, on the device; NaN where no step has been."""
    gradient_clip: float
    autocast: torch.dtype | None

    @classmethod
    def begin(cls, model: PreTrainedModel, settings: Mapping[str, Any], num_steps: int) -> _Run:
        optimizer = torch.optim.AdamW(
            model.train().parameters(),
            lr=settings["lr"],
            betas=tuple(settings["betas"]),
            weight_decay=settings["weight_decay"],
            fused=model.device.type in ("cpu", "cuda"),
        )
        losses = torch.full((num_steps,), torch.nan, device=model.device)
        autocast = None if settings["autocast"] is None else getattr(torch, settings["autocast"])
        return cls(model, optimizer, losses, settings["gradient_clip"], autocast)

    def take_step(self, step: int, batch: Tensor) -> None:
        """Move the weights; nothing waits for the device."""
        self.optimizer.zero_grad()
        loss = _loss(self.model, batch, self.autocast)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.optimizer.step()
        self.losses[step] = loss.detach()

    def state(self, step: int) -> dict[str, Any]:
        """All that the steps to come depend on, and the losses so far, with a checksum."""
        state = {"step": step, "losses": self.losses[:step].cpu().clone()}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state | {"sha256": _digest(state)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses[: state["step"]] = state["losses"]


def _loss(model: Any, batch: Tensor, autocast: torch.dtype | None) -> Tensor:
    """Mean next-token cross entropy in nats.

    For AttentionOnly through the sweep over chunks that sampling uses: 1.5 to 2 times faster a step on a CPU than
    logits and cross entropy, which for small models are most of the work. The sweep works in float32.
    """
    with nullcontext() if autocast is None else torch.autocast(batch.device.type, autocast):
        if not is_attention_only(model) or model.dtype == torch.float64:
            return model(input_ids=batch, labels=batch).loss
        hidden = model.normalise("ln_final", model.activations(batch[:, :-1]).residual[-1], {})
    target = Target((batch.shape[0], batch.shape[1] - 1), batch[:, 1:].flatten(), None)
    mean, _ = UnembedLoss.apply(
        hidden.float(), model.unembed.W_U[None], model.unembed.b_U[None], target, autocast
    )
    return mean[0]


def _batch(tokens: Tokens, rows: Tensor, device: torch.device) -> Tensor:
    batch = tokens.rows[rows]
    if device.type == "cuda":
        batch = batch.pin_memory()  # from other memory the copy would wait for the steps before it
    return batch.to(device, non_blocking=True).long()


def _read(losses: Tensor, start: int, end: int, bar: tqdm) -> int:
    """Show the last loss; stop if one of the new ones is not finite. Gives ``end``, up to which they are read."""
    if end == start:
        return end
    new = losses[start:end].cpu()
    bad = (~new.isfinite()).nonzero()
    if len(bad):
        raise _diverged(f"the loss of step {start + int(bad[0])} is {float(new[bad[0]])}")
    bar.set_postfix(loss=f"{float(new[-1]):.3f}", refresh=False)
    return end


def _check_finite(model: nn.Module, step: int) -> None:
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise _diverged(f"after step {step}, {name} has values that are not finite")


def _diverged(what: str) -> RllcError:
    return RllcError(
        f"training diverged: {what}. Checkpoints from before are kept. Train again with a lower `lr`, in another folder."
    )


def _seed_dropout(seed: int, step: int, device: torch.device) -> None:
    """Global random numbers that depend on (seed, step) alone, so that a resumed run draws the same."""
    value = stable_hash("dropout", seed, step)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic kernels; global random state and settings are put back afterwards.

    Without them the gradient of an embedding is summed with atomic additions, in another order each time, also on a CPU
    with two threads or more.
    """
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        try:
            torch.use_deterministic_algorithms(
                True, warn_only=True
            )  # a model may use a kernel that has no such form
            torch.utils.deterministic.fill_uninitialized_memory = (
                False  # a debugging aid that costs time
            )
            if on_gpu and workspace is None:
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = (
                    ":4096:8"  # NVIDIA's condition for deterministic products
                )
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill
            if on_gpu and workspace is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def _initial(
    config: PreTrainedConfig | PreTrainedModel, seed: int, device: torch.device | str | None
) -> tuple[PreTrainedModel, torch.device]:
    """The model before the first step, and where it is to be trained."""
    if isinstance(config, nn.Module):
        place = next(config.parameters()).device if device is None else torch.device(device)
        model = copy.deepcopy(config)
        return model if model.dtype == torch.float64 else model.float(), place
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stable_hash("initial weights", seed))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model, torch.device("cpu" if device is None else device)


# The folder.


class _Folder:
    """A run's folder, or, for ``None``, nowhere: then nothing is found and nothing written."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.resumed: int | None = None
        """The step of ``resume.pt`` as it was found."""

    @classmethod
    @contextmanager
    def locked(cls, path: str | os.PathLike[str] | None) -> Iterator[_Folder]:
        """Make the folder, see that it can be written, and keep other processes from training in it."""
        if path is None:
            yield cls(None)
            return
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = open(path / ".lock", "a")  # noqa: SIM115 (closed below, with other errors than opening it)
        except OSError as error:
            raise FileError(
                f"training: the folder `out` = {path} cannot be written ({error}). Give another, or change its rights."
            ) from error
        with lock:
            _lock(lock, path)
            for leftover in path.glob(".*.tmp"):  # of a killed run
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield cls(path)

    def take_up(
        self, run: _Run, settings: Mapping[str, Any], plan: Mapping[str, Any], resume: bool
    ) -> int:
        """Go on with the run that is there, if its settings are these. Gives the step at which it stands, 0 for a new one."""
        if self.path is None:
            return 0
        found = self._description()
        if found and not resume:
            raise FileError(
                f"training: {self.path} holds a run already, and `resume` is False. Give another folder, remove that one, "
                f"or say resume=True to go on with it."
            )
        _compare(found.get("settings", {}), settings, self.path)
        state = self._state()
        step = 0 if state is None else state["step"]
        if step > plan["num_steps"]:
            raise InputError(
                f"training: the run in {self.path} has taken {step} steps, more than `num_steps` = {plan['num_steps']}. "
                f"See rllc.checkpoints({str(self.path)!r}) for what it holds, or train in another folder."
            )
        environment, sessions = _environment(run.model.device), found.get("sessions", [])
        if state is not None:
            self.resumed = step
            run.restore(state)
            if step < plan["num_steps"]:
                _warn_of_changes(sessions[-1]["environment"], environment, self.path, step)
        if not sessions or step < plan["num_steps"]:
            sessions = [*sessions, {"from_step": step, **plan, "environment": environment}]
            text = json.dumps(
                {"kind": "rllc.train", "settings": settings, "sessions": sessions}, indent=1
            )
            with self._writing("training.json"):
                write_atomically(self.path / "training.json", lambda at: _write(at, text))
        return step

    def write_checkpoint(self, model: Any, step: int) -> None:
        """One ``save_pretrained`` folder with the sums of its files, renamed into place when it is whole and on disk."""
        if self.path is None:
            return
        final = self.path / f"step{step:07d}"
        temporary = self.path / f".{final.name}.tmp"
        with self._writing(final.name):
            with _no_bars():
                model.save_pretrained(temporary)
            sums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
            text = json.dumps(sums, indent=1)
            if final.exists() and _text(final / SUMS) == text:  # this call only goes on from here
                shutil.rmtree(temporary)
                return
            _write(temporary / SUMS, text)
            for path in (*temporary.iterdir(), temporary):
                _sync(path)
            if (
                final.exists()
            ):  # changed by someone, or made with other versions before the run was killed
                os.replace(final, self.path / f".{final.name}.old.tmp")
            os.replace(temporary, final)
            _sync(self.path)
            shutil.rmtree(self.path / f".{final.name}.old.tmp", ignore_errors=True)

    def write_resume(self, run: _Run, step: int) -> None:
        """``resume.pt``, and ``losses.npz`` before it."""
        if self.path is None or step == self.resumed:
            return
        state = run.state(step)
        with self._writing("resume.pt"):
            save_arrays(
                self.path / "losses.npz", {"loss": state["losses"].numpy()}, {"kind": "rllc.losses"}
            )
            write_atomically(self.path / "resume.pt", lambda at: torch.save(state, at))

    def _description(self) -> dict[str, Any]:
        """What ``training.json`` says, ``{}`` for a folder without a run."""
        assert self.path is not None
        path = self.path / "training.json"
        if not path.exists():
            others = sorted(
                p.name
                for p in self.path.iterdir()
                if p.name == "resume.pt" or p.name.startswith("step")
            )
            if others:
                raise FileError(
                    f"training: {self.path} has {others[0]} but no training.json, so it is not known of which run. Give "
                    f"an empty folder as `out`."
                )
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["kind"] != "rllc.train" or not isinstance(found["settings"], dict):
                raise ValueError("it is of another kind")
        except (ValueError, KeyError, TypeError) as error:
            raise FileError(
                f"training: {path} is damaged or was not written by rllc.train ({error}). Give an empty folder as `out`."
            ) from error
        return found

    def _state(self) -> dict[str, Any] | None:
        assert self.path is not None
        path = self.path / "resume.pt"
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state.pop("sha256") != _digest(state):
                raise ValueError("its contents do not match the checksum in it")
        except Exception as error:  # damaged bytes can make the reader fail in any way
            raise FileError(
                f"training: {path} is damaged ({type(error).__name__}: {first_line(error)}). The checkpoints "
                f"beside it are not touched; remove it to train again from step 0, or train in another folder."
            ) from error
        return state

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # torch, safetensors and the operating system each have their own for a full disk
            raise FileError(
                f"training: writing {name} in {self.path} failed ({error}). All that was written before is whole; make "
                f"room and call again to go on from there."
            ) from error


def _lock(file: Any, path: Path) -> None:
    """Held until the process ends, however it ends. Not on Windows and on file systems without locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileError(
            f"training: another process is training in {path}. Wait for it, or give another folder."
        ) from None
    except (ImportError, OSError):
        pass


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    if not before:
        return
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    # Another version of transformers may know more fields of a config than the one that wrote it, or fewer.
    names = [
        name
        for name in old | new
        if not name.startswith("config.") or (name in old and name in new)
    ]
    differ = [
        f"{n}: {old.get(n)!r} there, {new.get(n)!r} now" for n in names if old.get(n) != new.get(n)
    ]
    if differ:
        raise InputError(
            f"training: {path} holds a run with other settings or data:\n  "
            + "\n  ".join(differ)
            + "\n"
            "Give the same to go on with it, or another folder as `out`."
        )


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


def _environment(device: torch.device) -> dict[str, Any]:
    """What bits of a result depend on besides the settings."""
    import transformers

    import rllc

    kind = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    return {
        "rllc": rllc.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": f"{device.type} {kind}",
        "threads": torch.get_num_threads(),
    }


def _warn_of_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], path: Path, step: int
) -> None:
    changes = [
        f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]
    ]
    if changes:
        warnings.warn(
            f"training: going on with {path} from step {step} with {', '.join(changes)}; the result may differ in its "
            f"last bits from that of an unbroken run.",
            stacklevel=4,
        )


def _digest(state: Any) -> str:
    """SHA-256 of nested dicts and lists of tensors and numbers."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(value, dict):
            for key, item in value.items():
                digest.update(repr(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    """Have a file or folder on disk, not only in memory."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers shows a bar for each model it writes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# Checks.


def _count(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"training: `{name}` must be a whole number of at least 1, got {value!r}.")
    return number


def _check_settings(
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    gradient_clip: float,
    autocast: str | None,
) -> None:
    if not (math.isfinite(lr) and lr > 0):
        raise InputError(
            f"training: `lr` must be positive and finite, got {lr!r}; the paper's is 1e-3."
        )
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise InputError(
            f"training: `betas` must be two numbers from 0 to below 1, got {betas!r}; usual: (0.9, 0.999)."
        )
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(
            f"training: `weight_decay` must be finite and not negative, got {weight_decay!r}; 0 is none."
        )
    if not gradient_clip > 0:
        raise InputError(
            f"training: `gradient_clip` must be positive, got {gradient_clip!r}; float('inf') is no clipping."
        )
    if autocast not in (None, "bfloat16"):
        raise InputError(f"training: `autocast` must be None or 'bfloat16', got {autocast!r}.")


def _checked_schedule(steps: Iterable[int] | None, num_steps: int) -> frozenset[int]:
    if steps is None:
        return frozenset(schedule(num_steps))
    steps = list(steps)
    for step in steps:
        if not isinstance(step, int) or not 0 <= step <= num_steps:
            raise InputError(
                f"training: `schedule` must hold whole numbers from 0 to `num_steps` = {num_steps}, got {step!r}."
            )
    return frozenset({*steps, num_steps})


def _check_data(config: Any, tokens: Tokens) -> None:
    if isinstance(config, nn.Module) and hasattr(config, "save_pretrained"):
        config = config.config
    vocab, context = (
        getattr(config, "vocab_size", None),
        getattr(config, "max_position_embeddings", None),
    )
    if vocab is None:
        raise InputError(
            f"training: `config` must be a configuration of a causal language model, such as AttentionOnlyConfig, or a "
            f"transformers model, got {type(config).__name__}. For other models write your own loop, with a Tracker."
        )
    if tokens.largest_id >= vocab:
        raise InputError(
            f"training: {tokens!r} has token id {tokens.largest_id}, but the model's vocabulary has {vocab} ids (0 to "
            f"{vocab - 1}). Set `d_vocab` (`vocab_size`) to the tokenizer's number of ids."
        )
    if context is not None and tokens.num_positions > context:
        raise InputError(
            f"training: {tokens!r} has rows of {tokens.num_positions} positions, but the model's context is {context}. "
            f"Set `n_ctx` (`max_position_embeddings`) to it, or tokenize with context_length={context}."
        )


def _fields(config: Any) -> dict[str, Any]:
    """A configuration as JSON holds it, without what does not bear on training."""
    aside = ("transformers_version", "architectures", "dtype")
    fields = json.loads(json.dumps(config.to_diff_dict(), default=str))
    return {
        name: value
        for name, value in fields.items()
        if name not in aside and not name.startswith("_")
    }
