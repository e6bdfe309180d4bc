"""Fully sharded training (FSDP2): every process holds a share of the weights, gradients and optimizer state.

A layer's weights are whole only while it computes. Without ``shard`` everything here does nothing.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from runner.programs.lib.distributed import is_first, num_processes
from runner.programs.lib.events import Reporter

Result = TypeVar("Result")


def is_wanted(knobs: Mapping[str, Any]) -> bool:
    """The weights of this training are to be shared out."""
    return knobs.get("distributed_strategy") == "fsdp" and num_processes() > 1


def shard_as_asked(model: Any, knobs: Mapping[str, Any], device: torch.device, say: Reporter) -> None:
    """``shard`` where the knob asks for it and there are others to share with."""
    if is_wanted(knobs):
        shard(model, device)
        tell(say)


def tell(say: Reporter) -> None:
    """Say that the weights are shared out."""
    say.phase("model", f"weights, gradients and optimizer state are shared out over {num_processes()} processes")


def shard(model: Any, device: torch.device, *, averages: bool = False) -> None:
    """Split the weights of a model over the processes, layer by layer; each layer moves to the device when it is due.

    Gradients are summed over the processes, or averaged.
    """
    mesh = init_device_mesh(device.type, (num_processes(),))
    layer_names = model._no_split_modules or ()
    for module in [module for module in model.modules() if type(module).__name__ in layer_names]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in _sharded_modules(model):
        module.set_gradient_divide_factor(float(num_processes()) if averages else 1.0)  # gloo itself only sums
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


def gather(model: Any, device: torch.device) -> None:
    """Make the first process' model whole and ordinary again, with new parameters; the others' is empty then.

    It comes to lie on the device where that has the memory, else on the CPU.
    """
    sharded = _sharded_modules(model)
    if not sharded:
        return
    for module in sharded:
        module.reshard()
        _unhook(module._get_fsdp_state())
        module.__class__ = type(module).__mro__[2]
    known: dict[int, torch.nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        module.__dict__.pop("_is_fsdp_managed_module", None)  # by which generation waits for other processes
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                if id(parameter) not in known:
                    known[id(parameter)] = torch.nn.Parameter(kept(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = known[id(parameter)]
    model.__dict__.pop("within", None)
    if is_first() and _has_room(known.values(), device):
        model.to(device)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the shares of all processes, which all must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def kept(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as it is, or all shares of it; only the first process, which writes, keeps those, on the CPU."""
    if not isinstance(tensor, DTensor):
        return tensor.contiguous()
    together = whole(tensor)
    return together.cpu() if is_first() else torch.empty(0)


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


def _has_room(parameters: Iterable[torch.Tensor], device: torch.device) -> bool:
    """The device has the memory for whole weights and some work with them."""
    if device.type != "cuda":
        return True
    return 1.25 * sum(parameter.nbytes for parameter in parameters) < torch.cuda.mem_get_info(device)[0]


def _sharded_modules(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
