"""Times the parts of a model while the trainer runs it: layers, head, optimizer steps.

Hooks on the live module mark when a part begins and ends; the trainer's code knows nothing of
it. On a GPU the marks are events on its stream, so that the host runs ahead as it always does.

    with Stopwatch(model) as stopwatch:
        engine.train(...)
    stopwatch.passes()      # one `PassTimes` per micro-batch
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from services.trainer.megatron_model import MegatronModel

Mark = Callable[[], float]
"""When a mark was set, in seconds; to be read once the device has reached it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Seconds of the parts of one micro-batch; backward is 0 where there was none."""

    embedding_forward: float
    layers: int
    layer_forward: float
    """Mean of the layers."""
    layer_backward: float
    head: float
    """From the last layer's end to the start of its backward pass: final norm, projection, loss
    and their backward. Without a backward pass to the mark of `set_output`, where there is one,
    or to the end of the model's forward pass."""

    @property
    def seconds(self) -> float:
        """Of all parts."""
        layers = self.layers * (self.layer_forward + self.layer_backward)
        return self.embedding_forward + layers + self.head


class Stopwatch:
    """Marks on one model; in force within its context."""

    def __init__(self, model: MegatronModel) -> None:
        self._model = model
        self._passes: list[dict[str, Mark]] = []
        self._steps: list[tuple[Mark, Mark]] = []
        self._handles: list[Any] = []
        self._origin: Any = None

    def __enter__(self) -> "Stopwatch":
        module, layers = self._model.module, self._model.module.decoder.layers
        self._handles = [
            module.register_forward_pre_hook(lambda *_: self._begin()),
            module.register_forward_hook(lambda *_: self._set("forward_end")),
            layers[0].register_forward_pre_hook(self._before_layers, with_kwargs=True),
            layers[-1].register_forward_hook(self._after_layers),
        ]
        if self._model.optimizer is not None:
            self._model.optimizer.step = self._timed_step(self._model.optimizer.step)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        if self._model.optimizer is not None:
            del self._model.optimizer.step  # the class's own shows again

    def set_output(self) -> None:
        """Mark that what is made of the model's output, such as log-probabilities, is there."""
        self._set("output_end")

    def passes(self) -> tuple[PassTimes, ...]:
        """Times of all micro-batches since the start; waits for the device."""
        self._wait()
        return tuple(
            self._times({name: mark() for name, mark in marks.items()}) for marks in self._passes
        )

    def steps(self) -> tuple[float, ...]:
        """Seconds of each optimizer step since the start; waits for the device."""
        self._wait()
        return tuple(end() - begin() for begin, end in self._steps)

    def _times(self, at: dict[str, float]) -> PassTimes:
        layers = len(self._model.module.decoder.layers)
        backward = at.get("backward_end", 0.0) - at.get("backward_begin", 0.0)
        end = at.get("output_end", at["forward_end"])
        return PassTimes(
            embedding_forward=at["layers_begin"] - at["begin"],
            layers=layers,
            layer_forward=(at["layers_end"] - at["layers_begin"]) / layers,
            layer_backward=backward / layers,
            head=at.get("backward_begin", end) - at["layers_end"],
        )

    def _begin(self) -> None:
        self._passes.append({})
        self._set("begin")

    def _before_layers(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._set("layers_begin")
        self._on_gradient(kwargs["hidden_states"] if not args else args[0], "backward_end")

    def _after_layers(self, layer: Any, args: tuple[Any, ...], output: Any) -> None:
        self._set("layers_end")
        self._on_gradient(output[0] if isinstance(output, tuple) else output, "backward_begin")

    def _on_gradient(self, tensor: Tensor, name: str) -> None:
        """The gradient of a part's input is whole when the part's backward pass has ended."""
        marks = self._passes[-1]
        if tensor.requires_grad:
            tensor.register_hook(lambda _: marks.__setitem__(name, self._mark()))

    def _timed_step(self, step: Callable[[], Any]) -> Callable[[], Any]:
        def timed() -> Any:
            begin = self._mark()
            result = step()
            self._steps.append((begin, self._mark()))
            return result

        return timed

    def _set(self, name: str) -> None:
        self._passes[-1][name] = self._mark()

    def _mark(self) -> Mark:
        if self._model.device.type != "cuda":
            now = time.perf_counter()
            return lambda: now
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()  # type: ignore[no-untyped-call]
        origin = self._origin = self._origin or event
        return lambda: float(origin.elapsed_time(event)) * 1e-3

    def _wait(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
