import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_models import TEXTS, save_masked_lm, small_config, tokenizer

from mlm import Embedder, FillMask
from mlm.batch import length_batches, ragged
from mlm.checkpoint import load_masked_lm
from mlm.cli import main
from mlm.errors import UserError
from mlm.training.precision import choose_device

LONG = "the " * 200


@pytest.fixture(scope="module", params=["bert", "modern"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / request.param
    # More rows than tokens, as embeddings that are filled up to a round number have.
    rows = tokenizer().get_vocab_size() + 7
    save_masked_lm(place, small_config(request.param, vocab_size=rows))
    return place


def test_the_scores_are_the_models_own(folder):
    texts = ["The [MASK] sat.", "nothing", "[MASK] and [MASK] " + "on the mat " * 10, "", "[MASK]"]
    answers = FillMask(folder)(texts, top_k=3)
    model = load_masked_lm(folder)
    assert [answer["text"] for answer in answers] == texts
    assert [len(answer["masks"]) for answer in answers] == [1, 0, 2, 0, 1]
    for text, answer in zip(texts, answers, strict=True):
        encoded = tokenizer().encode(text)
        logits = model(ragged([encoded.ids]))
        places = [i for i, token in enumerate(encoded.tokens) if token == "[MASK]"]
        for place, guesses in zip(places, answer["masks"], strict=True):
            scores = logits[place].softmax(-1)
            assert len(guesses) == 3
            for guess in guesses:
                expected = scores[tokenizer().token_to_id(guess["token"])].item()
                assert guess["score"] == pytest.approx(expected, rel=1e-4)
            known = scores[: tokenizer().get_vocab_size()]
            assert guesses[0]["score"] == pytest.approx(known.max().item(), rel=1e-4)
            assert guesses == sorted(guesses, key=lambda guess: -guess["score"])


def test_one_text_is_a_list_of_one_and_top_k_has_bounds(folder):
    fill = FillMask.from_pretrained(folder)
    (answer,) = fill("The [MASK] sat.", top_k=10_000)
    assert len(answer["masks"][0]) == tokenizer().get_vocab_size()
    with pytest.raises(UserError, match="top_k: 0"):
        fill("The [MASK] sat.", top_k=0)
    with pytest.raises(UserError, match="text 2: 202 tokens are more than the model's 64"):
        fill(["The [MASK] sat.", LONG])
    with pytest.raises(UserError, match="text 1: is not valid Unicode"):
        fill("\udcff [MASK]")


def test_a_device_of_torchs_is_one_too(folder):
    cpu = torch.device("cpu")
    assert FillMask(folder, cpu)("a [MASK]") == FillMask(folder, "cpu:0")("a [MASK]")
    assert np.array_equal(Embedder(folder, device=cpu)("a"), Embedder(folder, device="cpu")("a"))


@pytest.mark.parametrize(
    ("device", "choices"),
    [
        *((f"cpu:{n}", "cpu, cpu:0") for n in ("", "x", "1")),
        ("auto:1", "cpu, cpu:0"),
        *((f"cuda:{n}", "cuda, cuda:0, cuda:1") for n in ("", "x", "2", "9", "01", "-1")),
    ],
)
def test_a_number_that_no_device_has_is_one_line(device, choices, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: "cuda" in device)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=f"^--device: {device} is not here; choose {choices}$"):
        choose_device(device)


def test_a_number_of_a_device(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    words = ["cpu", "cpu:0", "cuda", "cuda:1", "gpu:0", "auto:1", torch.device("cuda", 1)]
    found = ["cpu", "cpu", "cuda", "cuda:1", "cuda:0", "cuda:1", "cuda:1"]
    assert [choose_device(word) for word in words] == found


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_vector_does_not_depend_on_its_company(folder, pooling, normalize):
    embedder = Embedder.from_pretrained(folder, pooling, normalize)
    vectors = embedder(TEXTS * 5)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS) * 5, 32)
    encoder = load_masked_lm(folder).encoder
    for text, vector in zip(TEXTS * 5, vectors, strict=True):
        hidden = encoder(ragged([tokenizer().encode(text).ids]))
        expected = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0)}[pooling]
        if normalize:
            expected = expected / expected.norm()
        assert torch.allclose(torch.from_numpy(vector), expected, atol=1e-5)
    assert embedder([]).shape == (0, 32)
    assert embedder("one text").shape == (1, 32)


def test_long_texts_are_cut_and_it_is_said(folder, caplog):
    embedder = Embedder(folder)
    ids = tokenizer().encode(LONG).ids
    cut = ids[:63] + ids[-1:]
    with torch.inference_mode():
        expected = embedder.encoder(ragged([cut])).mean(0)
    assert np.allclose(embedder([LONG, "short"])[0], expected, atol=1e-5)
    assert "1 of 2 texts were cut to 64 tokens" in caplog.text


def test_progress_counts_every_text(folder):
    seen: list[int] = []
    Embedder(folder)(TEXTS, progress=seen.append)
    assert sum(seen) == len(TEXTS)


def test_batches_hold_every_place_once_and_few_tokens():
    lengths = np.random.default_rng(0).integers(1, 100, 500).tolist()
    batches = length_batches(lengths, max_tokens=256)
    assert sorted(np.concatenate(batches)) == list(range(500))
    for batch in batches:
        assert len(batch) * max(lengths[place] for place in batch) <= 256
    assert length_batches([], 256) == []
    assert [b.tolist() for b in length_batches([900, 2], 256)] == [[0], [1]]


def run(capsys, *words) -> tuple[int, list[dict], str]:
    code = main([str(word) for word in words])
    output = capsys.readouterr()
    return code, [json.loads(line) for line in output.out.splitlines()], output.err


def test_fill_mask_prints_json_lines(folder, capsys):
    texts = ["The [MASK] sat.", "naïve [MASK] 東京"]
    code, lines, _ = run(capsys, "fill-mask", "--model", folder, *texts, "--top_k", 2)
    assert code == 0
    assert lines == FillMask(folder)(texts, top_k=2)
    *_, error = run(capsys, "fill-mask", "--model", folder, texts[0], "The <mask> sat.")
    assert error == "mlm: text 2 has no mask; this model's is '[MASK]'\n"
    for words in (
        ("fill-mask", "--model", folder / "none", "x"),
        ("fill-mask", "--model", folder, LONG),
        ("fill-mask", "--model", folder, "The [MASK] sat.", "The <mask> sat."),
        ("fill-mask", "--model", folder),
        ("fill-mask", "--model", folder, "x", "--top_k", 0),
    ):
        code, lines, error = run(capsys, *words)
        assert (code, lines, error.count("\n")) == (2, [], 1)


def read_vectors(path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".parquet":
        return np.stack(pq.read_table(path)["embedding"].to_numpy())
    lines = path.read_text().splitlines()
    return np.array([json.loads(line)["embedding"] for line in lines], np.float32)


@pytest.mark.parametrize("ending", [".jsonl", ".npy", ".parquet"])
def test_embed_writes_one_vector_a_text(folder, capsys, tmp_path, ending):
    (tmp_path / "texts.txt").write_text("one text\n\nanother\n")
    output = tmp_path / "out" / f"vectors{ending}"
    code, lines, _ = run(
        capsys, "embed", "--model", folder, "--input", tmp_path / "texts.txt", "--output", output
    )
    assert code == 0
    assert lines == [{"output": str(output), "texts": 3, "width": 32}]
    assert np.array_equal(read_vectors(output), Embedder(folder)(["one text", "", "another"]))
    assert [p.name for p in output.parent.iterdir()] == [output.name]


def test_embed_reads_a_column(folder, capsys, tmp_path):
    (tmp_path / "rows.csv").write_text("review,label\none text,1\nanother,0\n")
    output = tmp_path / "vectors.npy"
    words = ["embed", "--model", folder, "--input", tmp_path / "rows.csv", "--output", output]
    code, lines, error = run(capsys, *words)
    assert (code, lines) == (2, [])
    assert "no column 'text' among 'review', 'label'" in error
    assert not output.exists()
    options = ["--text_column", "review", "--pooling", "cls", "--normalize", "true"]
    assert run(capsys, *words, *options)[0] == 0
    expected = Embedder(folder, "cls", normalize=True)(["one text", "another"])
    assert np.array_equal(np.load(output), expected)


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("none.txt", "out.npy", "none.txt: no such file"),
        ("texts.txt", "out.csv", "out.csv: vectors go to .jsonl, .npy, .parquet"),
        ("binary.txt", "out.npy", "binary.txt: is a binary file"),
        ("latin.txt", "out.npy", "latin.txt: line 2: invalid UTF-8"),
    ],
)
def test_embed_says_what_is_wrong(folder, capsys, tmp_path, name, output, message):
    (tmp_path / "texts.txt").write_text("one\n")
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01")
    (tmp_path / "latin.txt").write_bytes(b"one\n\xe9\n")
    code, lines, error = run(
        capsys,
        "embed",
        "--model",
        folder,
        "--input",
        tmp_path / name,
        "--output",
        tmp_path / output,
    )
    assert (code, lines) == (2, [])
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / output).exists()
