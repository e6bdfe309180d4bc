"""Layers that keep less for the backward pass learn the same; libraries that a program has no use for stay away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.programs.lib.adapters import add_lora
from runner.programs.lib.fast_lora import quicken_lora
from runner.programs.lib.lean_layers import spare_activations
from runner.programs.lib.model import Device, load_causal_model
from runner.programs.lib.spared import spared
from runner.programs.lib.training import Batch, _loss_sum

CPU, HALF = (Device(torch.device("cpu"), "CPU", dtype) for dtype in (None, torch.bfloat16))
LORA = {"target_modules": ["all-linear"], "lora_r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0}
TOKENS = torch.arange(7, 47, dtype=torch.int32)[None]
BATCH = Batch(TOKENS, torch.ones_like(TOKENS, dtype=torch.bool), ("row 1",))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def graded(base: Path, device: Device, *, is_lean: bool) -> tuple[dict[str, torch.Tensor], int]:
    """The loss with the gradients of all adapters, and the bytes that were kept for the backward pass."""
    torch.manual_seed(1)
    model = load_causal_model(base, device.autocast_dtype or torch.float32, device.device)
    package = add_lora(model, "tiny", LORA)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide the gradient of A
            torch.nn.init.normal_(parameter, std=0.1)
        if "norm" in name:  # ones, which would hide that they count
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    quicken_lora(package)
    if is_lean:
        spare_activations(package)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = _loss_sum(model, BATCH, device) / BATCH.num_labels
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}, sum(kept.values())


@pytest.mark.parametrize("shape", ["tiny_model_folder", "tiny_llama_folder"])
def test_lean_layers_keep_less_and_learn_the_same(shape: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(shape)
    (plain, kept_before), (lean, kept) = (graded(base, CPU, is_lean=is_lean) for is_lean in (False, True))
    assert kept < 0.9 * kept_before
    assert torch.equal(lean["loss"], plain["loss"])
    assert len(plain) > 14
    for name, value in plain.items():
        torch.testing.assert_close(lean[name], value, atol=1e-6, rtol=1e-6, msg=name)


def test_lean_layers_have_the_loss_of_bf16_to_the_last_bit(tiny_model_folder: Path) -> None:
    (plain, _), (lean, _) = (graded(tiny_model_folder, HALF, is_lean=is_lean) for is_lean in (False, True))
    assert torch.equal(lean["loss"], plain["loss"])
    for name, value in plain.items():
        torch.testing.assert_close(lean[name], value, atol=1e-2, rtol=5e-2, msg=name)


def test_layers_whose_adapter_is_off_compute_as_peft_does(tiny_model_folder: Path) -> None:
    model = load_causal_model(tiny_model_folder, torch.float32, CPU.device)
    package = add_lora(model, "tiny", LORA)
    quicken_lora(package)
    with package.disable_adapter(), torch.inference_mode():
        plain = _loss_sum(model, BATCH, CPU)
        spare_activations(package)
        assert torch.equal(_loss_sum(model, BATCH, CPU), plain)


def test_a_training_of_adapters_does_not_import_what_only_quantized_bases_need(tiny_model_folder: Path) -> None:
    program = """if True:
        import sys, torch
        from pathlib import Path
        from runner.programs.lib.adapters import add_lora, quantization_of
        from runner.programs.lib.model import choose_device, load_causal_model
        cpu = choose_device("fp32")
        lora = {"target_modules": ["all-linear"], "lora_r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0}
        add_lora(load_causal_model(Path(sys.argv[1]), torch.float32, cpu.device), "tiny", lora)
        print("bitsandbytes" in sys.modules, "boto3" in sys.modules)
        how = quantization_of({"quantization_bits": 4, "bnb_4bit_quant_type": "nf4"}, cpu)
        quantized = add_lora(load_causal_model(Path(sys.argv[1]), torch.float32, cpu.device, how), "tiny", lora)
        print({type(m).__name__ for m in quantized.modules() if "4bit" in type(m).__name__})
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_model_folder)], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == "False False"
    assert second == "{'Linear4bit'}"  # PEFT's own, and that of the base below it has the same name


def test_a_spared_library_is_there_again_and_one_in_use_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    before: Any = __import__("json")
    with spared("colorsys", "json"):
        with pytest.raises(ModuleNotFoundError):
            __import__("colorsys")
        assert __import__("json") is before
    assert __import__("colorsys").rgb_to_hls
