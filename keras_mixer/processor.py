"""What Linux says of the processor."""

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


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
