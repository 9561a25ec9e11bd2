"""What a model is trained on, and what estimates are refined to: a synthetic language or texts."""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import rllc
from rllc.analysis.brackets import brackets
from rllc.data.synthetic import Language

from .settings import Settings

HELD_OUT = 256
"""Rows of each subset, its last, that no model is trained on."""


@dataclass(frozen=True)
class Data:
    """What one seed's model is trained on and looked at with."""

    base: rllc.Tokens
    """As many rows of each subset."""
    subsets: Mapping[str, rllc.Tokens]
    """The first is the one that induction heads are for, the second the one to compare with."""
    held_out: Mapping[str, rllc.Tokens]
    """Rows of each subset that no model was trained on."""
    repeats: rllc.Tokens | None
    """Rows to measure attention on; ``None``: random tokens, repeated."""
    brackets: Mapping[int, Any]
    vocab_size: int
    tokenizer: Any = None

    def random_rows(self, count: int, seed: int, part: int = 0) -> rllc.Tokens:
        """Random rows of ``base``, since neighbours are often of one document.

        Different ``part`` of one ``seed`` have no row in common.
        """
        order = np.random.default_rng(seed).permutation(len(self.base))
        rows = order[part * count : (part + 1) * count]
        return self.base[rows.tolist()]

    def measured(self, positions: int) -> dict[str, rllc.Tokens]:
        """What estimates are made on, by name: the first positions of all rows of each kind."""
        data = {self.base.name: first_positions(self.base, positions)}
        for name, rows in self.subsets.items():
            data[name] = first_positions(rows, positions)
        data["repeated"] = repeated_text(self.base, positions)
        return data


def read_data(settings: Settings, seeds: Iterable[int]) -> dict[int, Data]:
    """The data of each seed: a language drawn anew, or the same texts for all."""
    if settings.size == "tiny":
        return {seed: language_data(settings, seed) for seed in seeds}
    texts = text_data(settings)
    return dict.fromkeys(seeds, texts)


def language_data(settings: Settings, seed: int) -> Data:
    """Rows of the synthetic language, and of two of its rules alone."""
    language = Language(vocab_size=settings.vocab, context_length=settings.context)
    rows_of_subset = settings.train_rows // 5
    subsets = {}
    held_out = {}
    for name in ("induction", "ngram"):
        subsets[name] = language.sample(rows_of_subset, seed + 1, name).tokens
        held_out[name] = language.sample(HELD_OUT, seed + 2000, name).tokens
    return Data(
        base=language.sample(settings.train_rows, seed + 1).tokens,
        subsets=subsets,
        held_out=held_out,
        repeats=language.sample(64, seed + 1000, "induction").tokens,
        brackets=language.brackets,
        vocab_size=settings.vocab,
    )


def text_data(settings: Settings) -> Data:
    """Rows of the Pile, or of what Python brings, with a tokenizer trained on them."""
    rows_of, tokenizer = tokenized(settings)
    subsets = {}
    held_out = {}
    for name, rows in rows_of.items():
        count = min(HELD_OUT, len(rows) // 10)
        trained_on, held_out[name] = rows.split(len(rows) - count)
        subsets[name] = rllc.Tokens(trained_on.rows, name)
    return Data(
        base=balanced(subsets),
        subsets=subsets,
        held_out=held_out,
        repeats=None,
        brackets=brackets(tokenizer, ("()", "[]", "{}")),
        vocab_size=len(tokenizer),
        tokenizer=tokenizer,
    )


def tokenized(settings: Settings) -> tuple[dict[str, rllc.Tokens], Any]:
    """The rows of each subset, and the tokenizer; read again if they were made before."""
    wanted = (settings.data, settings.subset_data, settings.subsets, settings.tokenizer)
    sizes = (settings.characters, settings.vocab, settings.context)
    digest = hashlib.sha256(repr([wanted, sizes, sys.version_info[:3]]).encode()).hexdigest()
    folder = settings.out / f"rows-{digest[:12]}"
    names = settings.subsets or ["code", "prose"]
    paths = {name: folder / f"{number}.npz" for number, name in enumerate(names)}
    if not all(path.exists() for path in paths.values()):
        texts = read_texts(settings)
        made = settings.tokenizer or own_tokenizer(settings, chain.from_iterable(texts.values()))
        tokenizer = rllc.data.load_tokenizer(made)
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            bar = tqdm(texts[name], f"tokenizing {name}", unit="text", disable=settings.quiet)
            rllc.data.tokenize(bar, tokenizer, settings.context, name=name).save(path)
    made = settings.tokenizer or settings.out / f"tokenizer-{settings.vocab}"
    rows = {name: rllc.Tokens.load(path) for name, path in paths.items()}
    return rows, rllc.data.load_tokenizer(made)


def read_texts(settings: Settings) -> dict[str, list[str]]:
    """The documents of each subset."""
    if settings.data is None:
        return rllc.data.python_corpus(max_bytes=settings.characters)
    texts = {}
    for name in settings.subsets or ():
        documents = subset_texts(settings, name)
        texts[name] = list(first_characters(documents, settings.characters))
    return texts


def subset_texts(settings: Settings, name: str) -> Iterable[str]:
    """Texts of one subset of the Pile; they are read later, and only as far as needed."""
    source = settings.subset_data or settings.data
    assert source is not None
    if "{}" in source:
        return rllc.data.pile_texts(source=source.format(name))
    return rllc.data.pile_texts(name, source=source)


def first_characters(documents: Iterable[str], count: int) -> Iterator[str]:
    """The first documents, until they have so many characters."""
    for document in documents:
        if count <= 0:
            return
        yield document
        count -= len(document)


def own_tokenizer(settings: Settings, texts: Iterable[str]) -> Path:
    """The folder of a tokenizer trained on these texts."""
    folder = settings.out / f"tokenizer-{settings.vocab}"
    if not folder.exists():
        # A run that is killed here leaves no half-written tokenizer under the final name.
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        tokenizer = rllc.data.train_tokenizer(texts, vocab_size=settings.vocab)
        tokenizer.save_pretrained(unfinished)
        unfinished.replace(folder)
    return folder


def balanced(subsets: Mapping[str, rllc.Tokens]) -> rllc.Tokens:
    """As many rows of each subset; rows of small subsets come several times."""
    most = max(len(rows) for rows in subsets.values())
    parts = [rows[torch.arange(most) % len(rows)] for rows in subsets.values()]
    return rllc.data.mix("all", *parts, seed=0)


def first_positions(rows: rllc.Tokens, count: int) -> rllc.Tokens:
    return rllc.Tokens(rows.rows[:, :count], rows.name)


def repeated_text(rows: rllc.Tokens, positions: int) -> rllc.Tokens:
    """Each row begins with its first token, then has the same segment of text twice."""
    length = (positions - 1) // 2
    first = rows.rows[:, :1]
    segment = rows.rows[:, 1 : 1 + length]
    return rllc.Tokens(torch.cat([first, segment, segment], dim=1), "repeated")
