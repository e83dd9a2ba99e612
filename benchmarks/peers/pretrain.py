"""The peer: a plain `transformers.Trainer` script that pretrains on a token store.

    python benchmarks/peers/pretrain.py --store STORE --family modern --lr 1e-3 --seconds 480 \
        --output peer

Texts are laid end to end and cut into rows, as the library's own example does; the collator, AdamW
and clipping at 1 are the library's, and so is bf16 where the processor multiplies it. The learning
rate warms up over 5 % of the time and falls in a line to 0 at its end. Freed memory stays in the
process, as it does in `mlm`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from mlm.data.store import TokenStore
from mlm.data.tokenizer import load_tokenizer, special_ids
from mlm.huggingface import write_config
from mlm.memory import keep_freed_memory
from mlm.model.config import preset
from mlm.training.precision import has_bf16, resolve_device

WARMUP = 0.05


class Rows(Dataset[dict[str, Any]]):
    """A split cut into rows of one length, whatever document a token is of."""

    def __init__(self, store: TokenStore, length: int) -> None:
        self.split, self.window = store.split("train"), length - 2
        special = special_ids(load_tokenizer(store.tokenizer_dir))
        self.frame = [special.cls], [special.sep]

    def __len__(self) -> int:
        return int(self.split.ends[len(self.split.ends) - 1]) // self.window

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.split.tokens(index * self.window, (index + 1) * self.window)
        return {"input_ids": np.concatenate([self.frame[0], tokens, self.frame[1]]).tolist()}


class ByTime(TrainerCallback):
    """The share of the time that is spent, and an end when it is."""

    def __init__(self, seconds: float, snapshots: int, output: Path) -> None:
        self.seconds, self.snapshots, self.output = seconds, snapshots, output
        self.began, self.saved, self.aside = 0.0, 0, 0.0

    def spent(self) -> float:
        """In [0, 1]; saving does not count."""
        return min(1.0, (time.monotonic() - self.began - self.aside) / self.seconds)

    def factor(self, _: int) -> float:
        """What the peak learning rate is multiplied by."""
        spent = self.spent() if self.began else 0.0
        return min((spent + 1e-3) / WARMUP, (1 - spent) / (1 - WARMUP), 1.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts."""
        self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Save what is due, and stop in time."""
        spent = self.spent()
        if spent >= (self.saved + 1) / self.snapshots:
            begin = time.monotonic()
            self.saved = int(spent * self.snapshots)
            model.save_pretrained(self.output / f"snapshot_{self.saved}")
            self.aside += time.monotonic() - begin
        control.should_training_stop = spent >= 1.0


def build_model(family: str, size: str, store: TokenStore) -> Any:
    """The library's model of a preset's size, with the library's own first weights."""
    special = special_ids(load_tokenizer(store.tokenizer_dir))
    config = preset(family, size, vocab_size=store.vocab_size).replace(
        pad_token_id=special.pad,
        cls_token_id=special.cls,
        sep_token_id=special.sep,
        mask_token_id=special.mask,
        attention_bias=family == "bert",  # as is the library's default
    )
    values = write_config(config, "masked_lm", None, None)
    more = {"sparse_prediction": True} if values["model_type"] == "modernbert" else {}
    return AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(values.pop("model_type"), **values, **more)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--family", choices=["bert", "modern"], required=True)
    parser.add_argument("--size", default="mini")
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--snapshots", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True, help="a folder to be made")
    args = parser.parse_args()
    keep_freed_memory()
    device = resolve_device("auto")
    torch.manual_seed(args.seed)
    store = TokenStore.open(args.store)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(store.tokenizer_dir)
    model = build_model(args.family, args.size, store)
    times = ByTime(args.seconds, args.snapshots, args.output)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        weight_decay=0.01,
        fused=True,
    )
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(args.output / "trainer"),
            per_device_train_batch_size=args.batch_size,
            max_steps=10**7,
            bf16=has_bf16(device),
            seed=args.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
        ),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        train_dataset=Rows(store, args.length),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, times.factor)),
        callbacks=[times],
    )
    trainer.train()
    for snapshot in args.output.glob("snapshot_*"):
        tokenizer.save_pretrained(snapshot)
    steps = trainer.state.global_step
    found = {"steps": steps, "tokens": steps * args.batch_size * args.length}
    (args.output / "found.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
