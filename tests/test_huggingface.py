"""A model folder is a Hugging Face model folder: parity with transformers on random weights."""

import json

import pytest
import torch
from small_models import TEXTS, random_state, save_masked_lm, small_config, tokenizer
from torch import nn
from torch.nn import functional as F

from mlm.batch import Batch, ragged
from mlm.checkpoint import build_encoder, build_masked_lm, load_masked_lm, read_folder, save_folder
from mlm.errors import UserError
from mlm.huggingface import (
    ACTIVATIONS,
    FAMILIES,
    layer_pattern,
    native_class,
    read_config,
    write_config,
)
from mlm.inference import FillMask
from mlm.model.config import FAMILIES as PRESETS
from mlm.model.config import SIZES, preset
from mlm.model.encoder import Encoder
from mlm.model.feed_forward import ACTIVATIONS as OURS

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

EUROBERT_CONFIG = small_config(
    "modern",
    norm="rms_norm",
    embedding_norm=False,
    attention=("global",),
    local_attention=128,
    activation="silu",
    rope_theta=500.0,
    local_rope_theta=500.0,
    lm_head="linear",
    pooler="gelu",
    attention_bias=False,
)
CONFIGS = {
    "bert": small_config("bert"),
    "bert-tanh": small_config("bert", activation="gelu_tanh", type_vocab_size=1, norm_eps=1e-3),
    "modern": small_config("modern"),
    "all-global": small_config("modern", attention=("global",), rope_theta=160_000.0),
    "all-local": small_config("modern", attention=("local",)),
    "local-first": small_config("modern", attention=("local", "global")),
    "odd-window": small_config("modern", local_attention=3, local_rope_theta=500.0),
    "roberta": small_config("bert", position_offset=1, type_vocab_size=1),
    "distilbert": small_config("bert", type_vocab_size=0, pooler="relu"),
    "eurobert": EUROBERT_CONFIG,
    "modern-unbiased": small_config("modern", attention_bias=False),
    "modern-biased": small_config("modern", bias=True, activation="silu"),
}
BERT, MODERNBERT = FAMILIES["bert"], FAMILIES["modernbert"]
ROBERTA, EUROBERT = FAMILIES["roberta"], FAMILIES["eurobert"]
LABELS = ["negative", "neutral", "positive"]


def mixed_lengths() -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """The same sequences, ragged and padded: batch, (B, S) input_ids, (B, S) attention_mask."""
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 64, 2, 17, 40, 5]
    sequences = [torch.randint(5, 100, (n,), generator=generator) for n in lengths]
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]
    return ragged([s.numpy() for s in sequences]), padded, mask.long()


def open_with(auto_class, directory):
    """The model as transformers opens it: no code of ours, no tensor missing or left over."""
    model, loading = auto_class.from_pretrained(directory, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def their_logits(model) -> torch.Tensor:
    _, padded, mask = mixed_lengths()
    outputs = model(input_ids=padded, attention_mask=mask)
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)[mask.bool()]
    logits = outputs.logits
    return logits[mask.bool()] if logits.dim() == 3 else logits


@pytest.mark.parametrize("name", CONFIGS)
def test_masked_lm_gives_their_logits(tmp_path, name):
    config = CONFIGS[name]
    state = save_masked_lm(tmp_path / "ours", config)
    theirs = open_with(transformers.AutoModelForMaskedLM, tmp_path / "ours")
    assert type(theirs).__name__ == native_class(config, "masked_lm").name
    with torch.no_grad():
        ours = load_masked_lm(tmp_path / "ours")(mixed_lengths()[0])
    assert (ours - their_logits(theirs)).abs().max() < 1e-4

    folder = read_folder(tmp_path / "ours")
    assert folder.config == config.replace(attention=layer_pattern(folder.config.attention))
    assert_same(folder.state, state)
    # And back: what transformers saves, we read, to the last bit.
    theirs.save_pretrained(tmp_path / "theirs")
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    types = "token_type_ids" in their_tokenizer.model_input_names
    assert types == (config.type_vocab_size > 1)
    their_tokenizer.save_pretrained(tmp_path / "theirs")
    back = read_folder(tmp_path / "theirs")
    assert back.config == folder.config
    assert_same(back.state, state)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert tensor.is_contiguous()


def classifier(config, pooling: str | None, outputs: int = 3) -> nn.Module:
    """The tensors of a native classifier: ``pooling`` None for one answer a token."""
    width = config.hidden_size
    model = nn.Module()
    model.encoder = Encoder(config)
    model.head = nn.Module()
    modern = config.pooler == "transform"
    if modern or pooling:
        model.head.dense = nn.Linear(width, width, bias=config.bias or not modern)
    if modern:
        model.head.norm = nn.LayerNorm(width, eps=config.norm_eps, bias=config.bias)
    model.head.classifier = nn.Linear(width, outputs)
    return model


@torch.no_grad()
def classifier_logits(model, config, pooling: str | None) -> torch.Tensor:
    batch, _, _ = mixed_lengths()
    hidden = model.encoder(batch)
    if pooling == "cls":
        hidden = hidden[batch.cu_seqlens[:-1].long()]
    elif pooling == "mean":
        parts = hidden.split(batch.sequence_lengths.tolist())
        hidden = torch.stack([part.mean(0) for part in parts])
    if config.pooler == "transform":
        hidden = model.head.norm(F.gelu(model.head.dense(hidden)))
    elif pooling:
        function = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu}[config.pooler]
        hidden = function(model.head.dense(hidden))
    return model.head.classifier(hidden)


@pytest.mark.parametrize(
    ("family", "head", "pooling"),
    [
        ("bert", "sequence_classification", "cls"),
        ("bert", "token_classification", None),
        ("bert", "question_answering", None),
        ("modern", "sequence_classification", "cls"),
        ("modern", "sequence_classification", "mean"),
        ("modern", "token_classification", None),
        ("modern", "question_answering", None),
        ("roberta", "sequence_classification", "cls"),
        ("roberta", "token_classification", None),
        ("roberta", "question_answering", None),
        ("distilbert", "sequence_classification", "cls"),
        ("distilbert", "token_classification", None),
        ("distilbert", "question_answering", None),
        ("eurobert", "sequence_classification", "cls"),
        ("eurobert", "sequence_classification", "mean"),
        ("eurobert", "token_classification", None),
    ],
)
def test_classifiers_give_their_logits(tmp_path, family, head, pooling):
    config = CONFIGS[family]
    labels = ["LABEL_0", "LABEL_1"] if head == "question_answering" else LABELS
    model = classifier(config, pooling, len(labels)).eval()
    state = random_state(model)
    model.load_state_dict(state)
    info = {"task": "text_classification"} | ({"pooling": pooling} if pooling else {})
    save_folder(
        tmp_path / "ours",
        config=config,
        head=head,
        state=state,
        tokenizer=tokenizer(),
        info=info,
        labels=labels,
    )
    auto_class = {
        "sequence_classification": transformers.AutoModelForSequenceClassification,
        "token_classification": transformers.AutoModelForTokenClassification,
        "question_answering": transformers.AutoModelForQuestionAnswering,
    }[head]
    theirs = open_with(auto_class, tmp_path / "ours")
    assert type(theirs).__name__ == native_class(config, head, pooling).name
    assert theirs.config.id2label == dict(enumerate(labels))
    ours = classifier_logits(model, config, pooling)
    assert (ours - their_logits(theirs)).abs().max() < 1e-4

    theirs.save_pretrained(tmp_path / "theirs")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(
        tmp_path / "theirs"
    )
    for place in ("ours", "theirs"):
        folder = read_folder(tmp_path / place)
        assert (folder.head, folder.labels, folder.info) == (head, labels, info)
        assert_same(folder.state, state)
        build_encoder(folder)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_token_ids_are_the_same(tmp_path, kind):
    ours = tokenizer(kind)
    save_masked_lm(
        tmp_path / "model",
        small_config("bert", vocab_size=ours.get_vocab_size()),
        tokenizer=ours,
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [*TEXTS, "The [MASK] sat.", "Hello\tWORLD\n\nÀ bientôt 👩‍🚀 <s> [SEP]"]
    for text in texts:
        assert theirs(text)["input_ids"] == ours.encode(text).ids
        pair = theirs(text, "and a second one")
        both = ours.encode(text, "and a second one")
        assert (pair["input_ids"], pair["token_type_ids"]) == (both.ids, both.type_ids)
    assert theirs.mask_token_id == ours.token_to_id("[MASK]")
    assert theirs.model_max_length == 64


@pytest.mark.parametrize("family", PRESETS)
@pytest.mark.parametrize("size", SIZES)
def test_every_preset_is_native(family, size):
    config = preset(family, size)
    heads = ("masked_lm", "sequence_classification", "token_classification", "question_answering")
    for head in heads:
        assert native_class(config, head).name
        values = json.loads(json.dumps(write_config(config, head, ["a", "b"], "cls")))
        back = read_config(values, FAMILIES[values["model_type"]])
        pattern = layer_pattern(
            [config.layer_attention(index) for index in range(config.num_hidden_layers)]
        )
        assert back.config == config.replace(attention=pattern)
        assert back.head == head


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("bert", {"position": "sinusoidal"}, "position is 'sinusoidal'"),
        ("bert", {"position": "rope"}, "position is 'rope'"),
        ("bert", {"bias": False}, "bias is False"),
        ("bert", {"attention": ("global", "local")}, "attention is ('global', 'local')"),
        ("bert", {"type_vocab_size": 0, "norm_eps": 0.1}, "type_vocab_size is 0"),
        ("bert", {"position_offset": 2}, "position_offset is 2"),
        ("bert", {"lm_head": "linear"}, "lm_head is 'linear'"),
        ("bert", {"final_norm": True}, "final_norm is True"),
        ("modern", {"norm": "rms_norm"}, "norm is 'rms_norm'"),
        ("modern", {"embedding_norm": False}, "embedding_norm is False"),
        ("modern", {"feed_forward": "mlp"}, "feed_forward is 'mlp'"),
        ("modern", {"type_vocab_size": 2}, "type_vocab_size is 2"),
    ],
)
def test_what_has_no_native_class_says_which_choice_it_is(tmp_path, family, changes, reason):
    config = small_config(family, **changes)
    native = native_class(config, "masked_lm")
    assert native.name is None
    assert native.reason.startswith(reason)
    state = save_masked_lm(tmp_path / "model", config)
    folder = read_folder(tmp_path / "model")
    assert (folder.config, folder.head) == (config, "masked_lm")
    assert_same(folder.state, state)
    build_masked_lm(folder)(mixed_lengths()[0])
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "mlm"


def test_pooling_and_heads_without_a_class():
    assert (
        "pooling is 'mean'"
        in native_class(small_config("bert"), "sequence_classification", "mean").reason
    )
    assert "no bert class for head 'spans'" in native_class(small_config("bert"), "spans").reason


def test_the_config_has_both_the_new_and_the_old_keys():
    values = write_config(small_config("modern", local_rope_theta=5.0), "masked_lm", None)
    assert values["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    assert values["rope_parameters"]["sliding_attention"]["rope_theta"] == 5.0
    assert values["global_attn_every_n_layers"] == 3
    assert (values["global_rope_theta"], values["local_rope_theta"]) == (10_000.0, 5.0)
    values = write_config(small_config("modern", attention=("local",)), "masked_lm", None)
    assert "global_attn_every_n_layers" not in values


def test_a_config_from_before_transformers_5_is_read():
    # The keys of answerdotai/ModernBERT-base that matter; the rest are the class's defaults.
    values = {
        "architectures": ["ModernBertForMaskedLM"],
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_attention": 128,
        "local_rope_theta": 10000.0,
        "model_type": "modernbert",
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    config = read_config(values, MODERNBERT).config
    assert config.attention == ("global", "local", "local")
    assert (config.rope_theta, config.local_rope_theta) == (160_000.0, 10_000.0)
    assert (config.num_hidden_layers, config.vocab_size) == (22, 50_368)
    assert read_config(values | {"local_rope_theta": None}, MODERNBERT).config.local_rope_theta == (
        160_000.0
    )


def test_a_bare_config_means_their_defaults():
    for family, theirs in (
        (BERT, transformers.BertConfig()),
        (ROBERTA, transformers.RobertaConfig()),
        (FAMILIES["xlm-roberta"], transformers.XLMRobertaConfig()),
        (FAMILIES["distilbert"], transformers.DistilBertConfig()),
        (MODERNBERT, transformers.ModernBertConfig()),
        (EUROBERT, transformers.EuroBertConfig()),
    ):
        names = {"architectures": [family.heads["masked_lm"].name]}
        bare = read_config(names, family).config
        full = read_config(json.loads(theirs.to_json_string(use_diff=False)) | names, family).config
        assert bare == full


def test_their_activations_are_ours():
    x = torch.linspace(-4, 4, 101)
    assert ACTIVATIONS.keys() == OURS.keys()
    for ours, names in ACTIVATIONS.items():
        for name in names:
            theirs = transformers.activations.ACT2FN[name]
            assert torch.allclose(OURS[ours](x), theirs(x), atol=1e-6), name


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        (BERT, {"is_decoder": True}, "is_decoder True is not supported"),
        (BERT, {"add_cross_attention": True}, "add_cross_attention"),
        (BERT, {"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
        (BERT, {"hidden_size": "768"}, "hidden_size: '768' is not a whole number"),
        (BERT, {"hidden_size": True}, "hidden_size: True"),
        (BERT, {"num_attention_heads": 0}, "num_attention_heads: 0"),
        (BERT, {"num_attention_heads": 7}, "num_attention_heads: 7"),
        (BERT, {"layer_norm_eps": "tiny"}, "layer_norm_eps"),
        (BERT, {"tie_word_embeddings": False}, "tie_word_embeddings"),
        (BERT, {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        (BERT, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (BERT, {"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel"),
        (BERT, {"architectures": None}, "architectures None"),
        (ROBERTA, {"hidden_act": "relu"}, "hidden_act 'relu' is not supported, only 'gelu'"),
        (ROBERTA, {"pad_token_id": 511}, "pad_token_id: 511"),
        (EUROBERT, {"num_key_value_heads": 4}, "num_key_value_heads 4 is not supported, only 12"),
        (EUROBERT, {"head_dim": 32}, "head_dim 32"),
        (EUROBERT, {"mlp_bias": True}, "mlp_bias"),
        (EUROBERT, {"tie_word_embeddings": True}, "tie_word_embeddings"),
        (EUROBERT, {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        (MODERNBERT, {"decoder_bias": False}, "decoder_bias"),
        (MODERNBERT, {"mlp_bias": True}, "mlp_bias True, norm_bias False"),
        (MODERNBERT, {"classifier_activation": "relu"}, "classifier_activation 'relu'"),
        (MODERNBERT, {"layer_types": ["chunked_attention"] * 22}, "layer_types"),
        (MODERNBERT, {"layer_types": ["full_attention"]}, "layer_types"),
        (MODERNBERT, {"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        (
            MODERNBERT,
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_parameters.full_attention",
        ),
        (
            MODERNBERT,
            {"rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}}},
            "partial_rotary_factor",
        ),
        (MODERNBERT, {"rope_parameters": {"rope_theta": 1.0}}, "rope_parameters.rope_theta"),
        (MODERNBERT, {"global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
    ],
)
def test_a_value_that_would_change_the_numbers_is_refused(family, change, message):
    values = {"architectures": [family.heads["masked_lm"].name]} | change
    with pytest.raises(UserError) as error:
        read_config(values, family)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", PRESETS)
def test_their_pipeline_fills_masks_as_we_do(tmp_path, family, caplog):
    save_masked_lm(tmp_path / "model", small_config(family))
    with caplog.at_level("WARNING"):
        pipeline = transformers.pipeline("fill-mask", str(tmp_path / "model"), device="cpu")
    assert caplog.text == ""
    theirs = pipeline("The [MASK] sat on the mat.", top_k=3)
    (ours,) = FillMask(tmp_path / "model")("The [MASK] sat on the mat.", top_k=3)
    for guess, other in zip(ours["masks"][0], theirs, strict=True):
        assert guess["token"] == pipeline.tokenizer.convert_ids_to_tokens(other["token"])
        assert guess["score"] == pytest.approx(other["score"], rel=1e-3)


@pytest.mark.parametrize("family", PRESETS)
def test_the_two_lines_that_everybody_writes(tmp_path, family):
    save_masked_lm(tmp_path / "model", small_config(family))
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    theirs = open_with(transformers.AutoModelForMaskedLM, tmp_path / "model")
    inputs = their_tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    batch = ragged([tokenizer().encode(text).ids[:64] for text in TEXTS])
    with torch.no_grad():
        logits = theirs(**inputs).logits[inputs["attention_mask"].bool()]
        ours = load_masked_lm(tmp_path / "model")(batch)
    assert (ours - logits).abs().max() < 1e-4
