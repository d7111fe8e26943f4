"""What this process computes on, and the most memory it has used there."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import keras

from keras_mixer.processor import cpu_field

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def describe_machine() -> dict[str, str]:
    """Return backend, devices, processor, system and versions, as short texts."""
    backend = keras.config.backend()
    processor = cpu_field("model name") or platform.processor() or platform.machine()
    return {
        "backend": f"{backend} {_version(backend)}",
        "devices": ", ".join(_accelerators(backend)) or "CPU",
        "processor": f"{processor}, {_count_cores()} cores",
        "system": platform.platform(terse=True),
        "keras": keras.version(),
        "python": platform.python_version(),
    }


def reset_peaks() -> None:
    """Forget the peaks so far, where the system can.

    Linux forgets the peak of the host, TensorFlow and torch that of the device. JAX and
    other systems do not: there a peak is the largest since the process started.
    """
    try:
        _CLEAR_REFS.write_text("5")  # the number that resets the peak: proc(5)
    except OSError:
        pass
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        for device in tf.config.list_logical_devices("GPU"):
            tf.config.experimental.reset_memory_stats(device.name)
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


def host_peak() -> int | None:
    """Return the largest resident size of the process, in bytes.

    `None` on systems that do not report it (Windows).
    """
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def device_peak() -> int | None:
    """Return the largest memory in use on the first device, in bytes.

    `None` where the backend does not report it: on CPUs, and on TPUs under TensorFlow.
    """
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        statistics = jax.local_devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use")
    if backend == "tensorflow":
        import tensorflow as tf

        if devices := tf.config.list_logical_devices("GPU"):
            return tf.config.experimental.get_memory_info(devices[0].name)["peak"]
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    return None


def _version(backend: str) -> str:
    try:
        return metadata.version(backend)
    except metadata.PackageNotFoundError:  # tensorflow-cpu, tensorflow-tpu
        import tensorflow as tf

        return tf.__version__


def _accelerators(backend: str) -> list[str]:
    """Return the kind of every device beside the CPU."""
    if backend == "jax":
        import jax

        return [d.device_kind for d in jax.local_devices() if d.platform != "cpu"]
    if backend == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_physical_devices()
        return [
            tf.config.experimental.get_device_details(device).get(
                "device_name", device.device_type
            )
            for device in devices
            if device.device_type in ("GPU", "TPU")
        ]
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _count_cores() -> int:
    """Return how many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
