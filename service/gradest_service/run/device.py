"""Where answers are computed: on the CPU, or on a CUDA device, to which tensors are sent and from which they are fetched.

All else in the service holds tensors of the CPU: requests are decoded to them, checked and joined, and answers are encoded from
them. So what runs on a device is what stands inside `computing`, between `put` and `fetch`.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from gradest.errors import InvalidInput
from gradest_service.problems import Problem

__all__ = ["CPU", "CudaDevice", "Device", "device_named"]


class Device:
    """The CPU: tensors stay where they are."""

    def put(self, x: Tensor) -> Tensor:
        """Send a tensor to the device, inside `computing`."""
        return x

    def fetch(self, x: Tensor) -> Tensor:
        """Return a tensor of the device as one of the CPU, inside `computing`; waits for what this thread computes alone."""
        return x

    def put_all(self, state: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Send the tensors of a state."""
        return None if state is None else {name: self.put(x) for name, x in state.items()}

    def fetch_all(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a state as ones of the CPU."""
        return {name: self.fetch(x) for name, x in state.items()}

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute the block, which is one batch, on this device. Where it has no memory for that, raise a 503."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            self.release()
            raise Problem(
                503,
                "There is not enough memory for this request now. Send it again later, or ask for less in a request.",
                headers={"Retry-After": "5"},
            ) from error

    def release(self) -> None:
        """Give back memory that is kept for later."""


CPU = Device()


class CudaDevice(Device):
    """A CUDA device. Each batch has a stream of its own, so that none waits for the kernels and copies of another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: queue.SimpleQueue[torch.cuda.Stream] = queue.SimpleQueue()

    def put(self, x: Tensor) -> Tensor:
        """Send a tensor from pinned memory, from which it is copied while this thread goes on."""
        return x.pin_memory().to(self._device, non_blocking=True)

    def fetch(self, x: Tensor) -> Tensor:
        """Copy a tensor to pinned memory, and wait for this batch's stream."""
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        host.copy_(x, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return host

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute the block in a stream that no other batch uses meanwhile."""
        try:
            stream = self._streams.get_nowait()
        except queue.Empty:
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with super().computing(), torch.cuda.device(self._device), torch.cuda.stream(stream):
            try:
                yield
            finally:
                stream.synchronize()  # what it has computed with may be freed
                self._streams.put(stream)

    def release(self) -> None:
        """Give back what torch keeps of freed tensors."""
        torch.cuda.empty_cache()


def device_named(name: str) -> Device:
    """Return the device of the setting `device`: cpu, cuda, cuda:1, or auto, which is cuda where there is one.

    Raises InvalidInput if torch does not find it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return CPU
    device = torch.device(name)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= found:
        raise InvalidInput(
            f"device: torch finds {found} CUDA devices here, so there is no {name}. Set device to cpu, or install torch with CUDA"
        )
    return CudaDevice(torch.device("cuda", device.index or 0))


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory could not be allocated; for the CPU, torch raises an ordinary RuntimeError that says so."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
