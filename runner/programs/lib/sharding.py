"""Fully sharded training (FSDP2): every process holds a share of the weights, gradients and optimizer state.

A layer's weights are whole only while it computes. Without ``shard`` everything here does nothing.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from runner.programs.lib.distributed import num_processes

Result = TypeVar("Result")


def shard(model: Any, device: torch.device) -> None:
    """Split the weights of a model over the processes, layer by layer."""
    mesh = init_device_mesh(device.type, (num_processes(),))
    layer_names = model._no_split_modules or ()
    for module in [module for module in model.modules() if type(module).__name__ in layer_names]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in _sharded_modules(model):
        # The loss is divided by the labels of all processes, so gradients are summed; gloo has no other sum.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    model.within = types.MethodType(lambda self, function, *rest: function(self, *rest), model)
    register_fsdp_forward_method(model, "within")


def is_sharded(model: Any) -> bool:
    """``shard`` was called, and ``gather`` not yet."""
    return isinstance(model, FSDPModule)


def within(model: Any, function: Callable[..., Result], *rest: Any) -> Result:
    """``function(model, *rest)`` where it may use any part of the model as if it were whole."""
    result: Result = model.within(function, *rest) if is_sharded(model) else function(model, *rest)
    return result


def gather(model: Any) -> None:
    """Make every process' model whole and ordinary again. Parameters are new objects."""
    for module in _sharded_modules(model):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
        _unhook(module._get_fsdp_state())
        module.__class__ = type(module).__mro__[2]
    for module in model.modules():
        module.__dict__.pop("_is_fsdp_managed_module", None)  # by which generation waits for other processes
    model.__dict__.pop("within", None)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the shares of all processes, which all must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process' share of a whole tensor, where ``like`` is sharded and has the same shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    moved = value.to(device=like.device, dtype=value.dtype)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def _unhook(state: Any) -> None:
    """Take away what ``fully_shard`` does before and after a forward pass and when weights are saved or loaded.

    torch itself has no way back.
    """
    hooks = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
    for group in state._fsdp_param_groups:
        hooks += group._module_to_pre_save_state_dict_hook_handle.values()
        hooks += group._module_to_pre_load_state_dict_hook_handle.values()
    for hook in hooks:
        hook.remove()


def _sharded_modules(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
