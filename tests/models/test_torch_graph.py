"""Compiled by torch a model is one graph, with the same outputs and training."""

import keras
import numpy as np
import pytest
from drawn import drawn_model

if keras.config.backend() != "torch":
    pytest.skip("torch's alone", allow_module_level=True)

import torch

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler's own


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Return the counters of the compiler, which writes no machine code here."""
    from torch._dynamo.utils import counters

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compile_(f, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def test_a_compiled_model_is_one_graph_and_is_compiled_once(graphs, tiny_images):
    model = drawn_model()
    images = torch.tensor(tiny_images)
    compiled = torch.compile(model)
    with torch.no_grad():
        expected = model(images)
        frames = []
        for _ in range(4):
            found = compiled(images)
            frames.append(graphs["frames"]["ok"])
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-6)
    assert graphs["stats"]["unique_graphs"] == 1
    assert frames[1] == frames[3]
    model.set_weights([weight * 0.5 for weight in model.get_weights()])
    with torch.no_grad():
        np.testing.assert_allclose(compiled(images), model(images), atol=1e-6)
    assert graphs["stats"]["unique_graphs"] == 1


def fitted(images, jit_compile, **options):
    model = drawn_model(**options)
    model.compile(
        keras.optimizers.SGD(0.1),
        "sparse_categorical_crossentropy",
        jit_compile=jit_compile,
    )
    labels = np.arange(len(images)) % 3
    model.fit(images, labels, batch_size=2, epochs=2, shuffle=False, verbose=0)
    return model


def test_jit_compile_trains_and_predicts_as_without(graphs, tiny_images):
    eager = fitted(tiny_images, False)
    assert not graphs["stats"]
    model = fitted(tiny_images, True)
    assert graphs["stats"]["unique_graphs"] == 1
    for found, expected in zip(model.get_weights(), eager.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)
    for _ in range(3):
        np.testing.assert_allclose(
            model.predict(tiny_images, batch_size=2, verbose=0),
            eager.predict(tiny_images, batch_size=2, verbose=0),
            atol=2e-6,
        )
    assert graphs["stats"]["unique_graphs"] == 2


def test_dropout_is_drawn_without_the_compiler(graphs, tiny_images):
    fitted(tiny_images, True, dropout_rate=0.5)
    assert not graphs["stats"]


def test_another_graph_after_quantizing(graphs, tiny_images):
    model = drawn_model()
    model.jit_compile = True
    images = torch.tensor(tiny_images)
    with torch.no_grad():
        before = model(images)
        model.quantize("int8")
        after = model(images)
        model.jit_compile = False
        np.testing.assert_allclose(after, model(images), atol=1e-5)
    assert 1e-6 < (after - before).abs().max() < 0.1


def test_a_program_is_not_taken_for_one_of_other_variables(monkeypatch, tiny_images):
    """An id is given again when its variable is gone; here all ids are one."""
    from keras_mixer.models import torch_graph

    monkeypatch.setattr(torch_graph, "id", lambda variable: 0, raising=False)
    monkeypatch.setattr(torch, "compile", lambda graph: graph)
    model = drawn_model()
    expected = keras.ops.convert_to_numpy(model(tiny_images))
    for frozen in ("stem", "head"):  # as many variables, in another order
        model.trainable = True
        model.get_layer(frozen).trainable = False
        with torch.no_grad():
            found = torch_graph.run(model, torch.as_tensor(tiny_images), False)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
