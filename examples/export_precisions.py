"""The embedded checkpoint in files of every precision: accuracy, difference, speed.

    KERAS_BACKEND=torch python examples/export_precisions.py

    file             top-1  difference  images/s
    float32.onnx     84.5%     2.3e-07
    float16.onnx     84.5%     1.7e-04
    int8.onnx        84.5%     1.9e-02
    float32.xml      84.5%     2.6e-07
    bfloat16.xml     84.5%     2.5e-03
    int8.xml         84.7%     2.3e-02

That was on the first 1,000 test images of CIFAR-10, on two cores of an AMD EPYC with
bfloat16 units, with OpenVINO 2026.4.1 and ONNX Runtime 1.32.0, 2026-11-28. For
float16.xml OpenVINO asks for a processor with units of float16. `difference` is
relative to the model in float32, on noise, for int8 on the calibration images. Speed
depends on the processor's units for half precision and int8 and is left out here.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import keras_mixer
from keras_mixer import data, export

# File, arguments of `export`, whether int8, argument of `load`.
FILES = (
    ("float32.onnx", {}, False, "auto"),
    ("float16.onnx", {"precision": "float16"}, False, "auto"),
    ("int8.onnx", {}, True, "auto"),
    ("float32.xml", {}, False, "float32"),
    ("bfloat16.xml", {"precision": "bfloat16"}, False, "bfloat16"),
    ("float16.xml", {"precision": "float16"}, False, "float16"),
    ("int8.xml", {}, True, "float32"),
)


def main():
    """Export, load again, and classify the first test images of CIFAR-10."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="where TFDS has prepared CIFAR-10")
    parser.add_argument("--count", type=int, default=1000, help="test images")
    options = parser.parse_args()

    model = keras_mixer.MixerTi4(weights="cifar10")
    source = data.open_source(
        "cifar10", f"test[:{options.count}]", data_dir=options.data_dir
    )
    pixels, labels = map(
        np.stack, zip(*source.dataset.as_numpy_iterator(), strict=True)
    )
    calibration = export.calibration_images(model, "cifar10", data_dir=options.data_dir)
    print(f"{'file':<14}{'top-1':>8}{'difference':>12}{'images/s':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments, int8, precision in FILES:
            path = Path(folder) / name
            difference = export.export(
                model,
                path,
                calibration_images=calibration if int8 else None,
                **arguments,
            )
            try:
                loaded = export.load(path, precision=precision)
            except ValueError as error:  # a precision that this processor lacks
                print(f"{name:<14}{error}")
                continue
            loaded(pixels[:64])
            start = time.perf_counter()
            scores = [loaded(pixels[i : i + 64]) for i in range(0, len(pixels), 64)]
            speed = len(pixels) / (time.perf_counter() - start)
            accuracy = np.mean(np.concatenate(scores).argmax(axis=1) == labels)
            print(f"{name:<14}{accuracy:>8.1%}{difference:>12.1e}{speed:>10,.0f}")


if __name__ == "__main__":
    main()
