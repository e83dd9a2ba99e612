"""Tokenizers: what they keep of a text, the two files, foreign ones."""

import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mlm.data.tokenizer import (
    KINDS,
    load_tokenizer,
    num_ids,
    save_tokenizer,
    special_ids,
    tokenizer_hash,
    train_tokenizer,
)
from mlm.errors import UserError

TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 20,
    "Ünïcode naïve café: Straße, Ærø, İstanbul. " * 20,
    "हिन्दी में लिखना अच्छा है। สวัสดีครับ 你好世界 カタカナ ひらがな 한국어 العَرَبِيَّة " * 20,
    "👨‍👩‍👧 🇩🇪 👍🏽 it😀😀 x_y 3.14 e-mail@example.org — “quotes” " * 20,
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind):
    return train_tokenizer(TEXTS, kind, vocab_size=600, lowercase=False)


def test_special_tokens_come_first_and_frame_a_text(tokenizer):
    assert special_ids(tokenizer).ids == (0, 1, 2, 3, 4)
    names = [tokenizer.id_to_token(i) for i in range(5)]
    assert names == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pair = tokenizer.encode("fox", "dog")
    assert [t for t in pair.tokens if t[0] == "["] == ["[CLS]", "[SEP]", "[SEP]"]
    first = pair.tokens.index("[SEP]") + 1
    assert pair.type_ids == [0] * first + [1] * (len(pair.tokens) - first)
    assert tokenizer.encode("fox").tokens[0] == "[CLS]"


def test_nothing_is_lost_of_any_script(tokenizer):
    for text in TEXTS:
        encoding = tokenizer.encode(text)
        assert 1 not in encoding.ids
        squeezed = tokenizer.decode(encoding.ids).replace(" ", "")
        assert squeezed == text.replace(" ", "")


def test_the_vocabulary_keeps_to_its_size(kind):
    small = train_tokenizer(TEXTS, kind, vocab_size=300)
    assert num_ids(small) <= 300
    assert num_ids(train_tokenizer(["a b"], kind, vocab_size=1000)) < 300


def test_an_unknown_character_costs_itself_alone():
    tokenizer = train_tokenizer(TEXTS, "wordpiece", 600)
    assert "[UNK]" not in tokenizer.encode("it is").tokens
    tokens = tokenizer.encode("it🦄🦄is ㊙fox你魚好", add_special_tokens=False).tokens
    assert tokens.count("[UNK]") == 4
    assert {"it", "fox", "你", "好"} <= set(tokens)


def test_a_long_word_is_not_given_up():
    tokenizer = train_tokenizer(["abcdefghij " * 50], "wordpiece", 100)
    assert 1 not in tokenizer.encode("abcdefghij" * 50).ids


def test_line_breaks_are_tokens_on_bytes_and_white_space_to_wordpiece(kind, tokenizer):
    text = "The fox\n\nand  the \n dog"
    lines = [tokenizer.encode(line, add_special_tokens=False).ids for line in text.splitlines(True)]
    whole = tokenizer.encode(text, add_special_tokens=False)
    assert whole.ids == [i for line in lines for i in line]
    assert ("Ċ" in whole.tokens) == (kind != "wordpiece")
    if kind != "wordpiece":
        assert tokenizer.decode(whole.ids) == text


@pytest.mark.parametrize(
    ("lowercase", "strip_accents", "expected"),
    [
        (False, False, "Äpfel हिन्दी 한국"),
        (True, False, "äpfel हिन्दी 한국"),
        (False, True, "Apfel हनद 한국"),  # Hangul is put together again; every mark goes
        (True, True, "apfel हनद 한국"),
    ],
)
def test_normalisation_is_as_asked(kind, lowercase, strip_accents, expected):
    tokenizer = train_tokenizer(
        ["Äpfel हिन्दी 한국 " * 99], kind, 500, lowercase=lowercase, strip_accents=strip_accents
    )
    ids = tokenizer.encode("Äpfel हिन्दी 한국", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == expected


def test_a_mask_takes_the_space_before_it(kind, tokenizer):
    tokens = tokenizer.encode("The [MASK] fox").tokens
    assert len(tokens) == len(tokenizer.encode("The fox").tokens) + 1
    assert special_ids(tokenizer).mask in tokenizer.encode("The [MASK] fox").ids


@pytest.mark.parametrize("kind_of_words", ["wordpiece", "bpe"])
def test_training_comes_out_the_same_in_every_process(kind_of_words):
    code = (
        "from mlm.data.tokenizer import *; import sys; sys.path.insert(0, 'tests/data');"
        "from test_tokenizer import TEXTS;"
        f"print(tokenizer_hash(train_tokenizer(TEXTS, {kind_of_words!r}, 400)))"
    )
    run = [sys.executable, "-c", code]
    hashes = {subprocess.run(run, capture_output=True, check=True).stdout for _ in range(3)}
    assert len(hashes) == 1


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    save_tokenizer(tokenizer, tmp_path / "t", model_max_length=128)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    again = load_tokenizer(tmp_path / "t")
    assert again.truncation is None
    assert again.padding is None
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)
    for text in TEXTS:
        assert again.encode(text).ids == tokenizer.encode(text).ids
    config = json.loads((tmp_path / "t/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_max_length"] == 128
    assert config["mask_token"] == "[MASK]"


def test_transformers_gets_the_same_ids(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tokenizer, tmp_path / "t", model_max_length=512)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    for text in TEXTS:
        assert theirs(text[:400])["input_ids"] == tokenizer.encode(text[:400]).ids
    assert theirs("fox", "dog")["token_type_ids"] == tokenizer.encode("fox", "dog").type_ids
    assert theirs.mask_token_id == 4


def test_the_hash_sees_what_decides_the_ids(tokenizer):
    same = Tokenizer.from_str(tokenizer.to_str())
    same.enable_truncation(7)
    assert tokenizer_hash(same) == tokenizer_hash(tokenizer)
    same.normalizer = normalizers.Lowercase()
    assert tokenizer_hash(same) != tokenizer_hash(tokenizer)
    more = Tokenizer.from_str(tokenizer.to_str())
    more.add_tokens(["another"])
    assert tokenizer_hash(more) != tokenizer_hash(tokenizer)


def a_foreign_folder(path, names, config):
    vocab = {name: 7 * i for i, name in enumerate(names)} | {"a": 1, "b": 2}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token=names[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(names)
    path.mkdir(exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    for name, content in config.items():
        (path / name).write_text(json.dumps(content))
    return path


def test_the_names_of_other_families_are_known(tmp_path):
    names = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    tokenizer = load_tokenizer(a_foreign_folder(tmp_path, names, {}))
    assert special_ids(tokenizer).ids == (0, 7, 14, 21, 28)
    assert num_ids(tokenizer) == 29


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_names_are_read_from_the_folder(tmp_path, file):
    names = ["NIL", "WHAT", "BEGIN", "END", "HOLE"]
    roles = ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
    config = dict(zip(roles, names, strict=True)) | {"mask_token": {"content": "HOLE"}}
    tokenizer = load_tokenizer(a_foreign_folder(tmp_path, names, {file: config}))
    assert special_ids(tokenizer).ids == (0, 7, 14, 21, 28)
    save_tokenizer(tokenizer, tmp_path / "again", 512)
    assert special_ids(load_tokenizer(tmp_path / "again")).mask == 28


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: damaged") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    names = ["<pad>", "<unk>", "<s>", "</s>", "hole"]
    a_foreign_folder(tmp_path, names, {})
    with pytest.raises(UserError, match=r"no mask token \(\[MASK\] or <mask>\)"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: damaged"):
        load_tokenizer(tmp_path)


def test_bad_requests():
    with pytest.raises(UserError, match=r"tokenizer kind: 'wordpeice'.*did you mean wordpiece"):
        train_tokenizer(TEXTS, "wordpeice")
    with pytest.raises(UserError, match="vocab_size: 100 is too small; bpe needs 261"):
        train_tokenizer(TEXTS, "bpe", 100)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_endless_words_are_learnt_from_in_parts(kind):
    """Learning from a word takes more than linear time; no token needs so long a one."""
    tokenizer = train_tokenizer(["ab" * 4096, "some words of a text"] * 4, kind, vocab_size=300)
    assert max(map(len, tokenizer.get_vocab())) <= 256
    assert tokenizer.decode(tokenizer.encode("ab" * 4096).ids) == "ab" * 4096
