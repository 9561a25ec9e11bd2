"""Checkpoints: where the weights of each training step are, and models made from them, strictly.

A *source* is one of these, on this machine or (all but the last) in a repository of the Hugging Face hub:

- a folder or repository with one folder a step: ``step0000100/``, as :func:`rllc.train` writes them, in
  ``save_pretrained`` form, any of transformers' causal language models;
- a repository with one revision a step (``step8500``), as Pythia's;
- a folder or repository with one TransformerLens state dict a step: ``checkpoint_0008500.pth`` or
  ``checkpoints/checkpoint_0008500.pth``, as the paper's ``timaeus/tetrahedron-3m-og``;
- a folder or repository with one model in ``save_pretrained`` form;
- a single file with a TransformerLens state dict, ``.pth`` or ``.safetensors``.

Nothing is trusted: no pickled code runs, no remote code runs, and a tensor that is missing, unexpected, misshaped or
not finite is an error. transformers by itself would fill a missing tensor with random numbers and go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import operator
import os
import pickle
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from rllc.errors import FileError, InputError, nearest
from rllc.files import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rllc.models.attention_only import AttentionOnlyConfig

T = TypeVar("T")
Positions = Literal["shortformer", "standard"]

SUMS = "sha256.json"
"""In a checkpoint's folder: file names to SHA-256 in hexadecimal. Written by training, verified by :func:`load`."""

_STATE_DICTS = (".pth", ".pt", ".safetensors")
_STEP = re.compile(
    r"(?:(?:global_?)?step|checkpoint)[-_]?(\d+)(?:-tokens\d+B)?(?:\.pth|\.pt|\.safetensors)?"
)
_MASK = re.compile(
    r"blocks\.\d+\.attn\.(?:mask|IGNORE)"
)  # buffers that TransformerLens saves beside the weights
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_SETTINGS = ("config.json", "generation_config.json", SUMS)


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one training step: which step, and where.

    >>> Checkpoint(8500, "timaeus/tetrahedron-3m-og", file="checkpoints/checkpoint_0008500.pth").step
    8500

    Args:
        step: optimiser steps taken; 0 where the source holds one model and does not say its step.
        source: folder, file or hub id, as it was given.
        revision: the hub revision, where each step has its own.
        file: the state dict or the step's folder within the source; ``None`` is the source itself.
    """

    step: int
    source: str
    revision: str | None = None
    file: str | None = None

    def path(self) -> Path:
        """The state dict or the ``save_pretrained`` folder on this machine; downloaded first if it is on the hub.

        Raises:
            FileError: it is not there.
        """
        if Path(self.source).is_file():
            return Path(self.source)
        place = _place(self.source)
        if self.file is not None and self.file.endswith(_STATE_DICTS):
            path = place.fetch(self.revision, [self.file]) / self.file
        else:
            path = self._fetch_folder(place)
        if not path.exists():
            raise FileError(
                f"loading {self}: {path} is not there; see checkpoints({self.source!r}) for what is."
            )
        return path

    def sha256(self) -> str:
        """The SHA-256 of the weights, in hexadecimal: of the file, or of the list of sums when they are in several."""
        path = self.path()
        if path.is_file():
            return sha256(path)
        sums = [f"{sha256(file)}  {file.name}\n" for file in _weights(path)]
        return (
            sums[0].split()[0]
            if len(sums) == 1
            else hashlib.sha256("".join(sums).encode()).hexdigest()
        )

    def cached(self) -> frozenset[Path]:
        """The files of its weights that are in the hub's cache now; none of a folder or file of yours. Asks no network."""
        if Path(self.source).exists() or _HUB_ID.fullmatch(self.source) is None:
            return frozenset()
        if self.file is not None and self.file.endswith(_STATE_DICTS):
            patterns = [self.file]
        else:
            within = "" if self.file is None else f"{self.file}/"
            patterns = [within + name for name in ("model*.safetensors", "pytorch_model*.bin")]
        return frozenset(Hub(self.source).cached(self.revision, patterns))

    def delete_cached(self, but: Collection[Path]) -> None:
        """Delete the files of its weights from the hub's cache, ``but`` those that are to stay."""
        files = self.cached() - frozenset(but)
        if files:
            Hub(self.source).delete(files)

    def _fetch_folder(self, place: _Folder | Hub) -> Path:
        within = "" if self.file is None else f"{self.file}/"
        wanted = [*_SETTINGS, "model*.safetensors", "model*.safetensors.index.json"]
        path = place.fetch(self.revision, [within + name for name in wanted]) / within
        if not any(
            path.glob("model*.safetensors")
        ):  # many repositories hold the same weights twice; take them once
            path = place.fetch(self.revision, [f"{within}pytorch_model*.bin*"]) / within
        return path

    def __str__(self) -> str:
        return (
            self.source
            + (f"@{self.revision}" if self.revision else "")
            + (f"/{self.file}" if self.file else "")
        )


def checkpoints(source: str | os.PathLike[str]) -> list[Checkpoint]:
    """What a source holds, in the order of the steps.

    >>> checkpoints("runs/seed0")  # doctest: +SKIP
    [Checkpoint(step=0, source='runs/seed0', revision=None, file='step0000000'), ...]

    Args:
        source: a folder, a state dict or a hub id; see :mod:`rllc.models.checkpoints`. What exists on this machine
            comes before a hub repository of the same name.

    Raises:
        FileError: the source is not there, holds no checkpoint, or holds two of one step.
    """
    source = os.fspath(source)
    if Path(source).is_file():
        return [Checkpoint(_step(source) or 0, source)]
    place = _place(source)
    found = [
        Checkpoint(s, source, revision=r) for r in place.revisions() if (s := _step(r)) is not None
    ]
    if not found:
        files = place.files()
        found = [Checkpoint(step, source, file=name) for name, step in _numbered(files).items()]
        if not found and "config.json" in files:
            found = [Checkpoint(_step(source) or 0, source)]
    if not found:
        raise FileError(
            f"listing the checkpoints of {source}: it has no folders step0000100/, no revisions step100, no files "
            f"checkpoint_0000100.pth and no config.json. A state dict of another name can be loaded as a file."
        )
    found.sort(key=lambda checkpoint: checkpoint.step)
    for one, other in itertools.pairwise(found):
        if one.step == other.step:
            raise FileError(
                f"listing the checkpoints of {source}: {one} and {other} are both step {one.step}."
            )
    return found


def load(
    source: str | os.PathLike[str] | Checkpoint,
    step: int | None = None,
    *,
    positions: Positions | None = None,
    into: PreTrainedModel | None = None,
    device: torch.device | str | None = None,
) -> PreTrainedModel:
    """A model from a checkpoint: float32, in eval mode, every tensor accounted for, none folded or centred.

    >>> model = load("timaeus/tetrahedron-3m-og", step=8500)                      # doctest: +SKIP
    >>> for checkpoint in checkpoints("runs/seed0"):                              # doctest: +SKIP
    ...     model = load(checkpoint, into=model)

    Torch's global random state is left as it was. Where training recorded SHA-256 sums (``sha256.json`` in a step's
    folder) they are verified: a flipped byte in a safetensors file would load without a word.

    Args:
        source: a :class:`Checkpoint`, or a folder, state dict or hub id as in :func:`checkpoints`.
        step: which one; by default the last. In a long sweep list once and pass each ``Checkpoint``: finding a step in
            a hub repository asks the hub.
        positions: ``"shortformer"`` or ``"standard"``, for TransformerLens state dicts, which do not say it; by default
            ``"shortformer"``, the paper's. What the shapes do say is inferred: sizes from ``embed.W_E [d_vocab,
            d_model]``, ``pos_embed.W_pos [n_ctx, d_model]`` and ``blocks.0.attn.W_Q [head, d_model, d_head]``, layers
            from the names. ``layer_norm_eps`` is TransformerLens's 1e-5. Where a config.json says it, it must agree.
        into: a model of the same configuration, whose memory is filled and which is returned. If anything is wrong
            with the checkpoint, its weights stay as they were.
        device: where the model is put; by default the CPU, or where ``into`` is.

    Raises:
        InputError: there is no such step, ``into`` has another configuration, or ``positions`` contradicts config.json.
        FileError: the checkpoint is missing, truncated or damaged, holds code or other objects besides tensors, or a
            tensor is missing, unexpected, misshaped or not finite.
    """
    checkpoint = _choose(source, step)
    path = checkpoint.path()
    if path.name == "model.safetensors" and path.with_name("config.json").is_file():
        path = path.parent  # its configuration is beside it and need not be inferred
    with torch.random.fork_rng(devices=[]):  # building a model draws its initial weights
        if path.is_file():
            model = _load_state_dict(path, positions, into)
        else:
            model = _load_folder(path, positions, into)
    return (model if device is None else model.to(device)).eval()


class Hub:
    """One repository of the Hugging Face hub, and all that uses a network here; tests put a folder in its place."""

    def __init__(self, repository: str) -> None:
        self.repository = repository

    def revisions(self) -> list[str]:
        """Names of branches and tags, each once."""
        import huggingface_hub

        refs = self._ask(lambda: huggingface_hub.list_repo_refs(self.repository))
        return list(dict.fromkeys(ref.name for ref in [*refs.branches, *refs.tags]))

    def files(self) -> list[str]:
        """Names of the files of the main revision, with ``/`` between folders."""
        import huggingface_hub

        return self._ask(lambda: huggingface_hub.list_repo_files(self.repository))

    def fetch(self, revision: str | None, patterns: list[str]) -> Path:
        """Download the files that match ``patterns``, unless they are cached, and give the folder they are in."""
        import huggingface_hub

        return Path(
            self._ask(
                lambda: huggingface_hub.snapshot_download(
                    self.repository, revision=revision, allow_patterns=patterns
                )
            )
        )

    def cached(self, revision: str | None, patterns: list[str]) -> set[Path]:
        """The files that match ``patterns`` and are in the cache, by their places in its snapshot."""
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = huggingface_hub.snapshot_download(
                self.repository, revision=revision, allow_patterns=patterns, local_files_only=True
            )
        except LocalEntryNotFoundError:
            return set()
        found = (path for pattern in patterns for path in Path(folder).resolve().glob(pattern))
        return {path for path in found if path.is_file()}

    def delete(self, files: Collection[Path]) -> None:
        """Delete files of snapshots from the cache, and what they point to unless another snapshot has it, too.

        The client's own ``delete_revisions`` removes whole revisions, or all of a repository when there is no other: with
        them what was there before, and what another process is just downloading.
        """
        import huggingface_hub

        found = huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE).repos
        cached = [file for repo in found for revision in repo.revisions for file in revision.files]
        others = {file.blob_path for file in cached if file.file_path not in files}
        for file in cached:
            if file.file_path in files:
                file.file_path.unlink(missing_ok=True)
                if file.blob_path not in others:
                    file.blob_path.unlink(missing_ok=True)

    def _ask(self, request: Callable[[], T]) -> T:
        try:
            return request()
        except Exception as error:  # the hub's client raises its own, the operating system's and its HTTP library's
            raise FileError(
                f"asking the Hugging Face hub for {self.repository!r}: {type(error).__name__}: {error}. There is no "
                f"local file or folder of that name either; for a local one, check the path."
            ) from error


class _Folder:
    """A local folder, seen as :class:`Hub` shows a repository; there is nothing to download."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def revisions(self) -> list[str]:
        return []

    def files(self) -> list[str]:
        globs = (
            "*",
            "*/*",
            "checkpoints/*/*",
        )  # as deep as checkpoints are; what else is there may be large
        return [
            f.relative_to(self.path).as_posix()
            for glob in globs
            for f in self.path.glob(glob)
            if f.is_file()
        ]

    def fetch(self, revision: str | None, patterns: list[str]) -> Path:
        return self.path


def _place(source: str) -> _Folder | Hub:
    path = Path(source)
    if path.is_dir():
        return _Folder(path)
    if _HUB_ID.fullmatch(source) and not source.endswith(_STATE_DICTS):
        return Hub(source)
    hint = ""
    if path.parent.is_dir():
        hint = f" In {path.parent}: {nearest(path.name, sorted(p.name for p in path.parent.iterdir()))}"
    raise FileError(f"loading {source}: there is no such file or folder.{hint}")


def _step(name: str) -> int | None:
    """The step that a file, folder or revision is named after."""
    match = _STEP.fullmatch(PurePosixPath(Path(name).as_posix()).name)
    return int(match[1]) if match else None


def _numbered(files: Iterable[str]) -> dict[str, int]:
    """Step folders and state dicts among file names, at the top or in ``checkpoints/``."""
    found = {}
    for file in files:
        parts = PurePosixPath(file.removeprefix("checkpoints/")).parts
        if len(parts) == 1 and file.endswith(_STATE_DICTS):
            name = file
        elif len(parts) == 2 and not parts[0].endswith(_STATE_DICTS):
            name = str(PurePosixPath(file).parent)
        else:
            continue
        if (step := _step(name)) is not None:
            found[name] = step
    return found


def _choose(source: str | os.PathLike[str] | Checkpoint, step: int | None) -> Checkpoint:
    if isinstance(source, Checkpoint):
        if step is not None and step != source.step:
            raise InputError(
                f"load: `step` is {step}, but the checkpoint given is of step {source.step}; drop `step`."
            )
        return source
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"load: `source` must be a path, a hub id or a Checkpoint, got {type(source).__name__}."
        )
    found = checkpoints(source)
    if step is None:
        return found[-1]
    try:
        step = operator.index(step)
    except TypeError:
        raise InputError(f"load: `step` must be a whole number, got {step!r}.") from None
    if found[0].revision is None and found[0].file is None and _step(found[0].source) is None:
        raise InputError(
            f"load: {source} holds one model and does not say of which step; drop `step={step}`."
        )
    for checkpoint in found:
        if checkpoint.step == step:
            return checkpoint
    close = sorted(sorted(found, key=lambda c: abs(c.step - step))[:3], key=lambda c: c.step)
    raise InputError(
        f"load: {source} has no step {step}; the nearest are {', '.join(str(c.step) for c in close)} "
        f"({len(found)} checkpoints, steps {found[0].step} to {found[-1].step})."
    )


# From files to a model.


def _load_state_dict(
    path: Path, positions: Positions | None, into: PreTrainedModel | None
) -> PreTrainedModel:
    state = {name: tensor for name, tensor in _tensors(path).items() if not _MASK.fullmatch(name)}
    return _fill(_infer(path, state, positions or "shortformer"), state, into, path)


def _load_folder(
    path: Path, positions: Positions | None, into: PreTrainedModel | None
) -> PreTrainedModel:
    settings = _json(path / "config.json")
    weights = _weights(path)
    _verify(path, weights)
    from rllc.models.attention_only import (
        AttentionOnlyConfig,  # here: it imports transformers, and listing need not
    )

    if settings.get("model_type") != AttentionOnlyConfig.model_type:
        if positions is not None:
            raise InputError(
                f"load: `positions` is for attention-only models, and {path} is none; drop `positions`."
            )
        return _load_transformers(path, into)
    try:
        config = AttentionOnlyConfig.from_dict(settings)
    except (
        Exception
    ) as error:  # transformers and huggingface_hub validate, each with errors of its own
        raise FileError(
            f"loading {path}: config.json is not a configuration of AttentionOnly: {error}"
        ) from error
    if positions not in (None, config.positions):
        raise InputError(
            f"load: `positions` is {positions!r}, but the config.json in {path} says {config.positions!r}; drop "
            f"`positions`."
        )
    state = {name: tensor for file in weights for name, tensor in _tensors(file).items()}
    return _fill(config, state, into, path)


def _load_transformers(path: Path, into: PreTrainedModel | None) -> PreTrainedModel:
    """Any causal language model that transformers knows; it reads the files, and we check what it says of them."""
    from transformers import AutoModelForCausalLM

    try:
        with _quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=torch.float32,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that they come back in `info`, by name
                output_loading_info=True,
            )
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except Exception as error:
        raise FileError(
            f"loading {path} through transformers: {type(error).__name__}: {error}"
        ) from error
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    misshaped = {name: tuple(found) for name, found, _ in info["mismatched_keys"]}
    _refuse(path, expected, info["missing_keys"], info["unexpected_keys"], misshaped)
    _check_values(path, dict(model.named_parameters()))
    if into is None:
        return model
    _check_into(into, model.config, type(model))
    into.load_state_dict(model.state_dict())
    return into


def _fill(
    config: AttentionOnlyConfig,
    state: Mapping[str, Tensor],
    into: PreTrainedModel | None,
    path: Path,
) -> PreTrainedModel:
    """An AttentionOnly with the tensors of ``state``, once they are what its parameters are."""
    from rllc.models.attention_only import AttentionOnly

    if into is not None:
        _check_into(into, config, AttentionOnly)
    model = AttentionOnly(config) if into is None else into
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    misshaped = {
        n: tuple(t.shape)
        for n, t in state.items()
        if n in expected and tuple(t.shape) != expected[n]
    }
    _refuse(
        path, expected, expected.keys() - state.keys(), state.keys() - expected.keys(), misshaped
    )
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise FileError(
                f"loading {path}: {name!r} is {tensor.dtype}, {tensor.layout}; expected dense floating-point numbers."
            )
    state = {name: tensor.detach().float() for name, tensor in state.items()}
    _check_values(path, state)
    model.load_state_dict(state)
    return model


def _infer(path: Path, state: Mapping[str, Tensor], positions: Positions) -> AttentionOnlyConfig:
    """The configuration that the shapes of a TransformerLens state dict show."""
    from rllc.models.attention_only import AttentionOnlyConfig

    axes = {
        "embed.W_E": "[d_vocab, d_model]",
        "pos_embed.W_pos": "[n_ctx, d_model]",
        "blocks.0.attn.W_Q": "[head, d_model, d_head]",
    }
    for name, wanted in axes.items():
        if name not in state:
            raise FileError(
                f"loading {path}: a TransformerLens state dict of an attention-only transformer has a tensor {name!r} "
                f"{wanted}, this has none; {nearest(name, state) if state else 'it is empty'}."
            )
        if state[name].dim() != wanted.count(",") + 1 or state[name].numel() == 0:
            raise FileError(
                f"loading {path}: {name!r} has shape {tuple(state[name].shape)}, expected {wanted}."
            )
    (d_vocab, d_model), n_ctx, (n_heads, _, d_head) = (
        state["embed.W_E"].shape,
        state["pos_embed.W_pos"].shape[0],
        state["blocks.0.attn.W_Q"].shape,
    )
    layers = {match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    return AttentionOnlyConfig(
        n_layers=len(layers),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_head,
        n_ctx=n_ctx,
        d_vocab=d_vocab,
        positions=positions,
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of a pickle that holds nothing else."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except Exception as error:  # damaged bytes can make the readers fail in any way
        raise FileError(
            f"loading {path}: the file is truncated, damaged or not a state dict ({type(error).__name__}: {error}). "
            f"Copy or download it again."
        ) from error
    if not isinstance(found, Mapping):
        raise FileError(
            f"loading {path}: expected a state dict (names to tensors), got {type(found).__name__}."
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise FileError(
                f"loading {path}: expected a state dict (names to tensors), but {name!r} is {type(value).__name__}; "
                f"save the model's state_dict() alone."
            )
    return dict(found)


def _refused(path: Path, error: pickle.UnpicklingError) -> FileError:
    """What to say of a pickle that torch would not read; torch's own words advise to run it."""
    names = re.search(r"GLOBAL (\S+)|module (\S+) is blocked", str(error))
    what = (
        f"it would call {names[1] or names[2]}"
        if names
        else "it is damaged, or made of other objects"
    )
    return FileError(
        f"loading {path}: refused, nothing of it was run. A checkpoint is a pickle of tensors alone, and {what}. Copy "
        f"or download it again; if you trust whoever made it, have its state_dict() saved as .safetensors."
    )


def _weights(folder: Path) -> list[Path]:
    """The files that hold the weights in a ``save_pretrained`` folder."""
    for whole, shards in (
        ("model.safetensors", "model-*.safetensors"),
        ("pytorch_model.bin", "pytorch_model-*.bin"),
    ):
        if (folder / whole).is_file():
            return [folder / whole]
        if found := sorted(folder.glob(shards)):
            return found
    raise FileError(
        f"loading {folder}: no weights; expected model.safetensors (or pytorch_model.bin) beside config.json, as "
        f"save_pretrained writes them."
    )


def _verify(folder: Path, weights: Iterable[Path]) -> None:
    """Compare files with the sums that training recorded, where it did."""
    if not (folder / SUMS).is_file():
        return
    recorded = _json(folder / SUMS)
    for name in sorted({*recorded, *(file.name for file in weights)}):
        if name not in recorded:
            raise FileError(
                f"loading {folder}: {SUMS} has no sum for {name}; the file was added or {SUMS} changed."
            )
        if not (folder / name).is_file():
            raise FileError(f"loading {folder}: {SUMS} lists {name}, but it is not there.")
        if (found := sha256(folder / name)) != recorded[name]:
            raise FileError(
                f"loading {folder / name}: it was damaged or changed since it was written: its SHA-256 is {found}, "
                f"{SUMS} says {recorded[name]}. Copy it again, or remove {SUMS} if you changed it on purpose."
            )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileError(
            f"loading {path.parent}: no {path.name}; expected a folder that save_pretrained wrote."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(f"loading {path}: the file is truncated or damaged ({error}).") from error
    if not isinstance(found, dict):
        raise FileError(f"loading {path}: expected a JSON object, got {type(found).__name__}.")
    return found


# Checks.


def _refuse(
    path: Path,
    expected: Mapping[str, tuple[int, ...]],
    missing: Iterable[str],
    unexpected: Iterable[str],
    misshaped: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise, naming the tensors, unless names and shapes are those of the model."""
    missing, unexpected = sorted(missing), sorted(unexpected)
    problems = [
        f"{n!r} is missing" + (f"; {nearest(n, unexpected)}" if unexpected else "") for n in missing
    ]
    problems += [f"{n!r} is unexpected; {nearest(n, missing or expected)}" for n in unexpected]
    problems += [
        f"{n!r} has shape {s}, expected {expected[n]}" for n, s in sorted(misshaped.items())
    ]
    if problems:
        shown = "\n  ".join(problems[:8]) + (
            f"\n  … and {len(problems) - 8} more" if len(problems) > 8 else ""
        )
        raise FileError(f"loading {path}: its tensors are not the model's:\n  {shown}")


def _check_values(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise FileError(
                f"loading {path}: {name!r} has {bad} of {tensor.numel()} values that are not finite in float32; "
                f"training diverged before this step, or the file is damaged."
            )


def _check_into(into: PreTrainedModel, config: Any, kind: type) -> None:
    if type(into) is not kind:
        raise InputError(
            f"load: `into` must be a {kind.__name__} like the checkpoint, got {type(into).__name__}."
        )
    own, new = _sizes(into.config), _sizes(config)
    differ = [
        f"{k} is {own.get(k)!r}, the checkpoint's {new.get(k)!r}"
        for k in new | own
        if own.get(k) != new.get(k)
    ]
    if differ:
        raise InputError(
            f"load: `into` has another configuration than the checkpoint: {'; '.join(differ)}."
        )
    for name, parameter in into.named_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"load: `into` must be float32, but its {name!r} is {parameter.dtype}; use into.float()."
            )


def _sizes(config: Any) -> dict[str, Any]:
    """What of a configuration decides which function the model computes."""
    from transformers import PreTrainedConfig

    aside = {*PreTrainedConfig().to_dict(), "init_scale", "initializer_range", "use_cache"}
    return {k: v for k, v in config.to_dict().items() if k not in aside and not k.startswith("_")}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of its own from transformers, whose findings we raise; a sweep loads hundreds."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
