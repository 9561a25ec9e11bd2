"""Data as people have them: each kind gives the rows that one would write down by hand."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import rllc
from rllc.data import Tensors, Tokens, given
from rllc.data.examples import to_example
from rllc.data.large import Examples, TokenArray
from rllc.errors import FileError, InputError

CPU = torch.device("cpu")
IDS = torch.arange(1, 13).view(3, 4)
IMAGES = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
RAGGED = [[5, 6, 7], [8, 9], [3]]


def rows_of(data: Any) -> Any:
    return data.take(torch.arange(len(data)), CPU)


def assert_is_padded(data: Any) -> None:
    batch = rows_of(data)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0], [3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    "source",
    [
        IDS,
        IDS.numpy(),
        IDS.numpy().astype(np.uint16),
        IDS.tolist(),
        list(IDS),
        list(IDS.numpy()),
        {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)},
        {"input_ids": IDS.tolist(), "attention_mask": [[1] * 4] * 3},
        [{"input_ids": row, "attention_mask": [1] * 4} for row in IDS.tolist()],
    ],
    ids=lambda source: type(source).__name__,
)
def test_rows_of_ids_are_tokens(source: Any) -> None:
    data = rllc.data.as_data(source)
    assert isinstance(data, Tokens)
    assert data.rows.equal(IDS.int())
    assert data.fingerprint == Tokens(IDS).fingerprint


@pytest.mark.parametrize(
    "source", [RAGGED, {"input_ids": RAGGED}, [{"input_ids": row} for row in RAGGED]]
)
def test_rows_of_several_lengths_are_padded_and_masked(source: Any) -> None:
    assert_is_padded(rllc.data.as_data(source))


def test_a_tokenizers_output_is_one_batch(small_tokenizer: Any) -> None:
    tokenizer = small_tokenizer
    texts = ["the cat in the house", "the dog"]
    tokenizer.pad_token = tokenizer.eos_token
    ids = [tokenizer(text)["input_ids"] for text in texts]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        refinements = rllc.weights.refinement.product(None, encoded)
        assert [r.data_name for r in refinements] == ["data"]
        batch = rows_of(refinements[0].data)
        assert batch["input_ids"].equal(encoded["input_ids"])
        assert batch["attention_mask"].equal(encoded["attention_mask"])
    named = rllc.weights.refinement.product(None, {"a": encoded, "b": tokenizer(texts)})
    assert [r.data_name for r in named] == ["a", "b"]
    texts_alone = rows_of(rllc.data.as_data(texts, tokenizer=tokenizer))
    for row, expected in enumerate(ids):
        kept = texts_alone["attention_mask"][row] > 0
        assert texts_alone["input_ids"][row][kept].tolist() == expected
    short = rllc.data.as_data(texts, tokenizer=tokenizer, context_length=2)
    assert rows_of(short).tolist() == [row[:2] for row in ids]
    with pytest.raises(InputError, match="pass the model's tokenizer"):
        rllc.data.as_data(texts)
    with pytest.raises(InputError, match=r"tokenizer\(\[text\]\)"):
        rllc.data.as_data(tokenizer("the cat"))


class Pairs(Dataset[Any]):
    def __init__(self, kind: type = tuple) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, row: int) -> Any:
        if row >= len(IMAGES):
            raise IndexError
        image, label = IMAGES[row], int(LABELS[row])
        return {"image": image, "label": label} if self.kind is dict else self.kind((image, label))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(Pairs()[row] for row in range(6))


def own_collate(items: list[Any]) -> Any:
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


@pytest.mark.parametrize(
    "source",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        (IMAGES.numpy(), LABELS.numpy()),
        (IMAGES.numpy(), LABELS.tolist()),
        TensorDataset(IMAGES, LABELS),
        Pairs(),
        Pairs(list),
        list(Pairs()),
        DataLoader(Pairs(), batch_size=4),
        DataLoader(Pairs(), batch_size=4, shuffle=True, drop_last=True),
        DataLoader(Pairs(), batch_size=2, collate_fn=own_collate),
        DataLoader(Pairs(), batch_size=None),
        DataLoader(Stream(), batch_size=4),
        Stream(),
        (Pairs()[row] for row in range(6)),
    ],
    ids=lambda source: type(source).__name__,
)
def test_inputs_and_labels(source: Any) -> None:
    data = rllc.data.as_data(source)
    images, labels = rows_of(data)
    assert images.equal(IMAGES)
    assert labels.equal(LABELS)
    assert data.fingerprint == Tensors((IMAGES, LABELS)).fingerprint


def test_examples_with_names() -> None:
    for source in (Pairs(dict), {"image": IMAGES, "label": LABELS}, DataLoader(Pairs(dict))):
        batch = rows_of(rllc.data.as_data(source))
        assert batch["image"].equal(IMAGES)
        assert batch["label"].equal(LABELS)


def test_a_loader_gives_the_rows_that_its_sampler_takes() -> None:
    chosen = [4, 1, 2]
    loader = DataLoader(Pairs(), sampler=SubsetRandomSampler(chosen))
    assert rows_of(rllc.data.as_data(loader))[0].equal(IMAGES[[1, 2, 4]])
    assert rows_of(rllc.data.as_data(Subset(Pairs(), chosen)))[0].equal(IMAGES[chosen])
    loader = DataLoader(Pairs(), batch_sampler=[[0, 3], [5]])
    assert rows_of(rllc.data.as_data(loader))[1].equal(LABELS[[0, 3, 5]])
    for sampler in (RandomSampler(Pairs(), replacement=True), WeightedRandomSampler([1.0] * 6, 20)):
        with pytest.raises(InputError, match="rows have weights"):
            rllc.data.as_data(DataLoader(Pairs(), sampler=sampler))


def test_a_collator_that_pads_is_asked_for_single_rows() -> None:
    def pad(items: list[Any]) -> dict[str, Tensor]:
        width = max(len(item) for item in items)
        ids = [item + [0] * (width - len(item)) for item in items]
        mask = [[1] * len(item) + [0] * (width - len(item)) for item in items]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    assert_is_padded(rllc.data.as_data(DataLoader(RAGGED, batch_size=2, collate_fn=pad)))  # type: ignore[arg-type]


def test_data_that_change_are_refused() -> None:
    class Noisy(Pairs):
        def __getitem__(self, row: int) -> Any:
            return torch.rand(2), 1

    with pytest.raises(InputError, match="another example each time"):
        rllc.data.as_data(DataLoader(Noisy()))


def test_a_data_set_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    tokens = datasets.Dataset.from_dict({"input_ids": RAGGED, "text": ["a", "b", "c"]})
    assert_is_padded(rllc.data.as_data(tokens))
    assert rows_of(rllc.data.as_data(tokens, num_rows=2))["input_ids"].tolist() == [
        [5, 6, 7],
        [8, 9, 0],
    ]
    assert_is_padded(rllc.data.as_data(tokens, column="input_ids"))
    assert_is_padded(rllc.data.as_data(tokens.to_iterable_dataset()))
    images = datasets.Dataset.from_dict({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [1, 0]})
    batch = rows_of(rllc.data.as_data(images))
    assert batch["x"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert batch["label"].tolist() == [1, 0]
    assert rows_of(rllc.data.as_data(images, column="x")).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(InputError, match="has no column 'y'"):
        rllc.data.as_data(images, column="y")
    splits = rllc.weights.refinement.product(None, datasets.DatasetDict({"a": images, "b": images}))
    assert [r.data_name for r in splits] == ["a", "b"]


def test_texts_and_labels_of_hugging_face(small_tokenizer: Any) -> None:
    datasets = pytest.importorskip("datasets")
    texts = datasets.Dataset.from_dict({"text": ["the cat", "the dog in"], "label": [1, 0]})
    batch = rows_of(rllc.data.as_data(texts, tokenizer=small_tokenizer))
    assert batch["labels"].tolist() == [1, 0]
    first = batch["input_ids"][0][batch["attention_mask"][0] > 0]
    assert first.tolist() == small_tokenizer("the cat")["input_ids"]


def test_files_of_ids(tmp_path: Path) -> None:
    ids = np.arange(23, dtype=np.uint16)
    ids.tofile(tmp_path / "train.bin")
    expected = torch.arange(20).view(5, 4).int()
    assert rllc.data.as_data(tmp_path / "train.bin", context_length=4).rows.equal(expected)  # type: ignore[attr-defined]
    np.save(tmp_path / "stream.npy", ids)
    np.save(tmp_path / "rows.npy", IDS.numpy())
    assert rows_of(rllc.data.as_data(str(tmp_path / "stream.npy"), context_length=4)).equal(
        expected.long()
    )
    assert rows_of(rllc.data.as_data(tmp_path / "rows.npy")).equal(IDS)
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, 600
    long = (np.arange(600) % 50).astype("<u2")
    (tmp_path / "llm.bin").write_bytes(header.tobytes() + long.tobytes())
    llm_c = rllc.data.as_data(tmp_path / "llm.bin", context_length=100)
    assert rows_of(llm_c).flatten().equal(torch.tensor(long.astype(np.int64)))
    Tokens(IDS, "kept").save(tmp_path / "tokens.npz")
    assert rllc.data.as_data(tmp_path / "tokens.npz").name == "kept"
    with pytest.raises(InputError, match="say how long a row is"):
        rllc.data.as_data(tmp_path / "train.bin")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    with pytest.raises(FileError, match="3 bytes are no row of uint16"):
        rllc.data.as_data(tmp_path / "odd.bin", context_length=4)
    (tmp_path / "bad.npy").write_bytes(b"abc")
    with pytest.raises(FileError, match=r"not a whole \.npy file"):
        rllc.data.as_data(tmp_path / "bad.npy")
    with pytest.raises(FileError, match="no such file"):
        rllc.data.as_data(tmp_path / "none.bin")
    header[2] = 700
    (tmp_path / "cut.bin").write_bytes(header.tobytes() + long.tobytes())
    with pytest.raises(FileError, match="promises 700 tokens, but it holds 600"):
        rllc.data.as_data(tmp_path / "cut.bin", context_length=4)


def test_texts_in_a_file_are_packed(tmp_path: Path, small_tokenizer: Any) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": "the cat sees the dog"}) + "\n" for _ in range(9)))
    data = rllc.data.as_data(path, tokenizer=small_tokenizer, context_length=8)
    assert isinstance(data, Tokens)
    assert data.num_positions == 8


def test_data_larger_than_memory_are_read_by_minibatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = rllc.data.as_data(Pairs())
    np.arange(24, dtype=np.uint16).tofile(tmp_path / "train.bin")
    tokens = rllc.data.as_data(tmp_path / "train.bin", context_length=4)
    monkeypatch.setattr("rllc.data.given.IN_MEMORY", 10)
    monkeypatch.setattr("rllc.data.large.IN_MEMORY", 10)
    large = rllc.data.as_data(DataLoader(Pairs(), batch_size=3))
    assert isinstance(large, Examples)
    chosen = torch.tensor([4, 0])
    for part, expected in zip(large.take(chosen, CPU), in_memory.take(chosen, CPU), strict=True):
        assert part.equal(expected)
    assert large.shape == (1, 2, 2)
    assert large.fingerprint == rllc.data.as_data(Pairs()).fingerprint
    assert large.fingerprint != rllc.data.as_data(Subset(Pairs(), [1, 0, 2, 3, 4, 5])).fingerprint
    mapped = rllc.data.as_data(tmp_path / "train.bin", context_length=4)
    assert isinstance(mapped, TokenArray)
    assert mapped.take(chosen, CPU).equal(tokens.take(chosen, CPU))
    assert mapped.fingerprint == tokens.fingerprint
    assert mapped.largest_id == 23
    assert pickle.loads(pickle.dumps(mapped)).fingerprint == tokens.fingerprint
    ragged = rllc.data.as_data(RAGGED * 2)
    assert ragged.shape == (3,)
    lazy = given._Given("data", None, None, None, None)._rows(
        [{"input_ids": row} for row in RAGGED], range(3), to_example
    )
    assert isinstance(lazy, Examples)
    assert_is_padded(lazy)
    assert lazy.take(torch.tensor([2]), CPU)["input_ids"].tolist() == [[3, 0, 0]]


def test_an_iterable_without_length_is_read_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(rllc.data.as_data(Stream(), num_rows=4)) == 4
    monkeypatch.setattr(given, "_MOST_ROWS", 5)
    with pytest.warns(UserWarning, match="its first 5 rows are taken"):
        assert len(rllc.data.as_data(Stream())) == 5
    generator = (row for row in IDS)
    rllc.data.as_data(generator)
    with pytest.raises(InputError, match="can be read only once"):
        rllc.data.as_data(generator)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (object(), r"must be rllc\.Tokens, .*a DataLoader.*; got object"),
        ([], "the list is empty"),
        (torch.arange(5), r"one row of 5 token ids; .*ids\[None\]"),
        (np.array(["a"]), "an array of numbers, got dtype <U1"),
        ({"code": IDS, "prose": IDS}, "is several data sets"),
        ([torch.ones(2), torch.ones(3)], "must have one shape"),
        ([{"a": 1}, {"b": 2}], "row 0 has a, row 1 has b"),
        ([("text", 1)], "tokenize texts first"),
        ("some text", "no .npy, .npz or .bin file"),
    ],
)
def test_other_things_are_refused(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rllc.data.as_data(source)


def test_fields_travel_to_other_processes(tmp_path: Path) -> None:
    from rllc.sweep.store import Store
    from rllc.sweep.travel import RowsFile, portable_data

    data = rllc.data.as_data(RAGGED)
    there = portable_data(Store(tmp_path), data)
    assert isinstance(there, RowsFile)
    loaded = pickle.loads(pickle.dumps(there)).load()
    assert loaded.fingerprint == data.fingerprint
    assert_is_padded(loaded)


def test_pictures_need_a_transform() -> None:
    pillow = pytest.importorskip("PIL.Image")
    with pytest.raises(InputError, match="scaled as in training"):
        rllc.data.as_data([(pillow.new("L", (2, 2)), 1)])


class Failing:
    """A data set of five rows, of which the last cannot be read."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, row: int) -> torch.Tensor:
        if row == 4:
            raise ValueError("the disk is gone")
        return torch.ones(3)


def test_a_data_set_that_fails_is_an_error_of_ours() -> None:
    with pytest.raises(InputError, match=r"Failing gives no row 4 \(ValueError: the disk is gone"):
        rllc.data.as_data(Failing())


def test_a_data_frame_gets_the_line_to_write() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1.0, 2.0], "label": [0, 1]})
    with pytest.raises(InputError, match=r"is a DataFrame; .*frame\['label'\].to_numpy"):
        rllc.data.as_data(frame)
