"""Checkpoints: where the weights of each training step are.

A *source* is one of these, on this machine or (all but the last three) in a repository of the
Hugging Face hub:

- a folder or repository with one folder a step, as :func:`rllc.train`, transformers' ``Trainer``
  (``checkpoint-500/``) and others write them, in ``save_pretrained`` form or with one state dict;
- a repository with one revision a step: ``step8500`` as Pythia's, ``stage1-step1000-tokens4B`` as
  OLMo's;
- a folder or repository with one state dict a step: ``ckpt_100.pt``, ``epoch=3-step=1000.ckpt``,
  ``checkpoint_0008500.pth``, …; :func:`rllc.models.steps.read_name` has what names are understood;
- a folder or repository with one model;
- a single file with a state dict;
- a list of any of these, or of pairs ``(step, path)`` or ``(step, model)``;
- a dict of steps and paths, or of steps and models.
"""

from __future__ import annotations

import fnmatch
import itertools
import operator
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Unpack

from torch import Tensor, nn

from rllc.errors import FileError, InputError, must_be
from rllc.models import hub
from rllc.models.hub import Folder, Hub, HubOptions
from rllc.models.steps import STATE_DICTS, Named, read_name, stem_of, step_in_name
from rllc.storage.files import as_path, bytes_of_tensor, sha256_of, sha256_of_file, sha256_of_text

SUMS = "sha256.json"
"""In a checkpoint's folder: file names to SHA-256 in hexadecimal.

Written by training, verified by :func:`rllc.load`.
"""

Positions = Literal["shortformer", "standard"]

Into = nn.Module | Callable[[], nn.Module]
"""A module, or a function that makes one, into which state dicts are loaded."""

InMemory = nn.Module | Mapping[str, Tensor]
"""Weights that are in no file."""

Source = str | os.PathLike[str]

CheckpointsLike = Any
"""Checkpoints as users give them; see :mod:`rllc.models.checkpoints`."""

_SETTINGS = ("config.json", "generation_config.json", SUMS)
_SHARD = re.compile(r".*-\d{5}-of-\d{5}")
_AUXILIARY = re.compile(
    r"(?:^|[-_.])(?:optim\w*|optimizer\w*|sched\w*|scaler|rng_state\w*|training_args|trainer_state"
    r"|resume)(?:[-_.]|$)",
    re.IGNORECASE,
)
"""Files that training keeps beside the weights."""

_FORMS = ("config.json", "adapter_config.json")
"""Files that make a folder one model."""

_WEIGHTS = (*STATE_DICTS, ".distcp")
_SHOWN = 6


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one training step: which step, and where.

    >>> Checkpoint(8500, "timaeus/tetrahedron-3m-og", file="checkpoint_0008500.pth").step
    8500

    Args:
        step: optimiser steps taken (tokens or epochs, where names count these); ``None`` where the
            source holds one model and does not say its step.
        source: folder, file or hub id, as it was given.
        revision: the hub revision, where each step has its own.
        file: the state dict or the step's folder within the source; ``None`` is the source itself.
        weights: a module or state dict in memory, in place of a file.
        into: a module, or a function that makes one, for the state dict; see :func:`rllc.load`.
        positions: for TransformerLens state dicts; see :func:`rllc.load`.
        cache_dir: passed on to the hub's client; so is ``token``, which is never written down.
        token: see ``cache_dir``.
    """

    step: int | None
    source: str
    revision: str | None = None
    file: str | None = None
    weights: InMemory | None = field(default=None, repr=False, compare=False, kw_only=True)
    into: Into | None = field(default=None, repr=False, compare=False, kw_only=True)
    positions: Positions | None = field(default=None, repr=False, kw_only=True)
    cache_dir: str | None = field(default=None, repr=False, compare=False, kw_only=True)
    token: str | bool | None = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("revision", "file"):
            value = getattr(self, name)
            right = value is None or isinstance(value, str)
            must_be("Checkpoint", name, value, right, "a text, or left out")
        if self.weights is None:
            as_path(self.source, "Checkpoint", "source")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        file = f"/{self.file}" if self.file else ""
        return f"{self.source}{revision}{file}"

    def path(self) -> Path:
        """The state dict or the ``save_pretrained`` folder on this machine.

        It is downloaded first if it is on the hub.

        Raises:
            FileError: it is not there.
        """
        if self.weights is not None:
            raise InputError(f"{self}: it is in memory and has no path.")
        if Path(self.source).is_file():
            return Path(self.source)
        place = hub.place_of(self.source, self.cache_dir, self.token)
        if self.file is not None and self._is_state_dict:
            path = place.fetch(self.revision, [self.file, *self._configs()]) / self.file
        else:
            path = self._fetch_folder(place)
        if not path.exists():
            raise FileError(
                f"loading {self}: {path} is not there; see checkpoints({self.source!r}) for what "
                f"is."
            )
        return path

    def config_file(self, path: Path) -> Path | None:
        """The ``config.json`` that is about a state dict: beside it, or above it in the source.

        Args:
            path: what :meth:`path` gave.
        """
        folder = path.parent
        for _ in self._configs():
            if (folder / "config.json").is_file():
                return folder / "config.json"
            folder = folder.parent
        return None

    def sha256(self) -> str:
        """The SHA-256 of the weights, in hexadecimal.

        Weights in several files have that of the list of the files' sums.
        """
        if self.weights is not None:
            return _sha256_of_weights(self.weights)
        path = self.path()
        files = [path] if path.is_file() else weight_files(path)
        if len(files) == 1:
            return sha256_of_file(files[0])
        sums = [f"{sha256_of_file(file)}  {file.name}\n" for file in files]
        return sha256_of_text("".join(sums))

    def cached(self) -> frozenset[Path]:
        """The files of its weights that are in the hub's cache now, without asking the network.

        A file or folder of yours has none.
        """
        if self.weights is not None or not hub.is_on_hub(self.source):
            return frozenset()
        if self.file is not None and self._is_state_dict:
            patterns = [self.file]
        else:
            names = ["model*.safetensors", "pytorch_model*.bin", "adapter_model*", _FINAL]
            patterns = self._within(names)
        return frozenset(self._hub.cached(self.revision, patterns))

    def delete_cached(self, but: Collection[Path]) -> None:
        """Delete the files of its weights from the hub's cache, ``but`` those that are to stay."""
        files = self.cached() - frozenset(but)
        if files:
            self._hub.delete(files)

    @property
    def _hub(self) -> Hub:
        return hub.Hub(self.source, self.cache_dir, self.token)

    @property
    def _is_state_dict(self) -> bool:
        return self.file is not None and self.file.endswith(STATE_DICTS)

    def _within(self, names: Iterable[str]) -> list[str]:
        """Files of the step's folder, as they are called in the source."""
        return [name if self.file is None else f"{self.file}/{name}" for name in names]

    def _configs(self) -> list[str]:
        """Where a ``config.json`` about a state dict can be, the nearest first."""
        if self.file is None:
            return ["config.json"]
        folders = PurePosixPath(self.file).parents
        return [(folder / "config.json").as_posix() for folder in folders]

    def _fetch_folder(self, place: Folder | Hub) -> Path:
        # Many repositories hold the same weights in both forms, so one form is asked for first.
        names = [*_SETTINGS, "model*.safetensors", "model*.safetensors.index.json"]
        folder = place.fetch(self.revision, self._within(names)) / (self.file or "")
        if any(folder.glob("model*.safetensors")):
            return folder
        names = ["pytorch_model*.bin*", "adapter_config.json", "adapter_model*"]
        folder = place.fetch(self.revision, self._within(names)) / (self.file or "")
        if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("adapter_model*")):
            return folder
        return place.fetch(self.revision, self._within([_FINAL])) / (self.file or "")


_FINAL = "model_final.pth"
"""What TransformerLens's toy models (``attn-only-2l``, …) call their weights."""


def checkpoints(
    source: CheckpointsLike,
    *,
    into: Into | None = None,
    positions: Positions | None = None,
    **options: Unpack[HubOptions],
) -> list[Checkpoint]:
    """What a source holds, in the order of the steps.

    >>> checkpoints("runs/seed0")  # doctest: +SKIP
    [Checkpoint(step=0, source='runs/seed0', revision=None, file='step0000000'), ...]

    Args:
        source: a folder, a state dict, a hub id, or a list or dict of these or of models; see
            :mod:`rllc.models.checkpoints`. What exists on this machine comes before a hub
            repository of the same name.
        into: for state dicts of a module of your own: a module like it, or a function that makes
            one; see :func:`rllc.load`.
        positions: for TransformerLens state dicts; see :func:`rllc.load`.
        options: ``revision``, ``subfolder``, ``cache_dir``, ``token`` for the Hugging Face hub.
            ``revision="stage1-*"`` chooses among revisions; ``subfolder`` is also for a folder.

    Raises:
        FileError: the source is not there, holds no checkpoint, or holds two of one step.
        InputError: a list or dict holds something else, or a name in it says no step.
    """
    hub.check_options("checkpoints", options)
    check_into("checkpoints", into)
    check_positions("checkpoints", positions)
    if isinstance(source, Checkpoint):
        listed = [source]
    elif isinstance(source, str | os.PathLike):
        listed = _of_place(os.fspath(source), options)
    elif isinstance(source, Mapping):
        listed = [_of_pair(step, where) for step, where in source.items()]
    elif isinstance(source, Iterable) and not isinstance(source, Tensor | nn.Module):
        listed = _of_list(list(source), options)
    else:
        raise InputError(
            f"checkpoints: expected a folder, a file, a hub id, a list of these, or "
            f"{{step: path or model}}, got {type(source).__name__}; for one model type "
            f"{{100: model}}, with its step."
        )
    listed.sort(key=_order)
    _refuse_repeated_steps(source, listed)
    given: dict[str, Any] = {"into": into, "positions": positions}
    given |= {name: options[name] for name in ("cache_dir", "token") if name in options}
    given = {name: value for name, value in given.items() if value is not None}
    return [replace(checkpoint, **given) for checkpoint in listed]


def check_into(what: str, into: object) -> None:
    """Refuse what is neither a module nor a function that makes one."""
    if into is None or callable(into):
        return
    raise InputError(
        f"{what}: `into` must be a torch.nn.Module, or a function without arguments that makes "
        f"one, got {type(into).__name__}."
    )


def check_positions(what: str, positions: object) -> None:
    """Refuse what is no kind of positions."""
    known = isinstance(positions, str) and positions in ("shortformer", "standard")
    right = positions is None or known
    must_be(what, "positions", positions, right, "'shortformer' or 'standard'")


def _order(checkpoint: Checkpoint) -> int:
    return -1 if checkpoint.step is None else checkpoint.step


def _refuse_repeated_steps(source: object, listed: list[Checkpoint]) -> None:
    is_place = isinstance(source, str | os.PathLike)
    where = source if is_place else "a list"
    for previous, following in itertools.pairwise(listed):
        if previous.step == following.step:
            kind = FileError if is_place else InputError
            raise kind(
                f"listing the checkpoints of {where}: {previous} and {following} are both step "
                f"{previous.step}; type {{step: path}} with the ones that you mean. Several "
                f"training runs are tracked each in a store of its own."
            )


# Lists and dicts.


def _of_list(items: list[Any], options: HubOptions) -> list[Checkpoint]:
    listed: list[Checkpoint] = []
    nameless: list[Checkpoint] = []
    for item in items:
        if isinstance(item, Checkpoint):
            listed.append(item)
        elif isinstance(item, tuple) and len(item) == 2:
            listed.append(_of_pair(*item))
        elif isinstance(item, str | os.PathLike):
            one = _one_of_place(os.fspath(item), options)
            (nameless if one.step is None and len(items) > 1 else listed).append(one)
        else:
            raise InputError(
                f"checkpoints: a list may hold paths, Checkpoints, (step, path) or (step, model), "
                f"got {type(item).__name__}."
            )
    if nameless:
        understood = ", ".join(f"{one} is step {one.step}" for one in listed[:_SHOWN])
        raise InputError(
            f"checkpoints: {_listing([str(one) for one in nameless])} do not say their step "
            f"(understood: {understood or 'none'}); type {{100: {str(nameless[0])!r}, …}} with the "
            f"step of each."
        )
    _refuse_shared(listed)
    return listed


def _one_of_place(source: str, options: HubOptions) -> Checkpoint:
    listed = _of_place(source, options)
    if len(listed) > 1:
        raise InputError(
            f"checkpoints: {source} in a list holds {len(listed)} checkpoints itself, steps "
            f"{listed[0].step} to {listed[-1].step}; expected one an entry. Type "
            f"checkpoints({source!r}) to list them."
        )
    return listed[0]


def _of_pair(step: object, where: object) -> Checkpoint:
    """One entry of a dict, or a pair in a list."""
    if isinstance(step, bool):
        raise InputError(f"checkpoints: a step must be a whole number, got {step!r}.")
    try:
        number = operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(
            f"checkpoints: expected (step, path) or {{step: path}} with a whole number as step, "
            f"got ({step!r}, {_shown(where)})."
        ) from None
    if number < 0:
        raise InputError(f"checkpoints: a step must not be negative, got {number}.")
    if isinstance(where, Checkpoint):
        return replace(where, step=number)
    if isinstance(where, str | os.PathLike):
        return Checkpoint(number, os.fspath(where))
    if isinstance(where, nn.Module):
        return Checkpoint(number, f"<{type(where).__name__} in memory>", weights=where)
    if isinstance(where, Mapping):
        return Checkpoint(number, "<state dict in memory>", weights=where)
    raise InputError(
        f"checkpoints: of step {number}, expected a path, a module or a state dict, got "
        f"{type(where).__name__}."
    )


def _refuse_shared(listed: list[Checkpoint]) -> None:
    """One module cannot be two steps: a list holds references, and the weights are the last."""
    steps: dict[int, int | None] = {}
    for checkpoint in listed:
        if checkpoint.weights is None:
            continue
        same = id(checkpoint.weights)
        if same in steps:
            raise InputError(
                f"checkpoints: steps {steps[same]} and {checkpoint.step} are one object in memory, "
                f"which has the weights of one step only; keep copy.deepcopy(model) of each step."
            )
        steps[same] = checkpoint.step


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str | int) else type(value).__name__


# Folders and repositories.


def _of_place(source: str, options: HubOptions) -> list[Checkpoint]:
    """The checkpoints of a path or hub id."""
    revision, subfolder = options.get("revision"), options.get("subfolder")
    path = Path(source)
    if path.is_file():
        return [Checkpoint(step_in_name(source), source)]
    if subfolder and path.is_dir():
        source = str(path / subfolder)
        subfolder = None
    place = hub.place_of(source, options.get("cache_dir"), options.get("token"))
    if isinstance(place, Folder) and revision is not None:
        raise InputError(
            f"checkpoints: {source} is a folder on this machine, which has no revisions; drop "
            f"`revision`."
        )
    by_revision = _of_revisions(source, place.revisions(), revision, subfolder)
    if by_revision:
        return by_revision
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    files = place.files() if revision is None else place.files(revision)
    files = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
    found = _Found.of(files)
    if not found.steps:
        return [_whole(source, revision, prefix, files, found)]
    _refuse_mixtures(source, found.steps)
    if found.not_understood:
        warnings.warn(
            f"checkpoints({source!r}): left out, because their names say no step: "
            f"{_listing(found.not_understood)}.",
            stacklevel=4,
        )
    return [
        Checkpoint(named.step, source, revision=revision, file=f"{prefix}{file}")
        for file, named in found.steps.items()
    ]


def _of_revisions(
    source: str, revisions: list[str], pattern: str | None, subfolder: str | None
) -> list[Checkpoint]:
    """The checkpoints of a repository that has one revision a step."""
    if pattern is not None:
        if not any(sign in pattern for sign in "*?["):
            return []
        revisions = [name for name in revisions if fnmatch.fnmatchcase(name, pattern)]
        if not revisions:
            raise InputError(f"checkpoints: no revision of {source} is like {pattern!r}.")
    steps = {name: named for name in revisions if (named := read_name(name)) is not None}
    _refuse_mixtures(source, steps)
    return [
        Checkpoint(named.step, source, revision=name, file=subfolder)
        for name, named in steps.items()
    ]


def _whole(
    source: str, revision: str | None, prefix: str, files: list[str], found: _Found
) -> Checkpoint:
    """A source without steps that is one model itself."""
    file = prefix.rstrip("/") or None
    step = step_in_name(file or revision or source)
    if is_model_folder(files):
        return Checkpoint(step, source, revision=revision, file=file)
    at_the_top = [name for name in found.not_understood if "/" not in name]
    if len(at_the_top) == 1 and at_the_top == found.not_understood:
        return Checkpoint(step, source, revision=revision, file=f"{prefix}{at_the_top[0]}")
    seen = ""
    if found.not_understood:
        seen = f" Found, but not understood: {_listing(found.not_understood)}."
    raise FileError(
        f"listing the checkpoints of {source}: it has no folders step0000100/ or checkpoint-100/, "
        f"no revisions step100, no files checkpoint_0000100.pth or ckpt_100.pt and no "
        f"config.json.{seen} Files of other names can be given with their steps: "
        f"{{100: 'path'}}."
    )


def _refuse_mixtures(source: str, steps: Mapping[str, Named]) -> None:
    """Names that count different things, or are of several runs, are not one sequence of steps."""
    units = _by(steps, "unit")
    if len(units) > 1:
        raise FileError(
            f"listing the checkpoints of {source}: its names count {' and '.join(units)}: "
            f"{_examples(units)}. Type {{step: path}} with those of one kind."
        )
    runs = _by(steps, "run")
    if len(runs) > 1:
        raise FileError(
            f"listing the checkpoints of {source}: they seem to be of several runs or stages: "
            f"{_examples(runs)}. Choose one: a subfolder, revision='stage1-*', or {{step: path}}."
        )


def _by(steps: Mapping[str, Named], what: str) -> dict[str, list[str]]:
    """Names by one thing that they say."""
    groups: dict[str, list[str]] = {}
    for name, named in steps.items():
        groups.setdefault(getattr(named, what), []).append(name)
    return groups


def _examples(groups: Mapping[str, list[str]]) -> str:
    shown = []
    for names in groups.values():
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        shown.append(f"{names[0]}{more}")
    return "; ".join(shown)


@dataclass(frozen=True)
class _Found:
    """What is among the names of files."""

    steps: Mapping[str, Named]
    """State dicts and folders whose names say a step."""
    not_understood: list[str]
    """Files and folders of weights whose names say none."""

    @classmethod
    def of(cls, files: Iterable[str]) -> _Found:
        """Look at the top, else one folder below.

        Raises:
            FileError: several folders hold steps, each a run of its own.
        """
        by_place: dict[str, dict[str, Named]] = {}
        nameless: dict[str, None] = {}
        contents: dict[str, list[str]] = {}
        for file in sorted(files):
            parts = PurePosixPath(file).parts
            if any(part.startswith(".") for part in parts) or not _may_be_weights(file):
                continue
            folder = _step_folder(parts[:-1])
            if folder is not None:
                contents.setdefault(folder, []).append(file)
            elif len(parts) <= 2:
                named = read_name(file)
                if named is not None and parts[-1].endswith(STATE_DICTS):
                    by_place.setdefault("/".join(parts[:-1]), {})[file] = named
                elif parts[-1].endswith(STATE_DICTS):
                    nameless[file] = None
        for folder, inside in contents.items():
            named = read_name(PurePosixPath(folder).name)
            assert named is not None
            place = str(PurePosixPath(folder).parent).removeprefix(".")
            by_place.setdefault(place, {})[_weights_of(folder, inside)] = named
        if "" not in by_place and len(by_place) > 1:
            raise FileError(
                f"listing checkpoints: the folders {_listing(list(by_place))} each hold some, as "
                f"of several runs; give one of them, or subfolder={next(iter(by_place))!r}."
            )
        steps = by_place.get("") or next(iter(by_place.values()), {})
        return cls(steps, list(nameless))


def _may_be_weights(file: str) -> bool:
    name = PurePosixPath(file).name
    if name in _FORMS:
        return True
    return name.endswith(_WEIGHTS) and not _AUXILIARY.search(stem_of(name))


def _step_folder(folders: tuple[str, ...]) -> str | None:
    """The first of nested folders that is named after a step, as a path."""
    for depth, folder in enumerate(folders[:2], start=1):
        if read_name(folder) is not None and not folder.endswith(STATE_DICTS):
            return "/".join(folders[:depth])
    return None


def _weights_of(folder: str, files: list[str]) -> str:
    """A step's folder, or the one state dict in it where it is not in a form of its own."""
    names = [file.removeprefix(f"{folder}/") for file in files]
    if not is_model_folder(names) and len(names) == 1 and names[0].endswith(STATE_DICTS):
        return files[0]
    return folder


def is_model_folder(files: Iterable[str]) -> bool:
    """Whether a folder with these files is one model, in a form that says so."""
    return any(
        name in _FORMS or _SHARD.fullmatch(stem_of(name)) for name in files if "/" not in name
    )


def _listing(names: list[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights in a step's folder.

    Raises:
        FileError: there are none, or there are those of another kind.
    """
    for name, shards in {
        "model.safetensors": "model-*.safetensors",
        "pytorch_model.bin": "pytorch_model-*.bin",
        "adapter_model.safetensors": "adapter_model-*.safetensors",
        "adapter_model.bin": "adapter_model-*.bin",
    }.items():
        if (folder / name).is_file():
            return [folder / name]
        files = sorted(folder.glob(shards))
        if files:
            return files
    if any(folder.glob("*.distcp")):
        raise FileError(
            f"loading {folder}: it is a distributed checkpoint (.distcp), as FSDP saves one, whose "
            f"index is a pickle. Gather it with python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt"
        )
    candidates = [path for path in sorted(folder.glob("*")) if _may_be_weights(path.name)]
    files = [path for path in candidates if path.name.endswith(STATE_DICTS)]
    sharded = files and all(_SHARD.fullmatch(stem_of(path.name)) for path in files)
    if sharded or len(files) == 1:
        return files
    found = f" Found: {_listing([path.name for path in files])}." if files else ""
    raise FileError(
        f"loading {folder}: no weights; expected model.safetensors (or pytorch_model.bin) beside "
        f"config.json, as save_pretrained writes them, or one state dict.{found}"
    )


def state_of(weights: InMemory) -> dict[str, Tensor]:
    """The tensors of weights in memory, by name."""
    return dict(weights.state_dict() if isinstance(weights, nn.Module) else weights)


def _sha256_of_weights(weights: InMemory) -> str:
    pieces: list[Any] = []
    for name, tensor in sorted(state_of(weights).items()):
        pieces.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
        pieces.append(bytes_of_tensor(tensor))
    return sha256_of(pieces)
