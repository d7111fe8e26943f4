import pytest

from keras_mixer.data import Augmentation


def test_a_record_read_from_json_is_the_same():
    record = Augmentation(area_range=[0.2, 1.0], randaugment=[2, 15])
    assert record == Augmentation(area_range=(0.2, 1.0), randaugment=(2, 15))
    assert hash(record) == hash(
        Augmentation(area_range=(0.2, 1.0), randaugment=(2, 15))
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": "random"}, "`crop` must be one of 'pad', 'inception', 'none'"),
        ({"pad": -1}, "`pad` must be an integer from 0"),
        ({"area_range": (0.0, 1.0)}, "`area_range` must be two shares"),
        ({"area_range": (0.9, 0.1)}, "the smaller one first"),
        ({"randaugment": (2, 30)}, r"a magnitude in \[0, 20\]"),
        ({"randaugment": (1.5, 3)}, "`randaugment` must be None, or"),
        ({"randaugment": (2, 9, 0.0)}, r"pixels, in \(0, 1\]"),
        ({"randaugment": (2, 9, 7)}, r"pixels, in \(0, 1\]"),
        ({"randaugment": (2, 9, 1, 1)}, "`randaugment` must be None, or"),
        ({"random_erasing": 1.5}, r"`random_erasing` must be .* \[0, 1\]"),
        ({"random_erasing": -0.1}, "random_erasing=-0.1"),
        ({"mixup": -0.1}, "`mixup` must not be negative"),
        ({"cutmix": float("nan")}, "`cutmix` must not be negative"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)
