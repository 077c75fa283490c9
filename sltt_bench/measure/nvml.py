"""The sensors of one GPU through NVML (nvidia-ml-py), each of which may be missing or fail at any call."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar


@dataclass(frozen=True)
class Missing:
    """A sensor that gave no figure, and why."""

    reason: str


Value = TypeVar("Value")
Reading: TypeAlias = Value | Missing


def value_of(reading: Reading[Value]) -> Value | None:
    """The figure, or None."""
    return None if isinstance(reading, Missing) else reading


class NvmlUnavailable(Exception):
    """NVML cannot be used, or does not know the GPU; the message says why."""


@dataclass(frozen=True)
class Gpu:
    """What one GPU is."""

    name: str
    uuid: str
    memory_total_bytes: int | None
    """None where the GPU shares the memory of the host, or does not tell."""
    driver: str
    cuda_driver: str
    """The newest CUDA version that the driver serves."""


@dataclass(frozen=True)
class Readings:
    """One look at all sensors of a GPU."""

    process_bytes: Reading[int]
    """Memory that this process uses."""
    device_bytes: Reading[int]
    """Memory in use on the device, that of other processes and of the driver included."""
    utilisation: Reading[float]
    """Share of the sensor's last period (1/6 to 1 s) in which a kernel ran, 0 to 1."""
    power_w: Reading[float]
    sm_clock_mhz: Reading[int]
    memory_clock_mhz: Reading[int]
    temperature_c: Reading[int]
    clock_limits: Reading[tuple[str, ...]]
    """Why the clocks are not higher (NVML's clocks event reasons, once called throttle reasons)."""


CLOCK_LIMITS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
"""nvmlClocksEventReasons (nvml.h): bit → name. Written out, since bindings differ in which they know."""

_PROCESSES = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")
_CLOCK_LIMITS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")


def list_gpus() -> list[Gpu]:
    """All GPUs that NVML shows, in its order (by PCI bus), CUDA_VISIBLE_DEVICES or not. Raises NvmlUnavailable."""
    with _nvml() as nvml:
        drivers, gpus = _drivers(nvml), []
        for handle, _ in _handles(nvml):
            with suppress(nvml.NVMLError):  # one that is lost meanwhile hides no other
                gpus.append(_describe(nvml, handle, *drivers))
        return gpus


class GpuSensors:
    """The sensors of one GPU; open until `close`. Calls may come from any thread."""

    def __init__(self, uuid: str) -> None:
        """`uuid` with or without "GPU-". Raises NvmlUnavailable."""
        self._known: dict[tuple[str, ...], str] = {}
        with ExitStack() as stack:
            self._nvml = stack.enter_context(_nvml())
            self._handle = self._find(uuid)
            self.gpu = _describe(self._nvml, self._handle, *_drivers(self._nvml))
            self._library = stack.pop_all()

    def close(self) -> None:
        """Let go of NVML."""
        self._library.close()

    def read(self) -> Readings:
        """All sensors now."""
        nvml = self._nvml
        return Readings(
            process_bytes=self.process_bytes(),
            device_bytes=self._within_memory(
                self._call("nvmlDeviceGetMemoryInfo", lambda memory: int(memory.used))
            ),
            utilisation=_share(self._call("nvmlDeviceGetUtilizationRates", lambda rates: rates.gpu / 100)),
            power_w=self._call("nvmlDeviceGetPowerUsage", lambda milliwatts: milliwatts / 1000),
            sm_clock_mhz=self._call("nvmlDeviceGetClockInfo", int, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._call("nvmlDeviceGetClockInfo", int, nvml.NVML_CLOCK_MEM),
            temperature_c=self._call("nvmlDeviceGetTemperature", int, nvml.NVML_TEMPERATURE_GPU),
            clock_limits=self._call(_CLOCK_LIMITS, clock_limit_names),
        )

    def energy_j(self) -> Reading[float]:
        """Joules of the whole device since the driver was loaded: a counter (Volta or newer)."""
        return self._call("nvmlDeviceGetTotalEnergyConsumption", lambda millijoules: millijoules / 1000)

    def state(self) -> dict[str, Any]:
        """What tells whether the GPU is free, cool and unthrottled; None where a sensor is silent, `missing` says why."""
        now = self.read()
        readings: dict[str, Reading[Any]] = {
            "sm_clock_mhz": now.sm_clock_mhz,
            "sm_clock_max_mhz": self._call("nvmlDeviceGetMaxClockInfo", int, self._nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": now.memory_clock_mhz,
            "clock_limits": now.clock_limits,
            "power_w": now.power_w,
            "power_limit_w": self._call("nvmlDeviceGetEnforcedPowerLimit", lambda mw: mw / 1000),
            "temperature_c": now.temperature_c,
            "device_bytes": now.device_bytes,
            "other_compute_processes": self._other_processes(),
        }
        missing = {name: reading.reason for name, reading in readings.items() if isinstance(reading, Missing)}
        return {**{name: value_of(reading) for name, reading in readings.items()}, "missing": missing}

    def _other_processes(self) -> Reading[int]:
        """How many are on the GPU beside this one, which the driver must list for that."""
        listed = self._call(_PROCESSES, list)
        if isinstance(listed, Missing):
            return listed
        others = [process for process in listed if process.pid != os.getpid()]
        if listed and len(others) == len(listed):
            return Missing("the driver counts pids apart (a container): which process is this one is unknown")
        return len(others)

    def process_bytes(self) -> Reading[int]:
        """Memory that this process uses, where the driver tells it."""
        listed = self._call(_PROCESSES, list)
        if isinstance(listed, Missing):
            return listed
        mine = [process.usedGpuMemory for process in listed if process.pid == os.getpid()]
        if not mine:
            return Missing(
                "NVML lists no memory for this process (its pid is not the driver's, as in a container, "
                "or it has not used the GPU yet)"
            )
        if not all(mine):  # None or 0: a process that computes has at least a context
            return Missing("the driver does not tell the memory of single processes (WSL or vGPU)")
        return self._within_memory(int(sum(mine)))

    def _within_memory(self, used: Reading[int]) -> Reading[int]:
        """`used` bytes, if the GPU has so many."""
        total = self.gpu.memory_total_bytes
        if isinstance(used, Missing) or total is None or used <= total:
            return used
        return Missing(f"the driver gives {used} bytes in use, more than the {total} that the GPU has")

    def _find(self, uuid: str) -> Any:
        for handle, its_uuid in _handles(self._nvml):
            if same_gpu(its_uuid, uuid):
                self._refuse_mig(handle)
                return handle
        raise NvmlUnavailable(
            f"NVML shows no GPU with the UUID {uuid} (a slice of a GPU (MIG), hidden from this container, or without an answer)"
        )

    def _refuse_mig(self, handle: Any) -> None:
        try:
            mode, _ = self._nvml.nvmlDeviceGetMigMode(handle)
        except self._nvml.NVMLError:
            return  # a GPU that cannot be sliced
        if mode == self._nvml.NVML_DEVICE_MIG_ENABLE:
            raise NvmlUnavailable("the GPU is sliced (MIG): its sensors speak for all slices together")

    def _call(
        self, names: str | tuple[str, ...], convert: Callable[[Any], Value], *arguments: Any
    ) -> Reading[Value]:
        """The converted answer of the first of `names` that the driver has."""
        names = (names,) if isinstance(names, str) else names
        for name in [self._known[names]] if names in self._known else names:
            try:
                answer = getattr(self._nvml, name)(self._handle, *arguments)
            except self._nvml.NVMLError_FunctionNotFound:
                continue
            except self._nvml.NVMLError as error:
                return Missing(f"{name}: {error}")
            self._known[names] = name
            return convert(answer)
        return Missing(f"{names[0]}: not in this driver")


def clock_limit_names(bits: int) -> tuple[str, ...]:
    """The names of the set bits, lowest first; a bit without a name is given as a number."""
    return tuple(CLOCK_LIMITS.get(1 << n, hex(1 << n)) for n in range(bits.bit_length()) if bits >> n & 1)


@contextmanager
def _nvml() -> Iterator[Any]:
    """The initialised library. Raises NvmlUnavailable for whatever NVML raises inside."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(f"NVML: {error}") from None
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(f"NVML: {error}") from None
    finally:
        with suppress(pynvml.NVMLError):  # a GPU that was lost
            pynvml.nvmlShutdown()


def _handles(nvml: Any) -> Iterator[tuple[Any, str]]:
    """The GPUs that answer, with their UUIDs.

    Passed over is one that has fallen off the bus, and one that the driver counts but keeps from this process, as that of
    another job on a shared node (NVML_ERROR_NO_PERMISSION, see nvmlDeviceGetCount_v2).
    """
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = nvml.nvmlDeviceGetUUID(handle)
        except nvml.NVMLError:
            continue
        yield handle, uuid


def _drivers(nvml: Any) -> tuple[str, str]:
    """The versions of the driver, and of CUDA that it serves."""
    cuda = nvml.nvmlSystemGetCudaDriverVersion()
    return nvml.nvmlSystemGetDriverVersion(), f"{cuda // 1000}.{cuda % 1000 // 10}"


def _describe(nvml: Any, handle: Any, driver: str, cuda_driver: str) -> Gpu:
    try:
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:
        memory = None
    name, uuid = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetUUID(handle)
    return Gpu(name, uuid, memory, driver, cuda_driver)


def _share(reading: Reading[float]) -> Reading[float]:
    """A reading from 0 to 1."""
    if isinstance(reading, Missing) or 0 <= reading <= 1:
        return reading
    return Missing(f"the driver gives a share of {reading:.0%}")


def same_gpu(uuid: str, other: str) -> bool:
    """Whether two spellings (NVML's "GPU-8a56…", torch's "8A56…") name one GPU."""
    return _plain(uuid) == _plain(other)


def _plain(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-")
