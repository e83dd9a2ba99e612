"""ONNX (https://onnx.ai): the model as a graph that onnxruntime runs, on padded sequences.

Shapes: ``B`` sequences padded to ``S`` tokens, ``D`` model width, ``V`` vocabulary.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mlm.batch import Batch
from mlm.errors import UserError
from mlm.files import atomic_folder
from mlm.model.config import WINDOWED
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel
from mlm.model.layout import Layout

_OPSET = 20


class PaddedLayout(Layout):
    """Sequences padded at their ends to one length, which may be a symbol while tracing."""

    def __init__(self, attention_mask: Tensor) -> None:
        sequences, longest = attention_mask.shape
        starts = torch.arange(sequences + 1, device=attention_mask.device) * longest
        super().__init__(starts, longest, sequences * longest, "matmul")
        self.real = attention_mask.bool()  # (B, S)

    @property
    def slots(self) -> None:
        """None: the tokens stand where they are."""
        return None

    def _build_visible(self, window: int | None) -> Tensor:
        if window is None:
            return self.real[:, None, None]
        place = torch.arange(self.max_seqlen, device=self.real.device)
        near = (place[:, None] - place).abs() <= window
        return ((self.real[:, None] & near) | ~self.real[..., None])[:, None]

    def visible(self, window: int | None) -> Tensor | None:
        """As in `Layout`, without a look at the length."""
        found: Tensor = self._once(("visible", window), lambda: self._build_visible(window))
        return found


class PaddedEncoder(nn.Module):
    """(B, S) ids and mask → (B, S, D): `last_hidden_state`."""

    output = "last_hidden_state"

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        config = encoder.config
        for kind in {config.layer_attention(i) for i in range(config.num_hidden_layers)}:
            if kind not in WINDOWED:  # they would mix filler into the texts
                raise UserError(f"--format onnx: {kind} layers have no graph for padded texts")
        self.encoder = encoder
        self.config = encoder.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The encoder's output, filler included."""
        sequences, longest = input_ids.shape
        positions = torch.arange(longest, device=input_ids.device).expand(sequences, longest)
        layout = PaddedLayout(attention_mask)
        batch = Batch(
            input_ids=input_ids.flatten(),
            position_ids=positions.flatten(),
            cu_seqlens=layout.cu_seqlens,
            max_seqlen=longest,
            token_type_ids=None if token_type_ids is None else token_type_ids.flatten(),
        )
        return self.encode(batch, layout).view(sequences, longest, -1)

    def encode(self, batch: Batch, layout: Layout) -> Tensor:
        """(B · S, D): what is read of the encoder."""
        return self.encoder.encode(batch, layout)


class PaddedMaskedLM(PaddedEncoder):
    """(B, S) ids and mask → (B, S, V): `logits`."""

    output = "logits"

    def __init__(self, model: MaskedLanguageModel) -> None:
        super().__init__(model.encoder)
        self.head = model.head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Scores of every token of the vocabulary at every place."""
        hidden = super().forward(input_ids, attention_mask, token_type_ids)
        return self.head(hidden, self.encoder.embeddings.word.weight)


class Parity(NamedTuple):
    """How far onnxruntime is from torch."""

    difference: float
    """The largest of any valid output."""
    agreement: float
    """The share of valid places whose largest output is the same."""


def export_onnx(
    model: PaddedEncoder, output: Path, files: Callable[[Path], None], int8: bool = False
) -> dict[str, float]:
    """Write ``model.onnx``, and ``model_int8.onnx`` where wanted, and compare them with torch.

    Args:
        model: in eval mode, on the CPU, in fp32.
        output: a new folder.
        files: writes into the folder what belongs beside the graph, such as the tokenizer.
        int8: also write the weights of matrices as 8-bit integers.

    Returns:
        What was found in the comparison.

    Raises:
        UserError: the packages are missing, or the graph's outputs differ from torch's.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    found: dict[str, float] = {}
    with atomic_folder(output) as draft:
        path = draft / "model.onnx"
        _write(model, path)
        parity = compare(model, path)
        if not parity.difference < 1e-3:
            raise UserError(
                f"{output}: onnxruntime differs from torch by {parity.difference:.2g}; nothing is "
                "written"
            )
        found["max_difference"] = parity.difference
        if int8:
            small = draft / "model_int8.onnx"
            _quantize(path, small)
            parity = compare(model, small)
            found["int8_max_difference"] = parity.difference
            found["int8_agreement"] = parity.agreement
        files(draft)
    return found


def _write(model: PaddedEncoder, path: Path) -> None:
    inputs = example(model, sequences=2, longest=8)
    sequences = torch.export.Dim("batch", min=1, max=65_536)
    longest = torch.export.Dim("sequence", min=2, max=model.config.max_position_embeddings)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[model.output],
            dynamic_shapes=tuple({0: sequences, 1: longest} for _ in inputs),
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _quantize(path: Path, small: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path)
    del graph.graph.value_info[:]  # the exporter's shapes are in the way of their inference
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises at every call, through the root logger
    try:
        quantize_dynamic(graph, small, weight_type=QuantType.QInt8)
    finally:
        logging.root.setLevel(level)


def example(model: PaddedEncoder, sequences: int, longest: int) -> dict[str, Tensor]:
    """Random inputs of mixed lengths, the first sequence being the longest."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    shape = (sequences, longest)
    lengths = torch.randint(1, longest + 1, (sequences,), generator=generator)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids = torch.randint(0, config.vocab_size, shape, generator=generator)
    inputs = {"input_ids": ids * mask + config.pad_token_id * (1 - mask), "attention_mask": mask}
    if config.type_vocab_size > 1:
        inputs["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
    return inputs


@torch.inference_mode()
def compare(model: PaddedEncoder, path: Path) -> Parity:
    """Run ``path`` beside ``model`` on batches of several shapes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst, same, places = 0.0, 0, 0
    longest = model.config.max_position_embeddings
    for shape in ((1, 2), (1, min(17, longest)), (5, min(64, longest)), (2, min(512, longest))):
        inputs = example(model, *shape)
        ours = model(**inputs)
        (theirs,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        valid = inputs["attention_mask"].bool() if ours.dim() == 3 else slice(None)
        ours, found = ours[valid].numpy(), theirs[valid]
        worst = max(worst, float(np.abs(ours - found).max()))
        same += int((ours.argmax(-1) == found.argmax(-1)).sum())
        places += len(ours)
    return Parity(worst, same / places)


def _require(*packages: str) -> None:
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise UserError(f"--format onnx needs {', '.join(missing)}: pip install 'mlm[onnx]'")
