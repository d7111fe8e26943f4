import pytest

from keras_mixer.variants import VARIANTS, count_params, parse_variant

# No backend computes here.
pytestmark = pytest.mark.backend_free

# paper, table 1: layers, patch, hidden size, patches at 224, D_C, D_S, parameters in M.
TABLE_1 = {
    "S/32": (8, 32, 512, 49, 2048, 256, 19),
    "S/16": (8, 16, 512, 196, 2048, 256, 18),
    "B/32": (12, 32, 768, 49, 3072, 384, 60),
    "B/16": (12, 16, 768, 196, 3072, 384, 59),
    "L/32": (24, 32, 1024, 49, 4096, 512, 206),
    "L/16": (24, 16, 1024, 196, 4096, 512, 207),
    "H/14": (32, 14, 1280, 256, 5120, 640, 431),
}

# Backbone, with 1000 classes, with 21843 classes. Three of the middle column are
# asserted by the official code (`vit_jax/models_test.py`).
PARAMS = {
    "Ti/4": (1_130_880, 1_259_880, 3_948_627),
    "S/32": (18_591_624, 19_104_624, 29_797_083),
    "S/16": (18_015_264, 18_528_264, 29_220_723),
    "S/8": (20_133_504, 20_646_504, 31_338_963),
    "B/32": (59_524_428, 60_293_428, 76_321_695),
    "B/16": (59_111_472, 59_880_472, 75_908_739),
    "L/32": (205_914_264, 206_939_264, 228_303_339),
    "L/16": (207_171_168, 208_196_168, 229_560_243),
    "H/14": (431_069_952, 432_350_952, 459_050_835),
}


def params(variant, num_classes):
    sizes = parse_variant(variant)
    return count_params(
        patch_size=sizes.patch_size,
        hidden_dim=sizes.hidden_dim,
        num_blocks=sizes.num_blocks,
        tokens_mlp_dim=sizes.tokens_mlp_dim,
        channels_mlp_dim=sizes.channels_mlp_dim,
        input_shape=(sizes.image_size, sizes.image_size, 3),
        num_classes=num_classes,
    )


@pytest.mark.parametrize("variant", TABLE_1)
def test_sizes_are_those_of_the_paper(variant):
    sizes = parse_variant(variant)
    assert TABLE_1[variant] == (
        sizes.num_blocks,
        sizes.patch_size,
        sizes.hidden_dim,
        (224 // sizes.patch_size) ** 2,
        sizes.channels_mlp_dim,
        sizes.tokens_mlp_dim,
        round(params(variant, 0) / 1e6),
    )


@pytest.mark.parametrize("variant", PARAMS)
def test_parameter_counts_are_exact(variant):
    assert tuple(params(variant, n) for n in (0, 1000, 21843)) == PARAMS[variant]


def test_every_variant_is_in_the_table():
    assert set(PARAMS) == set(VARIANTS)


def test_any_patch_size_goes_with_any_letter():
    assert parse_variant("L/8").patch_size == 8


@pytest.mark.parametrize(
    "name", ["", "B", "B16", "b/16", "X/16", "B/0", "B/16 ", "B/-1"]
)
def test_nonsense_is_refused_with_the_sizes_there_are(name):
    with pytest.raises(ValueError, match="Ti, S, B, L, H") as error:
        parse_variant(name)
    assert repr(name) in str(error.value)
