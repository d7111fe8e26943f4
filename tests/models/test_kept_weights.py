import re

import keras
import numpy as np
import pytest
from drawn import drawn_model


@pytest.mark.parametrize("shape", [(28, 24, 3), (24, 32, 3), (32, 24, 1)])
def test_images_of_another_size_are_named_and_do_no_harm(shape, tiny_images):
    model = drawn_model()
    before = model.predict(tiny_images, verbose=0)
    both = r"32, 24, 3\)(.|\n)*" + re.escape(str(shape)[1:])
    for _ in range(2):
        with pytest.raises(ValueError, match=both):
            model.predict(np.zeros((2, *shape), "float32"), verbose=0)
    np.testing.assert_array_equal(model.predict(tiny_images, verbose=0), before)


class Stop(keras.callbacks.Callback):
    def on_test_batch_end(self, batch, logs=None):
        if batch == 1:
            raise KeyboardInterrupt

    on_predict_batch_end = on_test_batch_end


def test_what_stops_between_two_batches_does_no_harm(tiny_images):
    model = drawn_model()
    model.compile(loss="sparse_categorical_crossentropy")
    before = model.get_weights()
    for call in (
        lambda: model.predict(tiny_images, batch_size=1, verbose=0, callbacks=[Stop()]),
        lambda: model.evaluate(
            tiny_images, np.arange(4), batch_size=1, verbose=0, callbacks=[Stop()]
        ),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()
        for now, start in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(now, start)
