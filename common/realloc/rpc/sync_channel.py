"""The channel for threads; see `channel`."""

from collections.abc import Iterator
from typing import Any

import grpc

from realloc.rpc.calls import CallDefaults, ClientCall


class SyncChannel(grpc.Channel):
    """What generated stubs take for a grpc channel."""

    def __init__(self, inner: grpc.Channel, defaults: CallDefaults) -> None:
        self._inner = inner
        self._defaults = defaults

    @property
    def address(self) -> str:
        return self._defaults.address

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Unary(self._inner.unary_unary(method, *args, **kwargs), method, self._defaults)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Unary(self._inner.stream_unary(method, *args, **kwargs), method, self._defaults)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Stream(self._inner.unary_stream(method, *args, **kwargs), method, self._defaults)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Stream(self._inner.stream_stream(method, *args, **kwargs), method, self._defaults)

    def __enter__(self) -> "SyncChannel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._inner.close()

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        self._inner.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        self._inner.unsubscribe(callback)


class _Unary:
    """Calls with one response."""

    def __init__(self, inner: Any, method: str, defaults: CallDefaults) -> None:
        self._inner = inner
        self._method = method
        self._defaults = defaults

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> Any:
        if timeout is None:
            timeout = self._defaults.timeout_seconds
        call = self._defaults.begin(self._method, metadata)
        try:
            response = self._inner(request, timeout=timeout, metadata=call.metadata, **options)
        except grpc.RpcError as error:
            raise call.failed(error) from error
        except BaseException:
            call.cancelled()
            raise
        call.span.end()
        return response


class _Stream:
    """Calls with a stream of responses."""

    def __init__(self, inner: Any, method: str, defaults: CallDefaults) -> None:
        self._inner = inner
        self._method = method
        self._defaults = defaults

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> "SyncResponseStream":
        if timeout is None:
            timeout = self._defaults.stream_timeout_seconds
        call = self._defaults.begin(self._method, metadata)
        inner = self._inner(request, timeout=timeout, metadata=call.metadata, **options)
        return SyncResponseStream(inner, call)


class SyncResponseStream:
    """Responses as they come. Leave it early by ``with`` or `cancel` (from any thread)."""

    def __init__(self, inner: Any, call: ClientCall) -> None:
        self._inner = inner
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._inner)
        except StopIteration:
            self._call.span.end()
            raise
        except grpc.RpcError as error:
            if self._inner.cancelled():
                raise StopIteration from None
            raise self._call.failed(error) from error

    def __enter__(self) -> "SyncResponseStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Give the rest up; nothing happens where the stream has ended."""
        if self._inner.cancel():
            self._call.cancelled()

    def __del__(self) -> None:
        self.cancel()
