"""The encoder: read this first.

    token ids ─ Embeddings ─ EncoderLayer × L ─ final norm ─ one vector a token

A batch is ragged: all its sequences end to end, no padding, so ``hidden`` is (T, D) throughout and
only attention needs to know where a sequence ends.

Shapes: ``T`` tokens in all, ``D`` model width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlm.batch import MULTIPLE, Batch, filled_up
from mlm.errors import UserError, look_up
from mlm.model.config import EncoderConfig
from mlm.model.dropout import Dropout
from mlm.model.embeddings import Embeddings
from mlm.model.feed_forward import build_feed_forward
from mlm.model.layout import Layout, prepare
from mlm.model.mixers import build_mixer
from mlm.model.neighbours import begin_at_neighbours
from mlm.model.norms import build_norm
from mlm.model.positions import Rotation, alibi_slopes, rotation


class PostNormLayer(nn.Module):
    """x = norm(x + f(x)), as in BERT (https://arxiv.org/abs/1810.04805)."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        self.mixer = build_mixer(config, index)
        self.mixer_norm = build_norm(config)
        self.feed_forward = build_feed_forward(config)
        self.feed_forward_norm = build_norm(config)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, hidden: Tensor, layout: Layout, turn: Rotation | None) -> Tensor:
        """(T, D) → (T, D)."""
        hidden = self.mixer_norm(hidden + self.dropout(self.mixer(hidden, layout, turn)))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))


class PreNormLayer(nn.Module):
    """x = x + f(norm(x)): an unbroken residual stream (https://arxiv.org/abs/2002.04745)."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        # The first layer reads the embeddings' norm; a second norm would change nothing but cost.
        normed = index == 0 and config.embedding_norm
        self.mixer_norm = nn.Identity() if normed else build_norm(config)
        self.mixer = build_mixer(config, index)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = build_feed_forward(config)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, hidden: Tensor, layout: Layout, turn: Rotation | None) -> Tensor:
        """(T, D) → (T, D)."""
        hidden = hidden + self.dropout(self.mixer(self.mixer_norm(hidden), layout, turn))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


LAYERS: dict[str, type[PostNormLayer] | type[PreNormLayer]] = {
    "post_norm": PostNormLayer,
    "pre_norm": PreNormLayer,
}


class Encoder(nn.Module):
    """A Transformer encoder over ragged batches."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        layer = look_up(LAYERS, config.layer, "model.layer")
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            layer(config, index) for index in range(config.num_hidden_layers)
        )
        self.final_norm = build_norm(config) if config.final_norm else nn.Identity()
        self.recompute = False
        """Keep only each layer's input for the backward pass, and compute the rest anew: a third
        more arithmetic for a fraction of the memory (https://arxiv.org/abs/1604.06174)."""
        init_weights(self, config)
        begin_at_neighbours(self.embeddings, self.get_submodule("layers.0.mixer"), config)

    def forward(
        self,
        batch: Batch,
        backend: str | None = None,
        weights: list[list[Tensor]] | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """One vector a token.

        Args:
            batch: T tokens in ragged sequences.
            backend: an attention path to insist on, by its name in attention.py.
            weights: with backend ``reference``, gets a list a layer: a (heads, s, s) tensor a
                sequence, whose rows sum to 1.
            states: gets (T, D) of the embeddings and of each layer, before the final norm.

        Returns:
            (T, D).

        Raises:
            UserError: a sequence longer than ``max_position_embeddings``.
        """
        if batch.max_seqlen > self.config.max_position_embeddings:
            raise UserError(
                f"a sequence of {batch.max_seqlen} tokens is longer than the model's "
                f"{self.config.max_position_embeddings} positions; shorten it or choose another "
                "model"
            )
        bare = weights is None and states is None  # nobody is to see what is filled in
        fills = bare and self._wants_filling(batch)
        filled = filled_up(batch, self.config.pad_token_id) if fills else batch
        hidden = self.encode(filled, prepare(filled, backend, weights), states)
        return hidden if filled is batch else hidden[: batch.num_tokens]

    def _wants_filling(self, batch: Batch) -> bool:
        """Whether code is generated for each number of tokens, see `MULTIPLE`, so that it pays.

        A gradient has twice as many products of that size; without one, few tokens are better off.
        """
        weight = self.embeddings.word.weight
        low = torch.is_autocast_enabled("cpu") or weight.dtype.itemsize < 4
        if not low or weight.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        return torch.is_grad_enabled() or batch.num_tokens >= 16 * MULTIPLE

    def encode(self, batch: Batch, layout: Layout, states: list[Tensor] | None = None) -> Tensor:
        """As `forward`, with the layout of the batch given: (T, D)."""
        config = self.config
        turns: dict[float, Rotation] = {}
        if config.position == "rope":
            for theta in map(config.layer_theta, range(config.num_hidden_layers)):
                if theta not in turns:
                    turns[theta] = rotation(batch.position_ids, config.head_dim, theta)
        elif config.position == "alibi":
            layout.slopes = alibi_slopes(config.num_attention_heads).to(layout.cu_seqlens.device)
        hidden = self.embeddings(batch)
        if states is not None:
            states.append(hidden)
        for index, layer in enumerate(self.layers):
            turn = turns.get(config.layer_theta(index))
            if self.recompute and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, layout, turn, use_reentrant=False)
            else:
                hidden = layer(hidden, layout, turn)
            if states is not None:
                states.append(hidden)
        return self.final_norm(hidden)


def init_weights(module: nn.Module, config: EncoderConfig) -> None:
    """Initialise plainly: normal weights, zero biases, norms at 1.

    In pre-norm encoders every layer adds to the stream twice, so what it adds starts smaller by
    √(2 L): the stream's variance at the top then does not grow with depth (GPT-2, section 2.3).
    """
    std = config.initializer_range
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            adds = name.endswith(("mixer.out", "feed_forward.down"))
            shrink = config.layer == "pre_norm" and adds
            scale = math.sqrt(2 * config.num_hidden_layers) if shrink else 1.0
            nn.init.normal_(part.weight, std=std / scale)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=std)
