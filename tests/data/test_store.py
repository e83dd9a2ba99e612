"""The store: what is written is what is read, and damage is never trained on."""

import json
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import datasets
import numpy as np
import pytest

import mlm.data.store_writer as store_writer
from mlm.data.packing import num_rows, row_spans
from mlm.data.store import TokenSplit, TokenStore
from mlm.data.store_writer import SplitWriter, building, new_store
from mlm.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from mlm.errors import UserError

DOCUMENTS = [[5, 6, 7], [8], [9] * 10, [10, 11]]


def write(path: Path, documents=DOCUMENTS, dtype="uint16") -> TokenSplit:
    writer = SplitWriter(path, path.name, np.dtype(dtype))
    for document in documents:
        writer.add(np.array(document, dtype=dtype), np.array([len(document)]))
    writer.close()
    return TokenSplit(path)


@pytest.fixture(params=[4, 1 << 22], ids=["many batches", "one batch"])
def split(request, tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "_BATCH_TOKENS", request.param)
    return write(tmp_path / "train")


def test_what_is_written_is_read(split):
    everything = [token for document in DOCUMENTS for token in document]
    ends = np.cumsum([len(d) for d in DOCUMENTS])
    assert (split.num_documents, split.num_tokens) == (4, 16)
    for start in range(17):
        for stop in range(start, 17):
            assert split.tokens(start, stop).tolist() == everything[start:stop]
            assert split.tokens(start, stop).dtype == np.uint16
    np.testing.assert_array_equal(np.asarray(split.ends), ends)
    for start in range(-5, 6):
        for stop in range(-5, 6):
            np.testing.assert_array_equal(split.ends[start:stop], ends[start:stop])
    assert [split.ends[i] for i in range(-4, 4)] == [*ends, *ends]
    for row_length in (4, 8, 100):
        assert num_rows(split.ends, row_length) == num_rows(ends, row_length)
        for row in range(num_rows(ends, row_length)):
            assert row_spans(split.ends, row, row_length) == row_spans(ends, row, row_length)


def test_beyond_the_end_is_an_error(split):
    for index in (4, -5):
        with pytest.raises(IndexError):
            split.ends[index]
    with pytest.raises(IndexError):
        split.tokens(0, 17)


def test_a_copy_for_a_worker_maps_the_files_itself(split):
    packed = pickle.dumps(split)
    assert len(packed) < 500
    assert pickle.loads(packed).tokens(0, 16).tolist() == split.tokens(0, 16).tolist()


def test_slices_are_views_of_the_file(tmp_path):
    split = write(tmp_path / "train")
    assert not split.tokens(2, 9).flags.owndata
    assert not split.tokens(2, 9).flags.writeable


def test_datasets_opens_it(split):
    found = datasets.load_from_disk(str(split.directory))
    assert found["input_ids"][:] == DOCUMENTS
    assert found.features["input_ids"].feature.dtype == "uint16"


def test_documents_may_come_in_parts_and_empty_ones_leave_no_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "_BATCH_TOKENS", 3)
    writer = SplitWriter(tmp_path / "train", "train", np.dtype("uint8"))
    for ids, ends in [([1, 2], []), ([3, 4, 5], [1, 1, 2]), ([], []), ([6], [1, 1]), ([], [0])]:
        writer.add(np.array(ids, dtype=np.uint8), np.array(ends, dtype=np.int64))
    writer.close()
    assert (writer.documents, writer.tokens) == (3, 6)
    assert datasets.load_from_disk(str(tmp_path / "train"))["input_ids"][:] == [
        [1, 2, 3],
        [4],
        [5, 6],
    ]


def test_a_document_beyond_all_measure_goes_on_in_another_row(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "_BATCH_TOKENS", 4)
    monkeypatch.setattr(store_writer, "_LONGEST_DOCUMENT", 8)
    writer = SplitWriter(tmp_path / "train", "train", np.dtype("uint8"))
    for _ in range(5):
        writer.add(np.arange(5, dtype=np.uint8), np.array([], dtype=np.int64))
    writer.add(np.arange(1, dtype=np.uint8), np.array([1]))
    writer.close()
    split = TokenSplit(tmp_path / "train")
    assert split.tokens(0, 26).tolist() == [*range(5)] * 5 + [0]
    assert 1 < split.num_documents < 5


@pytest.fixture
def store(tmp_path) -> Path:
    tokenizer = train_tokenizer(["some words to learn"], "wordpiece", 60)
    with new_store(tmp_path / "store") as (draft, manifest):
        write(draft / "train")
        write(draft / "validation", [[5, 6]])
        save_tokenizer(tokenizer, draft / "tokenizer", 512)
        manifest["vocab_size"] = 60
    return tmp_path / "store"


def test_a_store_opens(store):
    found = TokenStore.open(store)
    assert found.vocab_size == 60
    assert found.split("validation").num_tokens == 2
    assert load_tokenizer(found.tokenizer_dir).get_vocab_size() <= 60
    assert [p.name for p in store.parent.iterdir()] == ["store"]
    assert datasets.load_from_disk(str(store))["validation"]["input_ids"][:] == [[5, 6]]
    assert found.is_verified


FILES = [
    "train/data-00000-of-00001.arrow",
    "validation/state.json",
    "tokenizer/tokenizer.json",
    "dataset_dict.json",
]


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(store, file):
    (store / file).unlink()
    with pytest.raises(UserError, match=f"{file}: missing from the token store"):
        TokenStore.open(store)


@pytest.mark.parametrize("file", FILES)
def test_a_cut_file_is_named(store, file):
    data = (store / file).read_bytes()
    (store / file).write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"{file}: damaged"):
        TokenStore.open(store)


@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
def test_a_flipped_bit_is_found(store, file):
    data = bytearray((store / file).read_bytes())
    data[len(data) // 2] ^= 1
    (store / file).write_bytes(data)
    with pytest.raises(UserError, match=f"{file}: damaged"):
        TokenStore.open(store)


def test_a_large_store_is_verified_when_that_is_asked_for(store, monkeypatch):
    monkeypatch.setattr("mlm.data.store._VERIFIED_AT_OPENING", 0)
    file = store / FILES[0]
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    found = TokenStore.open(store)
    assert not found.is_verified
    with pytest.raises(UserError, match="arrow: damaged"):
        found.verify()


def test_no_store_there(tmp_path):
    with pytest.raises(UserError, match="no token store there"):
        TokenStore.open(tmp_path)


def test_a_store_of_another_format(store):
    from mlm.data.store import manifest_hash

    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["format"] = 99
    manifest["sha256"] = manifest_hash(manifest)
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="a token store of format 99"):
        TokenStore.open(store)


def test_another_tokenizer_is_refused(store):
    found = TokenStore.open(store)
    found.check_tokenizer(load_tokenizer(store / "tokenizer"), "runs/a/model")
    other = train_tokenizer(["quite other words"], "wordpiece", 60)
    with pytest.raises(UserError, match="belongs to another tokenizer than runs/a/model"):
        found.check_tokenizer(other, "runs/a/model")


def test_what_fails_leaves_nothing(tmp_path):
    def fail():
        with (
            building(tmp_path / "store", lambda: None),
            new_store(tmp_path / "store") as (draft, _),
        ):
            write(draft / "train")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not list(tmp_path.iterdir())


def hold(path: str, ready, go) -> None:
    with building(Path(path), lambda: None):
        (Path(path).parent / ".store.tmp-1-abc").mkdir()
        ready.set()
        go.wait(20)


def test_the_lock_is_waited_for_and_ends_with_its_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path / "store"), ready, go))
    other.start()
    assert ready.wait(30)
    waited = []

    def waiting():
        waited.append(True)
        os.kill(other.pid, signal.SIGKILL)

    with building(tmp_path / "store", waiting):
        assert waited
        assert not (tmp_path / ".store.tmp-1-abc").exists()  # what the killed one left
    other.join()
    assert not list(tmp_path.iterdir())
