"""Our Mixer beside what one would take instead, each in a process of its own.

    python examples/benchmark/compare.py --variant B/16 --batch-size 16
    python examples/benchmark/compare.py --contenders ours-jax flax --train

needs the extras jax, tensorflow and benchmark of this package, and export for exported
files. Contenders run in turn, one call each, so that drift of the machine cancels in
the ratios; one that waits for its turn computes nothing. All get pixels, normalise them
alike and give logits. Prints the median of every contender, and how many times as fast
ours are.
"""

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack

import numpy as np

from keras_mixer.benchmark import Case, alternate, speed_ratio, timed

BACKENDS = {
    f"{who}-{backend}": backend
    for who in ("ours", "naive")
    for backend in ("jax", "tensorflow", "torch")
} | {"ours-torch-compiled": "torch"}
CONTENDERS = (
    *BACKENDS,
    # Exported, and run by the runtime that the name says: inference on a CPU.
    *("ours-onnx", "ours-onnx-int8", "ours-openvino", "ours-openvino-int8"),
    "flax",
    *("timm", "timm-traced", "timm-compiled", "timm-autotuned"),
)


def main():
    """Start a process per contender and let them take turns."""
    options = _options()
    if options.serve:
        return serve(options.serve, _case(options))
    with ExitStack() as stack:
        calls = {
            name: stack.enter_context(Contender(name)).call
            for name in options.contenders
        }
        timings = alternate(calls, rounds=options.rounds)
    for name, timing in timings.items():
        low, high = timing.quartiles
        rate = options.batch_size / timing.median
        print(
            f"{name:<18}{1e3 * timing.median:10.2f} ms "
            f"({1e3 * low:.2f} to {1e3 * high:.2f}){rate:10.1f} images/s"
        )
    ours = [name for name in timings if name.startswith("ours")]
    for name, other in [(a, b) for a in ours for b in timings if b not in ours]:
        ratio = speed_ratio(timings[name], timings[other])
        print(
            f"{name} is {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) "
            f"times as fast as {other}"
        )


class Contender:
    """A process that makes one call whenever it is told to."""

    def __init__(self, name):
        environment = {"KERAS_BACKEND": BACKENDS.get(name, "jax")}
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # all share one device
        environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        self._process = subprocess.Popen(
            [sys.executable, *sys.argv, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
        )

    def __enter__(self):
        self.call()
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.communicate()

    def call(self):
        """Let the process make one call, and wait for it."""
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        if not self._process.stdout.read(1):
            raise RuntimeError(f"{self._process.args[-1]} ended, see its message above")


def serve(name, case):
    """Make a contender and run one call for every line of the standard input."""
    from contenders import contender

    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever else prints does not answer
    rng = np.random.default_rng(0)
    shape = (case.batch_size, *case.sizes["input_shape"])
    images = rng.integers(0, 256, shape, "uint8")
    labels = rng.integers(0, case.sizes["num_classes"], case.batch_size)
    call = contender(name, case, images, labels)
    for _ in sys.stdin.buffer:
        timed(call)
        answers.write(b".")


def _case(options):
    return Case(
        options.variant,
        options.batch_size,
        options.image_size,
        options.dtype,
        options.train,
    )


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="B/16")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int)
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "mixed_bfloat16")
    )
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=["ours-jax", "ours-tensorflow", "flax", "timm", "naive-jax"],
        choices=CONTENDERS,
    )
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
