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
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Unpack

from torch import Tensor, nn

from rllc.errors import FileError, InputError, must_be, one_of, shortened
from rllc.models import hub
from rllc.models.checkpoint import Checkpoint, Into, Positions
from rllc.models.hub import Folder, HubOptions
from rllc.models.listing import Listing, is_model_folder, refuse_mixtures
from rllc.models.steps import read_name, step_in_name

CheckpointsLike = Any
"""Checkpoints as users give them; see :mod:`rllc.models.checkpoints`."""


def checkpoints(
    source: CheckpointsLike,
    *,
    into: Into | None = None,
    positions: Positions | None = None,
    **options: Unpack[HubOptions],
) -> list[Checkpoint]:
    """The checkpoints of a source, in the order of the steps.

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
    candidates: dict[str, Any] = {"into": into, "positions": positions}
    candidates |= {"cache_dir": options.get("cache_dir"), "token": options.get("token")}
    given: dict[str, Any] = {}
    for name, value in candidates.items():
        if value is not None:
            given[name] = value
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
    right = one_of(positions, (None, "shortformer", "standard"))
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


def _of_list(items: list[Any], options: HubOptions) -> list[Checkpoint]:
    listed: list[Checkpoint] = []
    nameless: list[Checkpoint] = []
    for item in items:
        if isinstance(item, Checkpoint):
            listed.append(item)
        elif isinstance(item, tuple) and len(item) == 2:
            listed.append(_of_pair(*item))
        elif isinstance(item, str | os.PathLike):
            checkpoint = _one_of_place(os.fspath(item), options)
            if checkpoint.step is None and len(items) > 1:
                nameless.append(checkpoint)
            else:
                listed.append(checkpoint)
        else:
            raise InputError(
                f"checkpoints: a list may hold paths, Checkpoints, (step, path) or (step, model), "
                f"got {type(item).__name__}."
            )
    if nameless:
        _refuse_nameless(nameless, listed)
    _refuse_shared(listed)
    return listed


def _refuse_nameless(nameless: list[Checkpoint], listed: list[Checkpoint]) -> NoReturn:
    """Say which entries of a list do not tell their step, and which do."""
    names = [str(checkpoint) for checkpoint in nameless]
    understood = [f"{checkpoint} is step {checkpoint.step}" for checkpoint in listed]
    raise InputError(
        f"checkpoints: {shortened(names)} do not say their step "
        f"(understood: {shortened(understood) or 'none'}); type {{100: {names[0]!r}, …}} with the "
        f"step of each."
    )


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
    step_of_object: dict[int, int | None] = {}
    for checkpoint in listed:
        if checkpoint.weights is None:
            continue
        address = id(checkpoint.weights)
        if address in step_of_object:
            earlier = step_of_object[address]
            raise InputError(
                f"checkpoints: steps {earlier} and {checkpoint.step} are one object in memory, "
                f"which has the weights of one step only; keep copy.deepcopy(model) of each step."
            )
        step_of_object[address] = checkpoint.step


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str | int) else type(value).__name__


def _of_place(source: str, options: HubOptions) -> list[Checkpoint]:
    """The checkpoints of a path or hub id."""
    revision = options.get("revision")
    subfolder = options.get("subfolder")
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
    listing = Listing.of(files)
    if not listing.steps:
        return [_whole(source, revision, prefix, files, listing)]
    refuse_mixtures(source, listing.steps)
    if listing.not_understood:
        warnings.warn(
            f"checkpoints({source!r}): left out, because their names say no step: "
            f"{shortened(listing.not_understood)}.",
            stacklevel=4,
        )
    listed = []
    for file, named in listing.steps.items():
        listed.append(Checkpoint(named.step, source, revision=revision, file=f"{prefix}{file}"))
    return listed


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
    steps = {}
    for name in revisions:
        named = read_name(name)
        if named is not None:
            steps[name] = named
    refuse_mixtures(source, steps)
    listed = []
    for name, named in steps.items():
        listed.append(Checkpoint(named.step, source, revision=name, file=subfolder))
    return listed


def _whole(
    source: str, revision: str | None, prefix: str, files: list[str], listing: Listing
) -> Checkpoint:
    """A source without steps that is one model itself."""
    file = prefix.rstrip("/") or None
    step = step_in_name(file or revision or source)
    if is_model_folder(files):
        return Checkpoint(step, source, revision=revision, file=file)
    weights = listing.not_understood
    if len(weights) == 1 and "/" not in weights[0]:
        return Checkpoint(step, source, revision=revision, file=f"{prefix}{weights[0]}")
    seen = ""
    if weights:
        seen = f" Found, but not understood: {shortened(weights)}."
    raise FileError(
        f"listing the checkpoints of {source}: it has no folders step0000100/ or checkpoint-100/, "
        f"no revisions step100, no files checkpoint_0000100.pth or ckpt_100.pt and no "
        f"config.json.{seen} Files of other names can be given with their steps: "
        f"{{100: 'path'}}."
    )
