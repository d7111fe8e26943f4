"""What Linux says of the processor."""

from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# One of these flags is there where the processor multiplies numbers of the dtype.
_UNITS = {
    "bfloat16": {"amx_bf16", "avx512_bf16"},
    "float16": {"amx_fp16", "avx512_fp16"},
}


@cache  # layers ask at every call
def multiplies(dtype: str) -> bool:
    """Return whether the processor has units for products in a 16-bit dtype."""
    return dtype in _UNITS and not _UNITS[dtype].isdisjoint(cpu_field("flags").split())


def cpu_field(name: str) -> str:
    """Return a field of the first processor, such as `"flags"` or `"model name"`.

    Empty where there is none: on other systems, and for names of other architectures.
    """
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
