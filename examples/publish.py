"""Publish what was trained, then load it as a stranger would.

    hf auth login
    python examples/publish.py own-folder/model.keras owner/name
    python examples/publish.py own-folder/model.keras folder/   # look at it first

A folder (a name that ends in "/") is written and nothing is sent. Publishing checks the
model against the paper in NumPy first, sends one commit, and reads the checksums back.
"""

import argparse

import keras
import numpy as np

import keras_mixer
from keras_mixer.hub.model_files import read_model, write_folder
from keras_mixer.hub.verification import verify


def main():
    """Verify, publish, and compare what comes back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a .keras file or a folder of a published model")
    parser.add_argument("target", help="owner/name on the Hub, or a folder with a /")
    parser.add_argument("--licence", default="apache-2.0")
    parser.add_argument("--private", action="store_true")
    options = parser.parse_args()

    model = read_model(options.model)
    print(verify(model))
    if options.target.endswith("/"):
        write_folder(model, options.target, licence=options.licence)
        source = options.target
    else:
        commit = keras_mixer.push_to_hub(
            model,
            options.target,
            licence=options.licence,
            private=options.private or None,
        )
        source = f"hf://{options.target}@{commit}"
    again = keras_mixer.from_pretrained(source)
    images = np.zeros((1, *model.input_shape[1:]), "uint8")
    one, other = (keras.ops.convert_to_numpy(m(images)) for m in (model, again))
    np.testing.assert_allclose(other, one, atol=1e-6)
    print(f"{source} predicts the same")


if __name__ == "__main__":
    main()
