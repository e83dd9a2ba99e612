"""Prompts: against transformers and `FillMask`, what is cut, and what is refused."""

import json
import shutil

import pytest
import torch
from toy import toy_config

from mlm.checkpoint import load_masked_lm, read_folder, save_folder
from mlm.cli import main
from mlm.data.tokenizer import special_ids, train_tokenizer
from mlm.errors import UserError
from mlm.inference import FillMask
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel
from tasks.folders import load_task_folder, start_model
from tasks.inference import Predictor
from tasks.options import ModelOptions
from tasks.prompt_classification import PromptClassification, fill, word_ids
from tasks.settings import TaskSettings

PATTERN = "{text} the film is [MASK]"
WORDS = {"neg": ["dull", "boring"], "pos": ["wonderful"]}
OPTIONS = ["--task", "prompt_classification", "--data.pattern", PATTERN, "--data.verbaliser"]
OPTIONS += ["{neg: [dull, boring], pos: wonderful}"]
QUICK = ["--trainer.accelerator", "cpu", "--logging.wandb", "off"]
TEXTS = ["a story about people", "", "their house is funny"]


def started(directory, pattern=PATTERN, words=WORDS, **settings):
    """The task, and the model that training starts from."""
    folder = read_folder(directory)
    task = PromptClassification(TaskSettings(pattern=pattern, verbaliser=words, **settings))
    task.open_folder(folder)
    task.settle(folder.config)
    model = start_model(ModelOptions(str(directory)), folder, task, folder.config)
    return task, model.eval(), folder.tokenizer


def batch_of(task, texts, tokenizer):
    return task.collate(task.encode([(text,) for text in texts], tokenizer))


# --- numbers ---


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_logits_and_gradients_are_those_of_transformers_masked_lm(pretrained, family):
    from transformers import AutoModelForMaskedLM

    task, model, tokenizer = started(pretrained[family])
    theirs = AutoModelForMaskedLM.from_pretrained(pretrained[family]).eval()
    outputs = model(batch_of(task, TEXTS, tokenizer))
    dull, boring, wonderful = map(tokenizer.token_to_id, ["dull", "boring", "wonderful"])
    expected = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer.encode(fill(PATTERN, ["text"], [text], "[MASK]")[0]).ids])
        (mask,) = (ids[0] == special_ids(tokenizer).mask).nonzero()[:, 0]
        logits = theirs(ids).logits[0, mask]
        expected.append(torch.stack([logits[[dull, boring]].logsumexp(0), logits[wonderful]]))
    expected = torch.stack(expected)
    torch.testing.assert_close(outputs, expected, atol=2e-5, rtol=1e-4)

    labels = torch.tensor([0, 1, 1])
    task.training_loss(outputs, labels)[0].backward()
    torch.nn.functional.cross_entropy(expected, labels, reduction="sum").backward()
    for ours, other in [
        (model.encoder.embeddings.word.weight, theirs.get_input_embeddings().weight),
        (model.head.bias, theirs.get_output_embeddings().bias),
        (model.head.dense.weight, head_dense(theirs).weight),
    ]:
        torch.testing.assert_close(ours.grad, other.grad, atol=2e-5, rtol=1e-3)


def head_dense(model):
    return model.cls.predictions.transform.dense if hasattr(model, "cls") else model.head.dense


def test_probabilities_are_fill_masks_shares(pretrained):
    task, model, tokenizer = started(pretrained["modern"])
    found = task.predictions(model(batch_of(task, TEXTS, tokenizer)))
    filled = [fill(PATTERN, ["text"], [text], "[MASK]")[0] for text in TEXTS]
    for ours, theirs in zip(
        found, FillMask(pretrained["modern"])(filled, top_k=10**6), strict=True
    ):
        scores = {g["token"]: g["score"] for g in theirs["masks"][0]}
        neg, pos = scores["dull"] + scores["boring"], scores["wonderful"]
        assert ours["scores"] == pytest.approx({"neg": neg / (neg + pos), "pos": pos / (neg + pos)})
        assert list(ours) == ["label", "score", "scores"]


def test_a_linear_head_has_rows_of_its_own(tokenizer, tmp_path):
    config = toy_config("modern", tokenizer, lm_head="linear")
    state = MaskedLanguageModel(config).state_dict()
    save_folder(
        tmp_path / "m", config=config, head="masked_lm", state=state, tokenizer=tokenizer, info={}
    )
    task, model, _ = started(tmp_path / "m", words={"a": ["dull"], "b": ["funny"]})
    batch = batch_of(task, TEXTS, tokenizer)
    whole = load_masked_lm(tmp_path / "m")(batch)
    ids = [tokenizer.token_to_id(word) for word in ("dull", "funny")]
    torch.testing.assert_close(model(batch), whole[:, ids])


# --- patterns and their tokens ---


def test_a_filled_pattern_is_read_as_any_text(tokenizer):
    for kind in ("wordpiece", "bpe", "unigram"):
        reader = train_tokenizer([f"{t} so it was " for t in TEXTS] * 9, kind, vocab_size=320)
        task = PromptClassification(
            TaskSettings(pattern="So: {text} it was [MASK].", verbaliser=WORDS, max_length=64)
        )
        for text, example in zip(TEXTS, task.encode([(t,) for t in TEXTS], reader), strict=True):
            ids = reader.encode(f"So: {text} it was [MASK].").ids
            assert example.input_ids.tolist() == ids
            assert ids[example.mask] == special_ids(reader).mask


def test_a_mask_in_a_text_is_not_the_patterns(tokenizer):
    task = PromptClassification(TaskSettings(pattern=PATTERN, verbaliser=WORDS, max_length=64))
    (example,) = task.encode([("a [MASK] film",)], tokenizer)
    assert example.mask == len(example.input_ids) - 2


@pytest.mark.parametrize("truncation", ["head", "tail", "both"])
def test_only_the_text_is_cut(pretrained, tokenizer, truncation):
    task, _, _ = started(pretrained["modern"], max_length=12, truncation=truncation)
    words = ["a", "story", "about", "people", "and", "their", "house", "with", "the", "film"]
    (example,) = task.encode([(" ".join(words),)], tokenizer)
    found = [tokenizer.id_to_token(i) for i in example.input_ids]
    kept = {"head": words[:6], "tail": words[-6:], "both": [words[0], *words[-5:]]}[truncation]
    assert found == ["[CLS]", *kept, "the", "film", "is", "[MASK]", "[SEP]"]
    assert example.truncated
    assert found[example.mask] == "[MASK]"


def test_windows_each_have_the_pattern(pretrained, tokenizer):
    task, _, _ = started(pretrained["modern"], max_length=10, long_texts="windows", stride=1)
    text = "a story about people and their house"
    found = task.encode([("a",), (text,)], tokenizer)
    shown = [tokenizer.decode(e.input_ids.tolist(), skip_special_tokens=False) for e in found]
    frame = "[CLS] {} the film is [MASK] [SEP]"
    parts = ["a", "a story about people", "people and their house"]
    assert shown == [frame.format(part) for part in parts]
    assert [e.row for e in found] == [0, 1, 1]
    assert all(e.input_ids[e.mask] == special_ids(tokenizer).mask for e in found)


def test_of_a_pair_the_longer_text_is_cut(tokenizer):
    pattern = "{sentence2} is [MASK], {sentence1}"
    task = PromptClassification(TaskSettings(pattern=pattern, verbaliser=WORDS, max_length=12))
    long, short = "a story about people and their house with a film", "funny film"
    for pair, kept in {
        (long, short): (long.split()[:5], short.split()),
        (short, long): (short.split(), long.split()[:5]),
        (long, long): (long.split()[:3], long.split()[:4]),
    }.items():
        (example,) = task.encode([pair], tokenizer)
        found = [tokenizer.id_to_token(i) for i in example.input_ids]
        comma = tokenizer.encode(",", add_special_tokens=False).tokens
        assert found == ["[CLS]", *kept[1], "is", "[MASK]", *comma, *kept[0], "[SEP]"]


def test_a_word_is_the_token_that_stands_in_the_masks_place():
    reader = train_tokenizer(["it was great, great it was"] * 20, "bpe", vocab_size=300)
    ((id_,),) = word_ids({"x": ["great"]}, "{text} it was [MASK].", reader)
    assert reader.id_to_token(id_) == "Ġgreat"


# --- a run, its folder and its use ---


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, pretrained, toy):
    run = tmp_path_factory.mktemp("prompt") / "run"
    words = ["finetune", *OPTIONS, "--model", pretrained["bert"], "--run_dir", run, *QUICK]
    words += ["--train", toy["train"], "--validation", toy["validation"], "--optimizer.lr", 3e-3]
    assert main([*map(str, words), "--trainer.max_epochs", "12"]) == 0
    return run


def test_it_learns_and_is_evaluated_from_its_folder(tuned, toy, capsys):
    assert main(["evaluate", "--model", str(tuned / "model"), "--data", str(toy["test"])]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["accuracy"] > 0.9
    assert {"loss", "macro_f1", "mcc", "f1"} <= scores.keys()
    assert (tuned / "confusion_matrix.csv").is_file()


def test_it_predicts_as_a_classifier_does(tuned, capsys):
    assert main(["predict", "--model", str(tuned / "model"), "--text", "a dull film"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["text", "label", "score", "scores"]
    assert answer["label"] == "neg"
    assert list(answer["scores"]) == ["neg", "pos"]


def test_the_folder_is_a_masked_language_model(tuned):
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(tuned / "model").eval()
    task, tokenizer = load_task_folder(tuned / "model")[1:]
    assert (task.settings.pattern, task.settings.verbaliser) == (PATTERN, WORDS)
    batch = batch_of(task, ["a dull film"], tokenizer)
    theirs = model(batch.input_ids[None]).logits[0, batch.masked_positions]
    torch.testing.assert_close(load_masked_lm(tuned / "model")(batch), theirs, atol=2e-5, rtol=1e-4)


def test_another_task_can_start_from_it(tuned):
    folder = read_folder(tuned / "model")
    _, model, _ = started(tuned / "model")
    own = model.state_dict()
    assert own.keys() == folder.state.keys()
    assert all(torch.equal(own[name], folder.state[name]) for name in own)


def test_no_learning_gives_the_pretrained_models_own_score(pretrained, toy, tmp_path, capsys):
    words = ["finetune", *OPTIONS, "--model", pretrained["modern"], "--run_dir", tmp_path / "r"]
    words += ["--train", toy["train"], "--validation", toy["validation"], *QUICK]
    words += ["--optimizer.lr", "1e-12", "--budget", "1steps"]
    assert main([*map(str, words)]) == 0
    task, model, tokenizer = started(pretrained["modern"])
    from tasks.rows import Rows

    rows = Rows.read(toy["validation"])
    task.settings = TaskSettings(**{**vars(task.settings), "text_column": ("text",)})
    examples = task.examples(rows, tokenizer)
    expected = Predictor(model, task, tokenizer, "cpu", "fp32").evaluate(examples)
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(expected["loss"])


# --- what is refused ---


def failure(capsys, *words):
    assert main([*map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.pattern", "{text} is good"], "has 0 [MASK], where one is needed"),
        (["--data.pattern", "{text} [MASK] [MASK]"], "has 2 [MASK]"),
        (["--data.pattern", "{titel} [MASK]"], "{titel} is not known; write {text}"),
        (["--data.pattern", "[MASK] it is"], "needs each of its texts once"),
        (["--data.pattern", "{text} {text} [MASK]"], "needs each of its texts once"),
        (["--data.pattern", "{sentence1} [MASK]"], "needs each of its texts once"),
        (["--data.verbaliser", "{neg: dull}"], "needs 2 classes or more"),
        (["--data.verbaliser", "{neg: dull, pos: []}"], "the label 'pos' has no word"),
        (["--data.verbaliser", "{neg: dull, pos: ' '}"], "the label 'pos' has no word"),
        (["--data.verbaliser", "{neg: dull, pos: xylo}"], "of the label 'pos', is"),
        (["--data.verbaliser", "{neg: dull, pos: 東}"], "is unknown to the model's tokenizer"),
        (["--data.verbaliser", "{neg: dull, pos: dull}"], "the same token as 'dull' of 'neg'"),
        (["--data.verbaliser", "{neg: no, pos: yes}"], "in quotes"),
        (["--data.verbaliser", "{no: dull, yes: funny}"], "in quotes"),
        (["--data.verbaliser", "{neg: dull, odd: funny}"], "label 'pos' is not in data.verbaliser"),
        (["--data.labels", "[neg, odd]"], "the label 'odd'"),
        (["--data.max_length", "6"], "choose at least 7"),
        (["--data.text_column", "[text, label]"], "2 given, where data.pattern has {text}"),
        (["--model.pooling", "mean"], "model.pooling"),
        (["--model.layers", "2"], "model.layers"),
        (["--task", "text_classification"], "has no use for it"),
    ],
)
def test_contradictions_are_one_line(pretrained, toy, tmp_path, capsys, options, said):
    words = ["finetune", *OPTIONS, "--model", pretrained["modern"], "--train", toy["train"]]
    words += ["--validation", toy["validation"], "--run_dir", tmp_path / "run", *QUICK, *options]
    assert said in failure(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_the_pieces_of_a_word_are_named(pretrained):
    with pytest.raises(UserError, match=r"'duller', of the label 'a', is \d tokens .*\(dull, ##"):
        started(pretrained["modern"], words={"a": ["duller"], "b": ["funny"]})


@pytest.mark.parametrize("name", ["pattern", "verbaliser"])
def test_both_are_needed(name):
    given = {"pattern": PATTERN, "verbaliser": WORDS} | {name: None}
    with pytest.raises(UserError, match=f"data.{name}: "):
        PromptClassification(TaskSettings(**given))


def test_a_bare_encoder_is_refused(tokenizer, toy, tmp_path, capsys):
    config = toy_config("bert", tokenizer)
    state = {f"encoder.{k}": v for k, v in Encoder(config).state_dict().items()}
    save_folder(
        tmp_path / "m", config=config, head="encoder", state=state, tokenizer=tokenizer, info={}
    )
    words = ["finetune", *OPTIONS, "--model", tmp_path / "m", "--run_dir", tmp_path / "run"]
    words += ["--train", toy["train"], "--validation", toy["validation"], *QUICK]
    assert "has no masked-LM head" in failure(capsys, *words)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("pattern", 3, "mlm.pattern: 3 is not a text or null"),
        ("pattern", "{text}", "has 0 [MASK]"),
        ("pattern", None, "data.pattern"),
        ("verbaliser", ["dull"], "mlm.verbaliser"),
        ("verbaliser", {"neg": "dull"}, "mlm.verbaliser"),
        ("verbaliser", {"neg": ["dull"], "pos": [3]}, "mlm.verbaliser"),
        ("verbaliser", {"neg": ["dull"], "pos": ["xylo"]}, "'xylo'"),
        ("text_column", ["a", "b"], "2 given"),
        ("task", "text_classification", "holds no head of the task 'text_classification'"),
    ],
)
def test_a_folder_that_lies_is_refused(tuned, tmp_path, key, value, said):
    shutil.copytree(tuned / "model", tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    values["mlm"][key] = value
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as refused:
        Predictor.from_pretrained(tmp_path / "m")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
