"""Which arithmetic a run uses: decided by what the processor can do, never by timing."""

from __future__ import annotations

import torch

from mlm.errors import UserError, look_up

# Names on the command line → names that Lightning takes.
PRECISIONS: dict[str, str] = {
    "auto": "auto",
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "32-true": "32-true",
    "bf16-mixed": "bf16-mixed",
    "16-mixed": "16-mixed",
}


def resolve_precision(precision: str, device: str, setting: str = "trainer.precision") -> str:
    """Lightning's name for ``precision``; `auto` is bf16 where there are bf16 matrix instructions.

    Args:
        precision: a key of `PRECISIONS`.
        device: `cpu`, `cuda` or `mps`.
        setting: where it was said.

    Raises:
        UserError: an unknown name.
    """
    name = look_up(PRECISIONS, str(precision), setting)
    if name != "auto":
        return name
    return "bf16-mixed" if has_bf16(device) else "32-true"


def has_bf16(device: str) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        can = torch.cpu.get_capabilities()
        return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))
    return False


def choose_device(device: str | torch.device) -> str:
    """The device that ``--device`` means; one of several has its number, as in `cuda:1`.

    Raises:
        UserError: no such word, or none is here.
    """
    device = str(device)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kinds = {name: resolve_device(name) for name in ("auto", "cpu", "gpu", *there)}
    kind, colon, number = device.partition(":")
    found = look_up(kinds, kind, "--device")
    if not there.get(found, True) or (kind == "gpu" and found == "cpu"):
        raise UserError(f"--device: {device} is not here; choose cpu, or auto")
    if not colon:
        return found
    numbered = [f"{found}:{i}" for i in range(torch.cuda.device_count() if found == "cuda" else 1)]
    if f"{found}:{number}" not in numbered:
        raise UserError(f"--device: {device} is not here; choose {', '.join([found, *numbered])}")
    return found if found == "cpu" else f"{found}:{number}"  # there is one CPU, whatever its number


def resolve_device(accelerator: str) -> str:
    """The device type that an ``accelerator`` means on this machine.

    `auto` leaves Apple's GPUs alone: they lack operations and 64-bit numbers that are used here.
    """
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return "cuda"
    if accelerator == "gpu" and torch.backends.mps.is_available():
        return "mps"
    return "cpu" if accelerator in ("auto", "gpu") else accelerator
