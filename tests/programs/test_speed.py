"""Tokens without padding, and the share of a GPU's peak that they need."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runner.programs.lib.model import Device
from runner.programs.lib.speed import peak_flops, tokens_of, utilization


class Model(torch.nn.Linear):
    """As much of a model of transformers as is asked."""

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A10G", None),
        ("CPU, 2 of 2 cores", None),
    ],
)
def test_only_whole_devices_with_a_published_peak_have_one(name: str, teraflops: int | None) -> None:
    assert peak_flops(name) == (None if teraflops is None else teraflops * 1e12)


def test_a_frozen_base_needs_four_operations_a_parameter_and_token_else_six() -> None:
    model = Model(99, 10)  # 1,000 parameters
    gpu = Device(torch.device("cpu"), "NVIDIA A100-SXM4-80GB", torch.bfloat16)
    assert utilization(model, 31.2e9, gpu) == {"train/mfu": pytest.approx(0.6)}
    model.bias.requires_grad = False
    assert utilization(model, 31.2e9, gpu) == {"train/mfu": pytest.approx(0.4)}
    for device in (Device(gpu.device, gpu.name, None), Device(gpu.device, "CPU", torch.bfloat16)):
        assert utilization(model, 31.2e9, device) == {}


@pytest.mark.parametrize(("labels", "tokens"), [([1, 0], 3), ([[5, 6, -100], [7, -100, -100]], 6)])
def test_padding_does_not_count_and_targets_do(labels: Any, tokens: int) -> None:
    assert tokens_of({"attention_mask": torch.tensor([[1, 1], [1, 0]]), "labels": torch.tensor(labels)}) == tokens
