"""What the profiler asks of the compute device: to finish its work, and its allocator's peaks."""

from typing import TYPE_CHECKING

from sltt_bench.measure.process_memory import resident_bytes

if TYPE_CHECKING:
    import torch


class ComputeDevice:
    """The device that trains. This one is a CPU: work is done when a call returns, and no allocator counts it."""

    gpu_uuid: str | None = None
    """None: no GPU."""

    def synchronize(self) -> None:
        """Wait until all work handed to the device is done."""

    def reset_peaks(self) -> None:
        """Start the allocator's peaks anew."""

    def allocator_peaks(self) -> dict[str, int | None]:
        """peak_allocated_bytes and peak_reserved_bytes since the last reset; None without an allocator."""
        return {"peak_allocated_bytes": None, "peak_reserved_bytes": None}

    def allocated_bytes(self) -> int | None:
        """What the allocator has given to tensors now; None without an allocator."""
        return None

    def reserved_bytes(self) -> int:
        """What the allocator holds of the device's memory now."""
        return 0

    def memory_now(self) -> int:
        """A cheap figure for a live display: bytes in tensors on CUDA, the resident set on a CPU."""
        return resident_bytes()


class Cuda(ComputeDevice):
    """A GPU as torch knows it."""

    def __init__(self, device: "torch.device") -> None:
        # torch is loaded here, since the command line lists GPUs without it.
        import torch

        self._cuda = torch.cuda
        self._device = device
        self.gpu_uuid = str(torch.cuda.get_device_properties(device).uuid)

    def synchronize(self) -> None:
        self._cuda.synchronize(self._device)

    def reset_peaks(self) -> None:
        self._cuda.reset_peak_memory_stats(self._device)

    def allocator_peaks(self) -> dict[str, int | None]:
        return {
            "peak_allocated_bytes": self._cuda.max_memory_allocated(self._device),
            "peak_reserved_bytes": self._cuda.max_memory_reserved(self._device),
        }

    def allocated_bytes(self) -> int | None:
        return self._cuda.memory_allocated(self._device)

    def reserved_bytes(self) -> int:
        return self._cuda.memory_reserved(self._device)

    def memory_now(self) -> int:
        return self._cuda.memory_allocated(self._device)


def compute_device(device: "torch.device") -> ComputeDevice:
    """The compute device behind a torch device (cpu or cuda)."""
    return Cuda(device) if device.type == "cuda" else ComputeDevice()
