import warnings

import keras
import pytest

from keras_mixer.layers import tensorflow_products
from keras_mixer.models import half_precision, mlp_mixer

BACKEND = keras.config.backend()


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(half_precision, "_warned", set())


@pytest.mark.skipif(BACKEND != "jax", reason="XLA's products on CPUs")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_jax_on_a_cpu_warns_of_half_precision_once(tiny, tiny_images, dtype):
    model = mlp_mixer(**tiny, dtype=f"mixed_{dtype}")
    with pytest.warns(UserWarning, match=f"`{dtype}` is slower.*float32"):
        model.predict(tiny_images, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mlp_mixer(**tiny, dtype=f"mixed_{dtype}").predict(tiny_images, verbose=0)


def test_float32_warns_of_nothing(tiny, tiny_images):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is slower than")
        mlp_mixer(**tiny).predict(tiny_images, verbose=0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA by choice")
def test_bfloat16_is_onednns_where_the_processor_has_units_for_it(tiny, monkeypatch):
    import tensorflow as tf

    def uses_xla(dtype):
        return mlp_mixer(**tiny, dtype=dtype).jit_compile

    monkeypatch.setattr(tensorflow_products, "multiplies", lambda _: False)
    assert uses_xla("mixed_bfloat16")
    monkeypatch.setattr(
        tensorflow_products, "multiplies", lambda dtype: dtype == "bfloat16"
    )
    assert not uses_xla("mixed_bfloat16")
    assert uses_xla("mixed_float16")
    assert uses_xla("float32")
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *_: [gpu])
    assert uses_xla("mixed_bfloat16")
