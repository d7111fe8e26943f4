"""How many kernels a module compiled by XLA runs, and how many bytes they move."""

import math
import re

_NO_KERNEL = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element"}
_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:,|$)"
)
_ARRAY = re.compile(r"(pred|bf|[suf])(\d*)\[([\d,]*)\]")


def account(module):
    """Return how many kernels the entry of a module runs, and the bytes they move.

    Args:
        module: Text of an optimized HLO module, as `compiled.as_text()` gives it.
    """
    sizes, kernels, moved = {}, 0, 0
    for line in module[module.index("\nENTRY") :].splitlines():
        if not (match := _INSTRUCTION.match(line)):
            continue
        name, shape, operation, operands = match.groups()
        sizes[name] = sum(_bytes(*array) for array in _ARRAY.findall(shape))
        if operation not in _NO_KERNEL:
            kernels += 1
            read = re.findall(r"%([\w.-]+)", operands)
            moved += sizes[name] + sum(sizes[operand] for operand in read)
    return kernels, moved


def _bytes(kind, bits, dims):
    if kind + bits == "s8":  # cuBLAS's scratch
        return 0
    elements = math.prod(int(size) for size in dims.split(",") if size)
    return elements * int(bits or 8) // 8
