"""The steps of a run, from the names of its files or revisions.

:mod:`rllc.models.steps` reads one name. This module reads many, and refuses names that are not of
one run. No file is opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from rllc.errors import FileError, shortened
from rllc.models.steps import STATE_DICTS, Named, read_name, stem_of

_SHARD = re.compile(r".*-\d{5}-of-\d{5}")
"""One of several files with the weights of one step, without its suffix."""

_AUXILIARY = re.compile(
    r"(?:^|[-_.])(?:optim\w*|optimizer\w*|sched\w*|scaler|rng_state\w*|training_args|trainer_state"
    r"|resume)(?:[-_.]|$)",
    re.IGNORECASE,
)
"""Files that training writes beside the weights."""

_FORMS = ("config.json", "adapter_config.json")
"""Files that make a folder one model."""

_WEIGHTS = (*STATE_DICTS, ".distcp")


def refuse_mixtures(source: str, steps: Mapping[str, Named]) -> None:
    """Refuse names that count different things or are of several runs.

    Raises:
        FileError: gives examples of each.
    """
    units = _grouped((name, named.unit) for name, named in steps.items())
    if len(units) > 1:
        raise FileError(
            f"listing the checkpoints of {source}: its names count {' and '.join(units)}: "
            f"{_examples(units)}. Type {{step: path}} with those of one kind."
        )
    runs = _grouped((name, named.run) for name, named in steps.items())
    if len(runs) > 1:
        raise FileError(
            f"listing the checkpoints of {source}: they seem to be of several runs or stages: "
            f"{_examples(runs)}. Choose one: a subfolder, revision='stage1-*', or {{step: path}}."
        )


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names by their group, from pairs of a name and its group."""
    groups: dict[str, list[str]] = {}
    for name, group in pairs:
        groups.setdefault(group, []).append(name)
    return groups


def _examples(groups: Mapping[str, list[str]]) -> str:
    """The first name of each group, and how many more it has."""
    examples = []
    for first_name, *more_names in groups.values():
        example = first_name
        if more_names:
            example += f" (and {len(more_names)} more)"
        examples.append(example)
    return "; ".join(examples)


@dataclass(frozen=True)
class Listing:
    """The steps in the names of a source's files."""

    steps: Mapping[str, Named]
    """State dicts and folders whose names have a step."""
    not_understood: list[str]
    """Files and folders of weights whose names have none."""

    @classmethod
    def of(cls, files: Iterable[str]) -> Listing:
        """Read the names at the top, or one folder below if the top has no steps.

        >>> listing = Listing.of(["step10/config.json", "ckpt_20.pt", "notes.txt", "best.pt"])
        >>> list(listing.steps), listing.not_understood
        (['ckpt_20.pt', 'step10'], ['best.pt'])

        Raises:
            FileError: several folders hold steps, each a run of its own.
        """
        steps_of_folders: dict[str, dict[str, Named]] = {}
        not_understood: list[str] = []
        files_of_steps: dict[str, list[str]] = {}
        for file in sorted(files):
            path = PurePosixPath(file)
            is_hidden = any(part.startswith(".") for part in path.parts)
            if is_hidden or not may_be_weights(file):
                continue
            step_folder = _step_folder(path.parts[:-1])
            if step_folder is not None:
                files_of_steps.setdefault(step_folder, []).append(file)
            elif len(path.parts) <= 2 and file.endswith(STATE_DICTS):
                named = read_name(file)
                if named is None:
                    not_understood.append(file)
                else:
                    steps_of_folders.setdefault(_folder_of(path), {})[file] = named
        for step_folder, files_of_step in files_of_steps.items():
            path = PurePosixPath(step_folder)
            named = read_name(path.name)
            assert named is not None
            weights = _weights_of(step_folder, files_of_step)
            steps_of_folders.setdefault(_folder_of(path), {})[weights] = named
        if "" in steps_of_folders:
            return cls(steps_of_folders[""], not_understood)
        folders = list(steps_of_folders)
        if not folders:
            return cls({}, not_understood)
        if len(folders) > 1:
            raise FileError(
                f"listing checkpoints: the folders {shortened(folders)} each hold "
                f"some, as of several runs; give one of them, or "
                f"subfolder={folders[0]!r}."
            )
        return cls(steps_of_folders[folders[0]], not_understood)


def _folder_of(path: PurePosixPath) -> str:
    """The folder of a path; that of the top is empty."""
    return str(path.parent).removeprefix(".")


def may_be_weights(file: str) -> bool:
    """Whether a file can hold weights, or the form of a model, by its name.

    >>> may_be_weights("model.safetensors"), may_be_weights("optimizer.pt")
    (True, False)
    """
    name = PurePosixPath(file).name
    if name in _FORMS:
        return True
    return name.endswith(_WEIGHTS) and not _AUXILIARY.search(stem_of(name))


def is_shard(file: str) -> bool:
    """Whether a file holds a part of the weights, by its name.

    >>> is_shard("model-00001-of-00002.safetensors")
    True
    """
    return _SHARD.fullmatch(stem_of(file)) is not None


def _step_folder(folders: tuple[str, ...]) -> str | None:
    """The first of nested folders that is named after a step, as a path."""
    for depth, folder in enumerate(folders[:2], start=1):
        if read_name(folder) is not None and not folder.endswith(STATE_DICTS):
            return "/".join(folders[:depth])
    return None


def _weights_of(folder: str, files: list[str]) -> str:
    """A step's folder, or the one state dict in it where it is not in a form of its own."""
    names = [file.removeprefix(f"{folder}/") for file in files]
    is_one_file = len(names) == 1 and names[0].endswith(STATE_DICTS)
    if is_one_file and not is_model_folder(names):
        return files[0]
    return folder


def is_model_folder(files: Iterable[str]) -> bool:
    """Whether a folder with these files is one model: it has a configuration, or shards.

    >>> is_model_folder(["config.json", "model.safetensors"]), is_model_folder(["a/config.json"])
    (True, False)
    """
    names_at_the_top = [file for file in files if "/" not in file]
    return any(name in _FORMS or is_shard(name) for name in names_at_the_top)
