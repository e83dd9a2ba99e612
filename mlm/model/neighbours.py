"""Where the heads of a fresh encoder begin to look: at the neighbours of a token.

From plain weights a head scores all places alike, and it takes hundreds of steps until it tells a
neighbour from the rest of a text; only frequencies are learned before (benchmarks/LOG.md). So the
first layer begins where it will end up anyway: head 0 looks one place back, head 1 one ahead, heads
2 and 3 two places, and so on. Training moves on from there as it likes.

In both ways below a query holds pairs of numbers at the angles θ·(i + o) and a key at θ·j: their
product falls with the distance of j - i from the offset o, where tokens say nothing yet.

Shapes: ``D`` model width, ``N`` heads, ``H`` head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mlm.model.config import EncoderConfig
from mlm.model.embeddings import Embeddings
from mlm.model.mixers import SelfAttention
from mlm.model.positions import LearnedPositions

# What a neighbour scores at first above what has nothing in common with the query, and the radians
# by which a pair of numbers must turn from place to place to tell neighbours apart.
_SCORE, _SLOWEST = 9.0, 0.1
# Learned positions: how many pairs they get to themselves, in an eighth of the width at most, and
# how many standard deviations of a weight words and places are long. The usual 0.02 makes that 1;
# as short as plain ones are, what training adds to words soon drowns places (LOG.md).
_PAIRS, _LENGTH = 8, 50.0


def begin_at_neighbours(tables: Embeddings, mixer: nn.Module, config: EncoderConfig) -> None:
    """Turn the heads to neighbours, if there are any and the positions allow it.

    Args:
        tables: the embeddings, initialised plainly.
        mixer: the first layer's, initialised plainly.
        config: of the encoder.
    """
    if isinstance(mixer, SelfAttention):
        if config.position == "rope" and config.attention_bias:
            _by_biases(mixer.qkv, config)
        elif isinstance(tables.position, LearnedPositions):
            _by_positions(mixer.qkv, tables, tables.position, config)


def offsets(heads: int) -> Tensor:
    """(N,) int64: where each head looks.

    >>> offsets(5).tolist()
    [-1, 1, -2, 2, -3]
    """
    places = torch.arange(heads) // 2 + 1
    return torch.where(torch.arange(heads) % 2 == 0, -places, places)


@torch.no_grad()
def _by_biases(qkv: nn.Linear, config: EncoderConfig) -> None:
    """RoPE turns what a bias holds by a token's place; a query's starts o places ahead."""
    heads, half = config.num_attention_heads, config.head_dim // 2
    angles = config.layer_theta(0) ** (-torch.arange(half) / half)
    near = angles > _SLOWEST
    length = near * (_SCORE * config.head_dim**0.5 / near.sum()) ** 0.5
    turned = offsets(heads)[:, None] * angles  # (N, H / 2)
    bias = qkv.bias.view(3, heads, config.head_dim)
    bias[0] = torch.cat([length * turned.cos(), length * turned.sin()], dim=-1)
    bias[1] = torch.cat([length, torch.zeros_like(length)])


@torch.no_grad()
def _by_positions(
    qkv: nn.Linear, tables: Embeddings, positions: LearnedPositions, config: EncoderConfig
) -> None:
    """Positions get a few numbers to themselves, which queries read as if o places ahead."""
    heads, width = config.num_attention_heads, config.hidden_size
    pairs = min(_PAIRS, config.head_dim // 2, width // 16)
    own = 2 * pairs
    if not own:
        return
    norm = _LENGTH * config.initializer_range
    angles = _SLOWEST ** (torch.arange(pairs) / pairs)
    turned = torch.arange(positions.num_embeddings)[:, None] * angles
    nn.init.normal_(tables.word.weight, std=norm / math.sqrt(width - own))
    summed = [t for t in (tables.word, tables.token_type, positions) if t is not None]
    for table in summed:
        table.weight[:, :own] = 0
    waves = torch.cat([turned.cos(), turned.sin()], dim=-1)
    positions.weight[:, :own] = norm / math.sqrt(pairs) * waves
    # How long a pair is behind the norm that comes before queries and keys: a word and a place have
    # a length of `norm` each, and the plain weights of the other tables are a little noise.
    noise = (len(summed) - 1) * (width - own) / _LENGTH**2
    length = math.sqrt(width / pairs / (2 + noise))
    scale = (_SCORE * config.head_dim**0.5 / pairs) ** 0.5 / length
    ahead = offsets(heads)[:, None] * angles  # (N, pairs)
    cos, sin = ahead.cos().diag_embed(), ahead.sin().diag_embed()
    read = torch.cat([torch.cat([cos, -sin], -1), torch.cat([sin, cos], -1)], -2)  # (N, own, own)
    maps = qkv.weight.view(3, heads, config.head_dim, width)
    maps[:2, :, :own] = 0
    maps[0, :, :own, :own] = scale * read
    maps[1, :, :own, :own] = scale * torch.eye(own)
