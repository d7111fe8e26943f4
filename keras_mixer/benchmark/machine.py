"""What this process computes on: devices, processor, versions."""

import os
import platform
from importlib import metadata
from pathlib import Path

import keras


def describe_machine():
    """Return backend, devices, processor, system and versions, as short texts."""
    backend = keras.config.backend()
    return {
        "backend": f"{backend} {_version(backend)}",
        "devices": ", ".join(_accelerators(backend)) or "CPU",
        "processor": f"{_processor()}, {len(_cores())} cores",
        "system": platform.platform(terse=True),
        "keras": keras.version(),
        "python": platform.python_version(),
    }


def _version(backend):
    try:
        return metadata.version(backend)
    except metadata.PackageNotFoundError:  # tensorflow-cpu, tensorflow-tpu
        import tensorflow as tf

        return tf.__version__


def _accelerators(backend):
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


def _processor():
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores():
    """Return those this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)
