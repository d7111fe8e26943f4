"""Measure speed and memory of the models, each in processes of its own.

    KERAS_BACKEND=jax python docs/measure_models.py --batch-size 8
    KERAS_BACKEND=jax python docs/measure_models.py --variants S/16 B/16 --rounds 20

The rows of a table in Markdown are printed. Each model is measured in two processes,
since the peak memory is that of a process: one classifies batches of random
images, the other fine-tunes on them (whole steps: loss, gradients, SGD with momentum).
Weights are random; they change neither time nor memory. Times are medians of calls.
"""

import argparse
import json
import subprocess
import sys

from keras_mixer import benchmark
from keras_mixer.variants import VARIANTS


def main() -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="timed calls")
    parser.add_argument("--one", choices=("inference", "training"), help="internal")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options)))
        return 0
    print("| model | images/s | GiB | fine-tuning: images/s | GiB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for variant in options.variants:
        cells = [f"`Mixer{variant.replace('/', '')}`"]
        for kind in ("inference", "training"):
            cells += in_a_process(variant, kind, options)
        print(f"| {' | '.join(cells)} |", flush=True)
    machine = benchmark.describe_machine()
    print(
        f"\nBatches of {options.batch_size}. {machine['devices']}, "
        f"{machine['processor']}; {machine['backend']}, Keras {machine['keras']}."
    )
    return 0


def in_a_process(variant: str, kind: str, options: argparse.Namespace) -> list[str]:
    """Return images per second and GiB, or why there are none."""
    command = [sys.executable, __file__, "--one", kind, "--variants", variant]
    for name in ("batch_size", "rounds"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
        return ["failed", "failed"]
    numbers = json.loads(done.stdout.splitlines()[-1])
    peak = numbers["bytes"]
    memory = "unknown" if peak is None else f"{peak / 2**30:.1f}"
    return [f"{numbers['speed']:.3g}", memory]


def measured(options: argparse.Namespace) -> dict[str, float | None]:
    """Return images per second and the peak memory in bytes of this process."""
    (variant,) = options.variants
    case = benchmark.Case(
        variant, options.batch_size, training=options.one == "training"
    )
    (result,) = benchmark.run([case], rounds=options.rounds).results
    return {
        "speed": result.images_per_second,
        "bytes": result.device_peak or result.host_peak,
    }


if __name__ == "__main__":
    sys.exit(main())
