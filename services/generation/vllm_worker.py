"""What runs inside each vLLM worker: new weights arrive beside the live ones, then replace them.

vLLM imports this module in every worker before it loads the model (``worker_extension_cls``)
and mixes `WorkerExtension` into its worker class; the methods are called by name with
``collective_rpc``. With several ranks an exception in one of them would leave the answers of
the others unread, so each call returns an `Outcome`, never raises.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.layers import utils as vllm_layers
from vllm.platforms import current_platform

from realloc.core.errors import ReallocError
from realloc.core.transfer import TransferProgram, TransferSession
from services.generation.weight_receiver import WeightReceiver


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a call on one rank gave: a value or an error."""

    value: Any = None
    error: ReallocError | None = None


class WorkerExtension:
    """Mixed into vLLM's worker class; all names begin with ``realloc_``."""

    # What vLLM's worker has.
    rank: int
    model_runner: Any

    _realloc_receiver: WeightReceiver | None = None

    def realloc_open(
        self, transfer_host: str, name: str, first_device: int | None, staging_bytes: int
    ) -> Outcome:
        """Make this rank's parameters ready to be replaced; call it once, after the load."""

        def work() -> None:
            self._realloc_receiver = WeightReceiver(
                dict(self.model_runner.model.named_parameters()),
                transfer_host=transfer_host,
                name=f"{name}/{self.rank}",
                device=None if first_device is None else first_device + self.rank,
                staging_bytes=staging_bytes,
            )

        return _outcome(work)

    def realloc_specs(self) -> Outcome:
        """Local shape and element type of each parameter by vLLM name."""
        return _outcome(lambda: self._receiver().specs())

    def realloc_stage(
        self, session: TransferSession, programs: Sequence[TransferProgram]
    ) -> Outcome:
        """Receive this rank's program into the shadow; a `TransferReport`."""
        return _outcome(lambda: self._receiver().stage(session, programs[self.rank]))

    def realloc_commit(self) -> Outcome:
        """Copy the shadow into the live parameters."""
        return _outcome(lambda: self._receiver().commit())

    def realloc_abort(self) -> Outcome:
        """Drop the shadow."""
        return _outcome(lambda: self._receiver().abort())

    def realloc_close(self) -> Outcome:
        """Leave all transfer groups and give the shadow's memory back."""
        return _outcome(lambda: self._receiver().close())

    def _receiver(self) -> WeightReceiver:
        assert self._realloc_receiver is not None
        return self._realloc_receiver


def _outcome(work: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(value=work())
    except ReallocError as error:
        return Outcome(error=error)
    except Exception as error:
        return Outcome(error=ReallocError(f"{type(error).__name__}: {error}"))


def _keep_parameters_live() -> None:
    """Let a CPU worker compute with its parameters instead of a packed copy of them.

    vLLM packs each linear layer for oneDNN after loading and frees the parameter, so that new
    weights would have nowhere to go. On other platforms the parameters stay.
    """

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    if current_platform.is_cpu():
        vllm_layers.dispatch_cpu_unquantized_gemm = plain


_keep_parameters_live()
