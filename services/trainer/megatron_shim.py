"""Megatron-core on a machine without CUDA.

Megatron-core asks `torch.cuda` for the present device and names "cuda" literally in a dozen
places. Where there is no CUDA, its modules get a copy of the `torch` namespace in which those
few names answer for the CPU; the `torch` that everybody else imports stays as it is, but for
two tensor methods that answer differently to Megatron-core's optimizer alone.

The patch was written for one version and refuses others. Why it exists:
docs/adr/0002-megatron-cpu-shim.md.
"""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

from services.trainer.host_memory import return_freed_memory

SUPPORTED_VERSION = "0.16.1"
_MODULES = (
    "megatron.core.distributed",
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.optimizer",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.pipeline_parallel.p2p_communication",
    "megatron.core.tensor_parallel.random",
)
"""Importing these imports every module of Megatron-core that the trainer runs."""


def install() -> None:
    """Make Megatron-core usable on the CPU; nothing happens where CUDA exists, or twice.

    Call it before any model is built, in trainer processes only.

    Raises:
        RuntimeError: another version of Megatron-core is installed.
    """
    import megatron.core

    if torch.cuda.is_available() or hasattr(megatron.core, "_realloc_cpu_torch"):
        return
    if megatron.core.__version__ != SUPPORTED_VERSION:
        raise RuntimeError(
            f"the CPU shim was written for megatron-core {SUPPORTED_VERSION} and "
            f"{megatron.core.__version__} is installed; install megatron-core=={SUPPORTED_VERSION}"
        )
    cpu_torch = _torch_on_cpu()
    megatron.core._realloc_cpu_torch = cpu_torch
    for name in _MODULES:
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(module, "torch", None) is torch:
            module.torch = cpu_torch  # type: ignore[attr-defined]
    _patch_rng()
    _patch_tensor_methods()
    return_freed_memory()


def _torch_on_cpu() -> types.ModuleType:
    """A copy of the `torch` namespace that answers for the CPU where CUDA is asked for."""
    cuda = _copy_namespace(torch.cuda)
    cuda.current_device = lambda: torch.device("cpu")  # type: ignore[attr-defined]
    cuda.synchronize = lambda *_, **__: None  # type: ignore[attr-defined]
    cuda.manual_seed = torch.manual_seed  # type: ignore[attr-defined]
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()  # type: ignore[attr-defined]
    cpu_torch = _copy_namespace(torch)
    cpu_torch.cuda = cuda  # type: ignore[attr-defined]
    for factory in ("zeros", "ones", "tensor"):
        setattr(cpu_torch, factory, _on_cpu(getattr(torch, factory)))
    return cpu_torch


def _copy_namespace(module: types.ModuleType) -> types.ModuleType:
    copy = types.ModuleType(module.__name__)
    copy.__dict__.update(module.__dict__)
    return copy


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The factory, with `device="cuda"` read as the CPU."""

    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return create


def _patch_rng() -> None:
    """Recomputation saves and restores the generator of the device: here, the CPU's."""
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def _patch_tensor_methods() -> None:
    """The optimizer accepts parameters by their type's name; tied embeddings call `cuda()`."""
    plain_type = torch.Tensor.type

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        name = plain_type(self, *args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(name, str) and caller.startswith("megatron.core.optimizer"):
            return name.replace("torch.", "torch.cuda.", 1)
        return name

    torch.Tensor.type = type_  # type: ignore[method-assign, assignment]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
