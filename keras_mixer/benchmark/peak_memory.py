"""The most memory this process used since a moment: of the host and of its device."""

import sys
from pathlib import Path

import keras

_OWN_PEAK = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peaks():
    """Begin to measure anew, where the system lets one.

    Linux forgets the peak of the host, TensorFlow and torch that of the device. JAX and
    other systems do not: there a peak is that of the process so far.
    """
    try:
        _OWN_PEAK.write_text("5")  # the number that resets the peak: proc(5)
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


def host_peak():
    """Return the largest resident size of the process, in bytes.

    `None` on systems that do not tell (Windows).
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


def device_peak():
    """Return the largest memory in use on the first device, in bytes.

    `None` where the backend does not tell: on CPUs, and on TPUs under TensorFlow.
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
