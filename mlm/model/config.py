"""The model as data: numbers and names, no behaviour.

Every name here is looked up in one explicit table, in the file that holds the variants.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from mlm.errors import UserError, look_up

LARGEST = 1 << 28
"""Far beyond any model; a product of two still counts its bytes in 64 bits."""
# What is a size, the least that it may be, and the most: building millions of layers never ends.
_SIZES = {
    "vocab_size": (1, LARGEST),
    "hidden_size": (1, LARGEST),
    "num_hidden_layers": (1, 4096),
    "num_attention_heads": (1, LARGEST),
    "intermediate_size": (1, LARGEST),
    "max_position_embeddings": (1, LARGEST),
    "local_attention": (1, LARGEST),
    "type_vocab_size": (0, LARGEST),
    "position_offset": (0, LARGEST),
}
# What may mix tokens, and how many D × D matrices of weights it has.
WINDOWED = ("global", "local")  # that is attention
MATRICES = {"global": 4, "local": 4, "fourier": 0, "lstm": 6}
# Fields that pretraining is not told: the tokenizer says, or the family's classifiers.
NOT_CHOSEN = {
    *("vocab_size", "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id"),
    "pooler",
}


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that shapes an encoder; plain values only, so that it survives JSON and YAML."""

    vocab_size: int = 30_522
    """Rows of the token embedding; a run takes it from its tokenizer."""
    hidden_size: int = 768
    """D: the width of the residual stream."""
    num_hidden_layers: int = 12
    """How many layers the encoder has."""
    num_attention_heads: int = 12
    """Heads per layer; must divide hidden_size into even head widths."""
    intermediate_size: int = 3072
    """Width inside the feed-forward layer (of each half where it is gated)."""
    max_position_embeddings: int = 512
    """The longest sequence the model takes, [CLS] and [SEP] included."""
    type_vocab_size: int = 2
    """Token types (first and second text); 0 for none."""
    layer: str = "post_norm"
    """Where the norms stand: `post_norm` (BERT) or `pre_norm`; see encoder.py."""
    position: str = "learned"
    """`learned`, `sinusoidal`, `rope`, `alibi` or `none`; see positions.py."""
    position_offset: int = 0
    """Rows of the learned positions before the first one (RoBERTa: pad_token_id + 1)."""
    attention: tuple[str, ...] = ("global",)
    """What mixes tokens, a layer: `global` or `local` attention, `fourier` (FNet) or `lstm`;
    repeated down the layers. See mixers.py."""
    local_attention: int = 128
    """Width of the local window: a token sees local_attention // 2 tokens to each side."""
    feed_forward: str = "mlp"
    """`mlp` or `glu`; see feed_forward.py."""
    activation: str = "gelu"
    """`gelu`, `gelu_tanh`, `silu` or `relu`; see feed_forward.py."""
    norm: str = "layer_norm"
    """`layer_norm` or `rms_norm`; see norms.py."""
    norm_eps: float = 1e-12
    """Added to the variance in every norm."""
    bias: bool = True
    """Biases in the layers' linear maps and norms."""
    attention_bias: bool | None = None
    """Biases in the maps of attention; None: as `bias`. With `rope` the heads of a fresh model's
    first layer begin at the neighbours of a token by them; see neighbours.py."""
    embedding_norm: bool = True
    """A norm right after the embeddings."""
    final_norm: bool = False
    """A norm after the last layer; pre-norm encoders need it."""
    lm_head: str = "transform"
    """The masked-LM head: `transform` (BERT) or `linear`; see heads.py."""
    pooler: str = "tanh"
    """What stands between a text's vector and a classifier: `tanh` (BERT), `relu` (DistilBERT),
    `gelu` (EuroBERT) or `transform` (ModernBERT); see tasks/heads.py."""
    rope_theta: float = 10_000.0
    """RoPE base of the global layers."""
    local_rope_theta: float = 10_000.0
    """RoPE base of the local layers."""
    hidden_dropout: float = 0.0
    """Dropout on embeddings and on what each block adds to the residual stream."""
    attention_dropout: float = 0.0
    """Dropout on attention weights."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights. With learned positions words are longer at first,
    so that they weigh as much as their places; see neighbours.py."""
    pad_token_id: int = 0
    """Id of [PAD]; what stands where a ragged batch is filled up to a round size."""
    cls_token_id: int = 2
    """Id of [CLS]."""
    sep_token_id: int = 3
    """Id of [SEP]."""
    mask_token_id: int = 4
    """Id of [MASK]."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built, by name."""
        object.__setattr__(self, "attention", tuple(self.attention))
        if self.attention_bias is None:
            object.__setattr__(self, "attention_bias", self.bias)
        for name, (least, most) in _SIZES.items():
            if not least <= getattr(self, name) <= most:
                raise UserError(
                    f"model.{name}: {getattr(self, name)} must lie between {least} and {most}"
                )
        for name in ("norm_eps", "initializer_range"):
            if not getattr(self, name) >= 0:
                raise UserError(f"model.{name}: {getattr(self, name)} must be at least 0")
        for name in ("rope_theta", "local_rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"model.{name}: {getattr(self, name)} must be above 0, and finite")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"model.num_attention_heads: {self.num_attention_heads} heads do not divide "
                f"hidden_size {self.hidden_size} into even widths; change one of the two"
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"model.{name}: {getattr(self, name)} must lie in [0, 1)")
        if not self.attention:
            raise UserError("model.attention: the pattern is empty; name global, local or both")
        for kind in self.attention:
            look_up(dict.fromkeys(MATRICES), kind, "model.attention")

    @property
    def head_dim(self) -> int:
        """H: the width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def layer_attention(self, index: int) -> str:
        """What mixes tokens in layer ``index``."""
        return self.attention[index % len(self.attention)]

    def layer_theta(self, index: int) -> float:
        """The RoPE base of layer ``index``."""
        return self.local_rope_theta if self.layer_attention(index) == "local" else self.rope_theta

    def layer_window(self, index: int) -> int | None:
        """How many tokens to each side layer ``index`` sees; None: all of the sequence."""
        return self.local_attention // 2 if self.layer_attention(index) == "local" else None

    def attention_windows(self) -> list[int | None]:
        """The window of each layer that attends; see `layer_window`."""
        layers = range(self.num_hidden_layers)
        return [self.layer_window(i) for i in layers if self.layer_attention(i) in WINDOWED]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def decisive(self) -> dict[str, Any]:
        """What decides an encoder's numbers beside its weights, as plain values.

        Without what is of the training, and what nothing in it uses, which folders may not keep.
        """
        kinds = [self.layer_attention(index) for index in range(self.num_hidden_layers)]
        idle = {"hidden_dropout", "attention_dropout", "initializer_range"}
        if "local" not in kinds:
            idle |= {"local_attention", "local_rope_theta"}
        if self.position != "rope":
            idle |= {"rope_theta", "local_rope_theta"}
        if self.position != "learned":
            idle.add("position_offset")
        values = self.to_dict() | {"attention": kinds}
        return {name: value for name, value in values.items() if name not in idle}

    def replace(self, **changes: Any) -> EncoderConfig:
        """A copy with other values; an unknown name is refused with the nearest known one."""
        _check_names(changes)
        return replace(self, **changes)


def _check_names(values: dict[str, Any]) -> None:
    known = {f.name: f for f in fields(EncoderConfig)}
    for name in values:
        look_up(known, name, "model")


# name: (layers, hidden size); heads are 64 wide, as in google's BERT sizes.
SIZES: dict[str, tuple[int, int]] = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}

# https://arxiv.org/abs/1810.04805
_BERT: dict[str, Any] = {}

# https://arxiv.org/abs/2412.13663, with windows and RoPE bases that suit sequences up to 1,024, and
# with biases in attention, as its heads begin by them (benchmarks/LOG.md).
_MODERN: dict[str, Any] = {
    "layer": "pre_norm",
    "position": "rope",
    "type_vocab_size": 0,
    "feed_forward": "glu",
    "bias": False,
    "attention_bias": True,
    "norm_eps": 1e-5,
    "final_norm": True,
    "pooler": "transform",
    "max_position_embeddings": 1024,
    "attention": ("global", "local", "local"),
}

FAMILIES: dict[str, dict[str, Any]] = {"bert": _BERT, "modern": _MODERN}


def preset(family: str, size: str, **changes: Any) -> EncoderConfig:
    """The configuration called ``family`` in ``size``, with ``changes`` on top.

    Args:
        family: `bert` (Devlin et al. 2018) or `modern` (Warner et al. 2024).
        size: one of tiny, mini, small, medium, base, large.
        changes: fields of `EncoderConfig` to set.

    Raises:
        UserError: an unknown family, size or field.
    """
    choices = look_up(FAMILIES, family, "model.family")
    layers, hidden = look_up(SIZES, size, "model.size")
    # A gated layer has three matrices where a plain one has two: 8/3 keeps the weights equal,
    # rounded up to a multiple of 64 so that matrix kernels fit.
    gated = choices.get("feed_forward") == "glu"
    intermediate = -(-hidden * 8 // 3 // 64) * 64 if gated else hidden * 4
    _check_names(changes)
    values = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(2, hidden // 64),
        "intermediate_size": intermediate,
    }
    return EncoderConfig(**values | choices | changes)
