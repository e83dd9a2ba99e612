"""`mlm prepare` from end to end: the store, the report, running again, bad input, signals."""

import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlm.data.corpus import read_documents
from mlm.data.encoding import text_hash
from mlm.data.prepare import PrepareOptions, prepare
from mlm.data.store import TokenStore
from mlm.data.tokenizer import load_tokenizer, save_tokenizer, special_ids, train_tokenizer
from mlm.errors import UserError


def some_documents(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bdfgkl" for b in "aeiou" for c in ["", "n", "rd", "t."]]
    return [
        "\n".join(
            " ".join(rng.choices(words, k=rng.randint(3, 40))) for _ in range(rng.randint(1, 5))
        )
        for _ in range(count)
    ]


@pytest.fixture
def options(tmp_path) -> PrepareOptions:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(some_documents(400)))
    return PrepareOptions([str(corpus)], str(tmp_path / "store"), vocab_size=300, num_processes=1)


def decoded(store: Path, split: str) -> list[list[int]]:
    found = TokenStore.open(store).split(split)
    return [d.tolist() for d in np.split(found.tokens(0, found.num_tokens), found.ends[:-1])]


def names_beside(store: str) -> list[str]:
    return sorted(p.name for p in Path(store).parent.iterdir())


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize("processes", [1, 2])
def test_every_document_once_and_as_the_tokenizer_has_it(options, kind, processes, monkeypatch):
    monkeypatch.setattr("mlm.data.prepare._BATCH", 5000)
    monkeypatch.setattr("mlm.data.corpus.PIECE", 200)  # most documents go in pieces
    options = replace(options, tokenizer_kind=kind, num_processes=processes, validation_share=0.1)
    report = prepare(options)
    tokenizer = load_tokenizer(Path(options.output) / "tokenizer")
    special = special_ids(tokenizer)
    expected = [
        tokenizer.encode(d, add_special_tokens=False).ids for d in read_documents(options.corpus)
    ]
    train, validation = (decoded(Path(options.output), s) for s in ("train", "validation"))
    assert sorted(train + validation) == sorted(expected)
    assert train == [ids for ids in expected if ids in train]  # in the order of the corpus
    assert not any(i in ids for ids in expected for i in (special.cls, special.sep, special.pad))
    assert report["status"] == "prepared"
    assert report["documents"] == 400
    assert report["train_documents"] == len(train)
    assert report["validation_documents"] == len(validation)
    assert report["train_tokens"] == sum(map(len, train))
    words = sum(len(d.split()) for d in read_documents(options.corpus))
    assert report["tokens_per_word"] == pytest.approx(sum(map(len, expected)) / words, abs=1e-4)
    assert report["unknown_share"] == 0
    assert names_beside(options.output) == ["corpus.txt", "store"]


def test_the_split_is_by_the_documents_hash(options):
    prepare(replace(options, validation_share=0.1, seed=3))
    tokenizer = load_tokenizer(Path(options.output) / "tokenizer")
    held = [d for d in read_documents(options.corpus) if text_hash(d, 3) < 0.1 * 2**64]
    assert decoded(Path(options.output), "validation") == [
        tokenizer.encode(d, add_special_tokens=False).ids for d in held
    ]


def test_the_same_comes_out_again(options, tmp_path):
    prepare(options)
    prepare(replace(options, output=str(tmp_path / "other"), num_processes=2))
    for file in ("train/data-00000-of-00001.arrow", "tokenizer/tokenizer.json"):
        assert (tmp_path / "store" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_the_manifest(options):
    prepare(options)
    manifest = TokenStore.open(options.output).manifest
    files = {p.relative_to(options.output).as_posix() for p in Path(options.output).rglob("*.*")}
    assert files - {"manifest.json"} == set(manifest["files"])
    train = manifest["splits"]["train"]
    assert train["characters"] > train["tokens"] > train["words"] > train["documents"] > 0
    assert manifest["options"]["vocab_size"] == 300
    assert manifest["sources"][0]["bytes"] == Path(options.corpus[0]).stat().st_size


def test_again_does_nothing_and_says_so(options, capsys):
    first = prepare(options)
    stamp = Path(options.output).stat().st_mtime_ns
    second = prepare(replace(options, num_processes=2))
    assert second == first | {"status": "unchanged"}
    assert Path(options.output).stat().st_mtime_ns == stamp
    assert "nothing to do" in capsys.readouterr().err


def test_a_corpus_that_was_moved_or_touched_is_the_same(options):
    prepare(options)
    moved = Path(options.corpus[0]).rename(Path(options.output).parent / "moved.txt")
    os.utime(moved, (1, 1))
    assert prepare(replace(options, corpus=[str(moved)]))["status"] == "unchanged"
    dated = moved.rename(moved.with_name("moved.2024.txt"))
    assert prepare(replace(options, corpus=[str(dated)]))["status"] == "unchanged"


def test_an_ending_that_would_be_read_in_another_way_is_another_corpus(options, tmp_path):
    packed = tmp_path / "corpus.txt.gz"
    packed.write_bytes(gzip.compress(Path(options.corpus[0]).read_bytes()))
    prepare(replace(options, corpus=[str(packed)]))
    moved = packed.rename(tmp_path / "moved.txt.GZ")
    assert prepare(replace(options, corpus=[str(moved)]))["status"] == "unchanged"
    bare = moved.rename(tmp_path / "moved.txt")
    with pytest.raises(UserError, match=r"another corpus \(.*moved\.txt differs"):
        prepare(replace(options, corpus=[str(bare)]))


def test_another_corpus_or_other_options_are_refused(options, tmp_path):
    prepare(options)
    manifest = (tmp_path / "store/manifest.json").read_bytes()
    cases = [
        ({"vocab_size": 299}, "with vocab_size 300, not 299"),
        ({"lowercase": False}, "with lowercase True, not False"),
        ({"validation_share": 0.2}, "with validation_share"),
        ({"seed": 1}, "with seed 0, not 1"),
        ({"corpus": options.corpus * 2}, "from 1 files or sets, not 2"),
        (
            {"tokenizer": str(tmp_path / "store/tokenizer"), "vocab_size": 16_384},
            "given tokenizer|trained",
        ),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            prepare(replace(options, **changes))
    text = Path(options.corpus[0]).read_text()
    Path(options.corpus[0]).write_text(text.replace("ba", "be"))  # of the same size
    with pytest.raises(UserError, match=r"another corpus \(.*corpus\.txt differs"):
        prepare(options)
    assert (tmp_path / "store/manifest.json").read_bytes() == manifest


def test_where_there_are_no_locks_it_says_so_and_goes_on(options, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", refuse)
    assert prepare(options)["status"] == "prepared"
    lines = [line for line in capsys.readouterr().err.splitlines() if "no locks" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"only one run writes in {tmp_path}")
    assert names_beside(options.output) == ["corpus.txt", "store"]


def test_a_store_that_was_damaged_is_not_called_done(options):
    prepare(options)
    (Path(options.output) / "train/state.json").unlink()
    with pytest.raises(UserError, match=r"state\.json: missing"):
        prepare(options)


def test_an_existing_tokenizer_is_used(options, tmp_path):
    own = train_tokenizer(["quite other words " + "abcdefghijklmnopqrstuvwxyz ."], "wordpiece", 80)
    save_tokenizer(own, tmp_path / "own", 512)
    options = replace(options, vocab_size=16_384, tokenizer=str(tmp_path / "own"))
    report = prepare(options)
    assert report["vocab_size"] == own.get_vocab_size()
    TokenStore.open(options.output).check_tokenizer(own, "own")
    assert prepare(options)["status"] == "unchanged"
    for name, value in (("vocab_size", 80), ("lowercase", False), ("tokenizer_kind", "bpe")):
        with pytest.raises(UserError, match=f"{name}: the tokenizer given has its own"):
            prepare(replace(options, **{name: value}))
    save_tokenizer(train_tokenizer(["a b c " * 9], "wordpiece", 60), tmp_path / "own", 512)
    with pytest.raises(UserError, match="with another tokenizer"):
        prepare(options)


def test_one_document_is_cut_and_empty_ones_are_counted(options, tmp_path):
    corpus = tmp_path / "one.jsonl"
    rows = ["", "\n".join(f"paragraph {i}" for i in range(50)), " ", None]
    corpus.write_text("".join(json.dumps({"body": row}) + "\n" for row in rows))
    report = prepare(replace(options, corpus=[str(corpus)], text_column="body"))
    assert (report["train_documents"], report["validation_documents"]) == (1, 1)
    assert report["empty_documents"] == 3


def test_unknown_and_invalid_characters_are_counted(options, tmp_path):
    save_tokenizer(train_tokenizer(["a b " * 99], "wordpiece", 60), tmp_path / "ab", 512)
    corpus = tmp_path / "odd.txt"
    corpus.write_bytes(b"a b a b\n\na ? a \xff\n\nb b b b")
    odd = replace(options, corpus=[str(corpus)], tokenizer=str(tmp_path / "ab"), vocab_size=16_384)
    with pytest.raises(UserError, match=r"odd\.txt: line 3: invalid UTF-8"):
        prepare(odd)
    assert "store" not in names_beside(odd.output)
    report = prepare(replace(odd, invalid_utf8="replace"))
    assert report["invalid_characters"] == 1
    assert report["unknown_share"] == pytest.approx(2 / 12, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"bad\.txt: holds no text"),
        ("\n \n\n\n", r"bad\.txt: holds no text"),
        ("word", r"bad\.txt: a single word is too little"),
        ("same\n\n" * 5, r"bad\.txt: all 5 documents are the same"),
    ],
)
def test_too_little_text(options, tmp_path, content, message):
    (tmp_path / "bad.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        prepare(replace(options, corpus=[str(tmp_path / "bad.txt")]))
    assert names_beside(options.output) == ["bad.txt", "corpus.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": ["/missing.txt"]}, r"/missing\.txt: no such file"),
        ({"corpus": []}, "corpus: names no file"),
        ({"tokenizer": "/missing"}, "missing.*no such file"),
        ({"vocab_size": 3}, "vocab_size: 3 is too small"),
        ({"output": "/"}, "output: / is no place for a store"),
        ({"text_column": "body"}, "text_column: no source is a table"),
        ({"validation_share": 0.0}, "validation_share: 0.0 is not in"),
        ({"validation_share": 0.7}, "validation_share: 0.7 is not in"),
        ({"num_processes": 0}, "num_processes: 0 must lie between 1 and"),
        ({"seed": 2**63}, "does not fit"),
    ],
)
def test_bad_options_leave_nothing(options, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(
            replace(options, **({"vocab_size": 16_384} if "tokenizer" in changes else {}) | changes)
        )
    assert names_beside(options.output) == ["corpus.txt"]


def test_a_place_that_is_taken_is_left_alone(options):
    Path(options.output).mkdir()
    (Path(options.output) / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is no token store"):
        prepare(options)
    assert (Path(options.output) / "thesis.tex").read_text() == "years of work"
    Path(options.output, "thesis.tex").unlink()
    assert prepare(options)["status"] == "prepared"  # an empty folder is no one's


def command(options: PrepareOptions, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "mlm", "prepare", "--corpus", *options.corpus),
        *("--output", options.output, "--vocab_size", str(options.vocab_size), *more),
    ]


def test_the_command_prints_a_report_and_two_at_once_build_one_store(options, tmp_path):
    both = [
        subprocess.Popen(
            command(options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ends = [process.communicate(timeout=120) for process in both]
    assert [p.returncode for p in both] == [0, 0], ends
    reports = [json.loads(out) for out, _ in ends]
    assert sorted(r["status"] for r in reports) == ["prepared", "unchanged"]
    assert len({json.dumps(r | {"status": ""}) for r in reports}) == 1
    assert names_beside(options.output) == ["corpus.txt", "store"]


def test_the_command_without_torch_and_its_one_line(options):
    code = "import sys; sys.modules['torch'] = None; from mlm.cli import main; sys.exit(main())"
    words = [*command(options)[3:], "--invalid_utf8", "replace"]
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    words[words.index("300")] = "400"
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(
        f"mlm: {options.output}: was prepared with vocab_size 300, not 400"
    )
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left_after_a_signal(options, tmp_path, sent):
    document = "\n".join(some_documents(100) * 30)
    large = "".join(f"{i}\n{document}\n\n" for i in range(60))
    (tmp_path / "large.txt").write_text(large)
    save_tokenizer(train_tokenizer([document], "wordpiece", 200), tmp_path / "t", 512)
    options = replace(options, corpus=[str(tmp_path / "large.txt")], vocab_size=16_384)
    words = command(options, "--tokenizer", str(tmp_path / "t"), "--num_processes", "2")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 240
    while not any(tmp_path.glob(".store.tmp-*/validation")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert process.poll() is None, process.communicate()
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}.get(sent, -sent), errors
    assert "Traceback" not in errors
    group = process.pid
    while subprocess.run(["pgrep", "-g", str(group)], capture_output=True).stdout:
        assert time.monotonic() < deadline, "a tokenising process outlived its parent"
        time.sleep(0.05)
    here = ["corpus.txt", "large.txt", "t"]
    if sent == signal.SIGKILL:  # no one can tidy up then: the next run does
        assert any(name.startswith(".store") for name in names_beside(options.output))
        words[words.index(options.corpus[0])] = str(tmp_path / "corpus.txt")
        assert subprocess.run(words, capture_output=True).returncode == 0
        here.append("store")
    assert names_beside(options.output) == sorted(here)
