"""New tokens: found as whole words, and their rows are the means of their old pieces' rows."""

import json

import numpy as np
import pytest
import torch
from small_models import TEXTS, save_masked_lm, small_config, tokenizer
from tokenizers import normalizers, pre_tokenizers

from mlm.checkpoint import build_masked_lm, read_folder
from mlm.cli import main
from mlm.data.extension import extend_tokenizer, extends, read_words
from mlm.data.tokenizer import num_ids, train_tokenizer
from mlm.errors import UserError
from mlm.extending import extend_vocabulary

WORDS = ["catmat", "Filmdog", "quietly", "東京"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_words_become_tokens_and_all_else_stays(kind):
    old = tokenizer(kind)
    new = extend_tokenizer(old, WORDS)
    text = "The catmat saw a FILMDOG, catmats too."
    tokens = new.encode(text).tokens
    assert "catmat" in tokens
    assert "filmdog" in tokens
    assert tokens.count("catmat") == 1  # not inside `catmats`
    for text in TEXTS:
        if "quietly" not in text and "東京" not in text:
            assert new.encode(text).ids == old.encode(text).ids
    assert extends(new, old)
    assert not extends(old, new)
    assert not extends(old, old)
    assert not extends(train_tokenizer(["other words here " * 9], vocab_size=60), old)


def test_a_known_word_is_no_new_token():
    once = extend_tokenizer(tokenizer(), ["catmat"])
    assert num_ids(once) == num_ids(tokenizer()) + 1
    assert num_ids(extend_tokenizer(once, ["catmat", "CATMAT"])) == num_ids(once)


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_new_rows_are_means(rows, tmp_path):
    old = tokenizer()
    config = small_config("bert", vocab_size=num_ids(old) + rows)
    save_masked_lm(tmp_path / "m", config)
    folder = read_folder(tmp_path / "m")
    new = extend_tokenizer(old, WORDS)
    extended = extend_vocabulary(folder, new)
    assert extended.config.vocab_size == max(config.vocab_size, num_ids(new))
    for name in ("encoder.embeddings.word.weight", "head.bias"):
        before, after = folder.state[name], extended.state[name]
        assert torch.equal(after[: num_ids(old)], before[: num_ids(old)])
        for word in ("catmat", "filmdog"):
            pieces = old.encode(word, add_special_tokens=False).ids
            assert len(pieces) > 1
            assert torch.allclose(after[new.token_to_id(word)], before[pieces].mean(0))
    build_masked_lm(extended)


def test_a_model_goes_on_with_a_store_of_more_tokens(tmp_path, capsys):
    save_masked_lm(tmp_path / "m", small_config("modern"))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"{text} catmat {i}" for i in range(60) for text in TEXTS))
    (tmp_path / "words.txt").write_text("catmat\nfilmdog\n")
    words = f"prepare --corpus {corpus} --output {tmp_path}/store --tokenizer {tmp_path}/m"
    words += f" --add_tokens {tmp_path}/words.txt"
    assert main(words.split()) == 0
    words = f"pretrain --store {tmp_path}/store --run_dir {tmp_path}/run --model {tmp_path}/m"
    words += " --budget 2steps --data.sequence_length 32 --data.batch_size 4"
    assert main([*words.split(), "--trainer.accelerator", "cpu"]) == 0
    assert "more tokens than" in capsys.readouterr().err
    folder = read_folder(tmp_path / "run" / "model")
    assert folder.tokenizer.token_to_id("catmat") is not None
    assert folder.config.vocab_size == small_config("modern").vocab_size + 2
    values = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert values["architectures"] == ["ModernBertForMaskedLM"]
    assert np.isfinite(folder.state["head.bias"].numpy()).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has no words"), ("one\ntwo words\n", "line 2"), (None, "cannot be read")],
)
def test_what_is_no_list_of_words_is_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "w.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        read_words(tmp_path / "w.txt")


def test_ideographs_that_the_normalizer_parts_are_one_token_when_added():
    old = tokenizer("wordpiece")
    old.normalizer = normalizers.BertNormalizer()
    old.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    word = "\u9ad8\u8840\u538b"
    new = extend_tokenizer(old, [word])
    assert extends(new, old)
    assert len(new.encode(f"the {word}", add_special_tokens=False).ids) == 2


def test_a_mark_at_the_start_of_a_file_is_no_part_of_a_word(tmp_path):
    (tmp_path / "words.txt").write_text("\ufeffcatmat\n", encoding="utf-8")
    assert read_words(tmp_path / "words.txt") == ["catmat"]
