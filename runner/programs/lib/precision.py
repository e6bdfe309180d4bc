"""In which number format a program computes: what the user asked for, else what the device is good at."""

from __future__ import annotations

from pathlib import Path

import torch

from runner.programs.lib.events import ProgramError

CPU_FLAGS = Path("/proc/cpuinfo")
#: Flags of processors that multiply bf16 themselves (x86: AVX512 and AMX; ARM).
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
#: A narrower model gains nothing from bf16 on a CPU: conversions cost what the products save.
BF16_WIDTH = 256


def choose_dtype(precision: str, kind: str, width: int) -> tuple[torch.dtype | None, str]:
    """The format of the products (None: float32) and why. ``kind``: cpu or cuda; ``width``: of the model, 0: unknown.

    Raises ProgramError where the device can not do, or is much slower with, what ``precision`` asks for.
    """
    if precision == "fp32":
        return None, "as asked"
    if precision == "fp16" and kind == "cpu":
        reason = "a CPU multiplies fp16 ten times slower than float32, and it needs a gradient scaler"
        raise ProgramError("precision_unsupported", f"{reason}; use bf16, fp32 or auto", "precision")
    if precision == "fp16":
        return torch.float16, "as asked, with a gradient scaler"
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if kind == "cuda" else cpu_multiplies_bf16()
    if precision == "bf16":
        if kind == "cuda" and not has_bf16:
            raise ProgramError("precision_unsupported", "this GPU has no bf16; use fp16 or fp32", "precision")
        return torch.bfloat16, "as asked" if has_bf16 else "as asked, though this processor only emulates it"
    if not has_bf16:
        return None, "the device does not multiply bf16"
    if kind == "cpu" and width < BF16_WIDTH:
        return None, f"on a CPU bf16 pays from a width of {BF16_WIDTH} on"
    return torch.bfloat16, "the device multiplies it"


def cpu_multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bf16."""
    try:
        lines = CPU_FLAGS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not BF16_FLAGS.isdisjoint(flags.split())
