import keras
import numpy as np
import pytest

from keras_mixer.benchmark.flops import (
    growth_exponent,
    matrix_flops,
    matrix_product_ceiling,
)
from keras_mixer.models.mixer import mlp_mixer
from keras_mixer.variants import parse_variant


def flops_of(name, training=False, image_size=224):
    sizes = parse_variant(name).sizes
    shape = (image_size, image_size, 3)
    return matrix_flops(input_shape=shape, num_classes=1000, training=training, **sizes)


# timm's published results, in which a multiplication and an addition are one and a norm
# of 196 patches counts five for every value.
@pytest.mark.parametrize("name, billions", [("B/16", 12.62), ("L/16", 44.60)])
def test_timm_counts_the_same(name, billions):
    sizes = parse_variant(name).sizes
    norms = 5 * (2 * sizes["num_blocks"] + 1) * 196 * sizes["hidden_dim"]
    assert (flops_of(name) / 2 + norms) / 1e9 == pytest.approx(billions, abs=0.005)


def test_by_hand(tiny):
    # 12 patches of 8 * 8 * 3 values, 16 channels, 2 blocks, 5 classes.
    stem = 12 * (8 * 8 * 3) * 16
    block = 16 * (12 * 12 + 12 * 12) + 12 * (16 * 20 + 20 * 16)
    assert matrix_flops(**tiny) == 2 * (stem + 2 * block + 16 * 5)
    assert matrix_flops(**tiny, training=True) == 6 * (2 * block + 16 * 5) + 4 * stem


def products(jaxpr):
    """Operations of all matrix products and convolutions of a JAX program."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = np.prod([shapes[0][axis] for axis in contracted])
            total += 2 * np.prod(shapes[2]) * depth
        if equation.primitive.name == "conv_general_dilated":
            assert equation.params["lhs_dilation"] == (1, 1)
            numbers = equation.params["dimension_numbers"]
            depth = np.prod(shapes[1]) / shapes[1][numbers.rhs_spec[0]]
            total += 2 * np.prod(shapes[2]) * depth
        for value in equation.params.values():
            if inner := getattr(value, "jaxpr", None):
                total += products(inner)
    return total


@pytest.mark.skipif(keras.config.backend() != "jax", reason="counts JAX's operations")
@pytest.mark.parametrize("training", [False, True])
def test_the_program_has_as_many(tiny, training):
    import jax

    model = mlp_mixer(**tiny)
    weights = [v.value for v in model.trainable_variables]
    images = np.zeros((4, *tiny["input_shape"]), "float32")

    def total(weights):
        return model.stateless_call(weights, [], images)[0].sum()

    function = jax.value_and_grad(total) if training else total
    program = jax.make_jaxpr(function)(weights)
    assert products(program.jaxpr) == 4 * matrix_flops(**tiny, training=training)


def test_cost_is_linear_in_patches_but_for_the_head():
    head = 2 * 768 * 1000
    small, large = (flops_of("B/16", image_size=size) - head for size in (224, 896))
    assert large == 16 * small


def test_a_ceiling_is_that_of_the_fastest_size(monkeypatch):
    # Half of the speed at the first size, all of it later, and then too long.
    speeds = {64: 1e9, 128: 2e9, 256: 1.5e9}
    edges = []

    def seconds(call):
        edge = call().shape[0]
        edges.append(edge)
        return 2 * edge**3 / speeds[edge]

    monkeypatch.setattr("keras_mixer.benchmark.flops.timed", seconds)
    ceiling = matrix_product_ceiling("float32", smallest=64, long_enough=0.01)
    assert ceiling == pytest.approx(2e9)
    assert sorted(set(edges)) == [64, 128, 256]
    edges.clear()
    matrix_product_ceiling("float32", smallest=64, largest=64)
    assert set(edges) == {64}


def test_a_ceiling_of_this_machine():
    ceiling = matrix_product_ceiling("bfloat16", smallest=64, largest=128)
    assert 1e6 < ceiling < 1e17


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
def test_an_exponent_is_found_again(exponent):
    counts = [196, 784, 1764, 3136]
    assert growth_exponent(
        counts, [3e-4 * count**exponent for count in counts]
    ) == pytest.approx(exponent)


def test_noise_moves_an_exponent_little():
    counts = np.array([196, 784, 1764, 3136])
    noise = np.array([1.02, 0.98, 1.02, 0.98])
    assert growth_exponent(list(counts), list(counts * noise)) == pytest.approx(
        1, abs=0.02
    )


@pytest.mark.parametrize("counts, seconds", [([4, 4], [1, 2]), ([4, 8], [1])])
def test_no_exponent_of_one_count(counts, seconds):
    with pytest.raises(ValueError, match="two different counts"):
        growth_exponent(counts, seconds)
