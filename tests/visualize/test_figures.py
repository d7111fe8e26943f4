"""What is drawn, read back from the figures: values, orders, marks and files."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.testing import assert_allclose, assert_array_equal

from keras_mixer import visualize
from keras_mixer.labels import decode_predictions
from keras_mixer.models.mixer import mlp_mixer
from keras_mixer.visualize import figure as figure_module
from keras_mixer.visualize import filters

PROBABILITIES = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
LABELS = ("cat", "dog", "owl")


@pytest.fixture
def model(tiny):
    """4 x 3 patches of 8 x 8 pixels, 12 hidden units."""
    return mlp_mixer(**tiny)


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 6, 5, 3), dtype="uint8")


def waves(grid, cycles):
    """Return one horizontal wave per entry of `cycles`, as columns of a kernel."""
    rows, columns = grid
    x = np.arange(rows * columns) % columns
    return np.stack([np.cos(2 * np.pi * c * x / columns) for c in cycles], axis=1)


def drawn(figure):
    """Return the image of the figure's first axes."""
    return figure.axes[0].images[0].get_array()


def texts(axes):
    return [text.get_text() for text in axes.texts]


# Order of the hidden units


def test_units_are_paired_with_their_inverses_low_frequency_first():
    cycles = [3, 1, 0, 2]
    kernel = waves((8, 8), cycles)
    noise = np.random.default_rng(0).normal(scale=0.01, size=(64, 8))
    kernel = np.concatenate([kernel, -2 * kernel], axis=1) + noise
    order = visualize.pair_by_frequency(kernel, (8, 8))
    # Unit i + 4 is the inverse of unit i.
    assert [set(pair) for pair in order.reshape(4, 2)] == [
        {2, 6},
        {1, 5},
        {3, 7},
        {0, 4},
    ]


def test_the_closest_inverse_wins_over_a_close_one():
    a, b = np.eye(4)[:2]
    near = -a + 0.3 * b
    kernel = np.stack([a, near, b, -a], axis=1)
    order = visualize.pair_by_frequency(kernel, (2, 2))
    assert {frozenset(pair) for pair in order.reshape(2, 2)} == {
        frozenset({0, 3}),
        frozenset({1, 2}),
    }


def test_the_lower_frequency_of_a_pair_comes_first():
    low, high = waves((1, 8), [1, 3]).T
    kernel = np.stack([-low - 0.2 * high, low], axis=1)
    assert_array_equal(visualize.pair_by_frequency(kernel, (1, 8)), [1, 0])


def test_an_odd_unit_and_empty_units_have_a_place():
    kernel = np.concatenate([waves((4, 4), [1]), np.zeros((16, 2))], axis=1)
    order = visualize.pair_by_frequency(kernel, (4, 4))
    assert sorted(order) == [0, 1, 2]
    assert_array_equal(visualize.pair_by_frequency(np.ones((4, 1)), (2, 2)), [0])


def test_frequency_is_the_radius_in_cycles_per_patch():
    units = waves((4, 8), [0, 1, 2, 4]).T.reshape(4, 4, 8)
    assert_allclose(filters._frequencies(units), [0, 1 / 8, 2 / 8, 4 / 8], atol=1e-12)
    turned = waves((8, 4), [1]).T.reshape(1, 8, 4).swapaxes(1, 2)
    assert_allclose(filters._frequencies(turned), [1 / 4])
    diagonal = np.cos(2 * np.pi * np.add.outer(np.arange(8), np.arange(8)) / 8)
    assert_allclose(filters._frequencies(diagonal[None]), [np.sqrt(2) / 8])


# Filters


def test_token_mixing_filters_show_the_kernel_patch_by_patch(model):
    kernel = np.random.default_rng(0).normal(size=(12, 12))
    model.blocks[1].token_mixing.dense_0.kernel.assign(kernel)
    figure = visualize.token_mixing_filters(model, block=1, count=2)
    first, second = visualize.pair_by_frequency(kernel, (4, 3))[:2]
    mosaic = drawn(figure)
    assert mosaic.shape == (4, 3 + 1 + 3)
    for unit, left in ((first, 0), (second, 4)):
        weights = kernel[:, unit] / np.abs(kernel[:, unit]).max()
        shown = mosaic[:, left : left + 3]
        assert_allclose(shown, weights.reshape(4, 3), atol=1e-6)
    assert np.isnan(np.ma.filled(mosaic[:, 3], np.nan)).all()


def test_colours_of_weights_are_symmetric_about_zero(model):
    image = visualize.token_mixing_filters(model).axes[0].images[0]
    assert image.get_clim() == (-1, 1)
    zero = image.to_rgba(0.0)
    assert min(zero[:3]) > 0.95
    negative, positive = image.to_rgba(-0.8), image.to_rgba(0.8)
    assert negative[2] > negative[0] and positive[0] > positive[2]


def test_all_units_are_drawn_unless_counted(model):
    figure = visualize.token_mixing_filters(model, block=-1)
    assert "block_1: 12 of 12 hidden units over 4 x 3" in figure.axes[0].get_title()
    assert np.ma.count(np.ma.masked_invalid(drawn(figure))) == 12 * 12


def test_filters_have_a_caption_of_what_to_expect(model):
    for figure in (
        visualize.token_mixing_filters(model),
        visualize.stem_filters(model),
    ):
        assert "What to expect" in figure.get_supxlabel().replace("\n", " ")


def test_pairs_stay_on_one_row_further_from_other_pairs():
    units = np.arange(8.0)[:, None, None] * np.ones((8, 2, 2))
    mosaic = filters._mosaic(units, pair_gap=1)
    starts = [
        (
            int(np.argmax((mosaic == unit).any(axis=1))),
            int(np.argmax((mosaic == unit).any(axis=0))),
        )
        for unit in range(8)
    ]
    assert starts == [(top, left) for top in (0, 4) for left in (0, 3, 7, 10)]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 62, 64, 384, 768])
def test_a_mosaic_has_place_for_all_units(n):
    columns = figure_module.num_columns(n, aspect=1.0)
    assert columns % 2 == 0 or n == 1
    rows = -(-n // columns)
    assert 0 <= rows * columns - n < columns
    if n >= 20:
        assert 0.6 <= columns / rows <= 2


def test_stem_filters_show_the_kernel_as_colours(model):
    kernel = np.zeros((8, 8, 3, 16))
    kernel[0, 1, 0, 0] = 2.0  # red above zero
    kernel[5, 2, 2, 1] = -3.0  # blue below zero
    kernel[5, 3, 2, 1] = 1.5
    model.get_layer("stem").projection.kernel.assign(kernel)
    mosaic = drawn(visualize.stem_filters(model, count=2))
    assert_allclose(mosaic[0, 1], [1.0, 0.5, 0.5])
    assert_allclose(mosaic[5, 9 + 2], [0.5, 0.5, 0.0])
    assert_allclose(mosaic[5, 9 + 3], [0.5, 0.5, 0.75])
    assert_allclose(mosaic[7, 7], 0.5)
    assert_allclose(mosaic[:, 8], 1.0)


def test_stem_filters_of_grey_images_are_grey(tiny):
    model = mlp_mixer(**{**tiny, "input_shape": (32, 24, 1)})
    mosaic = drawn(visualize.stem_filters(model))
    assert np.ptp(mosaic, axis=-1).max() == 0
    assert np.ptp(mosaic) > 0.5


# Predictions


def test_predictions_draw_pictures_and_bars(pictures):
    figure = visualize.predictions(pictures, PROBABILITIES, LABELS, [1, 1], top=2)
    first, second, first_bars, second_bars = figure.axes
    assert_allclose(first.images[0].get_array(), pictures[0] / 255, atol=1e-6)
    assert_allclose(second.images[0].get_array(), pictures[1] / 255, atol=1e-6)
    assert texts(first_bars) == ["dog \u2713", "70%", "owl", "20%"]
    assert texts(second_bars) == ["cat", "60%", "dog \u2713", "30%"]
    assert_allclose([bar.get_width() for bar in first_bars.patches], [0.7, 0.2])


def test_the_true_class_stands_out(pictures):
    figure = visualize.predictions(pictures, PROBABILITIES, LABELS, [1, 1], top=2)
    first, second, first_bars, second_bars = figure.axes
    assert first.get_title() == second.get_title() == "true: dog"
    assert first.title.get_color() != second.title.get_color()
    colours = [
        bar.get_facecolor()
        for axes in (first_bars, second_bars)
        for bar in axes.patches
    ]
    assert colours[0] == colours[3] != colours[1] == colours[2]


@pytest.mark.parametrize("truth", [[1, 0], ["dog", "cat"], np.array([1, 0])])
def test_true_labels_are_numbers_or_names(pictures, truth):
    decoded = decode_predictions(PROBABILITIES, LABELS)
    for scores in (PROBABILITIES, decoded):
        figure = visualize.predictions(pictures, scores, LABELS, truth)
        assert [axes.get_title() for axes in figure.axes[:2]] == [
            "true: dog",
            "true: cat",
        ]
        assert texts(figure.axes[2])[0] == "dog \u2713"


def test_without_labels_classes_are_numbers(pictures):
    figure = visualize.predictions(pictures, PROBABILITIES, true_labels=[2, 0])
    assert texts(figure.axes[2])[::2] == ["1", "2 \u2713", "0"]
    figure = visualize.predictions(pictures, PROBABILITIES)
    assert texts(figure.axes[2])[::2] == ["1", "2", "0"]
    assert figure.axes[0].get_title() == ""


def test_pictures_may_differ_in_size_be_grey_and_leave_places_empty():
    images = [np.full((4, 6, 1), 255.0), np.zeros((3, 3)), np.zeros((5, 5, 3))]
    scores = np.eye(3)
    figure = visualize.predictions(images, scores, LABELS, columns=2)
    assert_array_equal(figure.axes[0].images[0].get_array(), np.ones((4, 6, 3)))
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 0, 0, 1, 0, 0, 0]
    assert not any(axes.axison for axes in figure.axes)


def test_long_names_are_cut_and_dollars_are_no_formulas(pictures, tmp_path):
    labels = ("a" * 60, "$x$ $", "owl")
    figure = visualize.predictions(pictures, PROBABILITIES, labels, [1, 0])
    visualize.save(figure, tmp_path / "out.png")
    assert texts(figure.axes[2])[0] == "$x$ $ \u2713"
    assert texts(figure.axes[3])[0] == "a" * 25 + "\u2026 \u2713"


def test_tensors_are_taken_too(pictures):
    figure = visualize.predictions(
        keras.ops.convert_to_tensor(pictures),
        keras.ops.convert_to_tensor(PROBABILITIES),
    )
    assert_allclose(figure.axes[0].images[0].get_array(), pictures[0] / 255, atol=1e-6)


# Training and confusion


def test_training_curves_draw_every_value_over_its_epoch():
    histories = {
        "one": {"loss": [3.0, 2.0], "val_loss": [3.5, 2.5], "accuracy": [0.1, 0.4]},
        "two": {"loss": [1.0], "learning_rate": [0.1]},
    }
    loss, accuracy = visualize.training_curves(histories).axes
    assert loss.get_title() == "Loss" and accuracy.get_title() == "Accuracy"
    lines = {line.get_label(): line for line in loss.lines}
    assert list(lines) == ["one", "one, validation", "two"]
    assert_array_equal(lines["one"].get_xdata(), [1, 2])
    assert_array_equal(lines["one"].get_ydata(), [3.0, 2.0])
    assert_array_equal(lines["one, validation"].get_ydata(), [3.5, 2.5])
    assert lines["one"].get_color() == lines["one, validation"].get_color()
    assert lines["one"].get_linestyle() != lines["one, validation"].get_linestyle()
    assert lines["one"].get_color() != lines["two"].get_color()
    assert lines["two"].get_marker() == "o"  # a single point has no line
    assert [line.get_label() for line in accuracy.lines] == ["one"]


def test_training_curves_of_a_long_run_lie_over_its_steps():
    history = {"step": [5, 10, 12], "loss": [3, 2, 1], "val_loss": [np.nan, 4.0, 3.0]}
    (loss,) = visualize.training_curves({"run": history}).axes
    training, validation = loss.lines
    assert_array_equal(training.get_xdata(), [5, 10, 12])
    assert_array_equal(validation.get_xdata(), [10, 12])
    assert_array_equal(validation.get_ydata(), [4, 3])
    assert loss.get_xlabel() == "step"


def test_few_points_are_marked():
    histories = {"few": {"loss": [1.0] * 19}, "many": {"loss": [1.0] * 20}}
    (loss,) = visualize.training_curves(histories).axes
    assert [line.get_marker() for line in loss.lines] == ["o", "None"]


def test_training_curves_take_what_fit_returns():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=2, verbose=0)
    (loss,) = visualize.training_curves({"tiny": history}).axes
    assert_allclose(loss.lines[0].get_ydata(), history.history["loss"])


def test_confusion_matrix_counts_true_rows_and_predicted_columns():
    true, predicted = [0, 0, 0, 1, 2], [0, 0, 2, 1, 1]
    for matrix in (
        (true, predicted),
        np.array([[2, 0, 1], [0, 1, 0], [0, 1, 0]]),
        [[2, 0, 1], [0, 1, 0], [0, 1, 0]],
    ):
        figure = visualize.confusion_matrix(matrix, LABELS)
        axes = figure.axes[0]
        assert_allclose(drawn(figure), [[2 / 3, 0, 1 / 3], [0, 1, 0], [0, 1, 0]])
        assert texts(axes) == list("201010010")
        assert axes.get_title() == "Confusion matrix, accuracy 60.0%"
        assert [label.get_text() for label in axes.get_yticklabels()] == list(LABELS)
        assert [label.get_text() for label in axes.get_xticklabels()] == list(LABELS)


def test_confusion_matrix_has_rows_for_classes_nobody_saw():
    figure = visualize.confusion_matrix(([0], [0]), LABELS)
    assert_array_equal(drawn(figure), [[1, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_a_large_confusion_matrix_is_not_crowded():
    figure = visualize.confusion_matrix(np.eye(200))
    assert not figure.axes[0].texts
    assert len(figure.axes[0].get_yticklabels()) <= 40
    assert max(figure.get_size_inches()) < 14


def test_neighbouring_classes_share_a_row_where_there_are_many():
    counts = np.random.default_rng(0).integers(0, 5, (205, 205))
    cells = np.zeros((69, 69))
    for (row, column), count in np.ndenumerate(counts):
        cells[row // 3, column // 3] += count
    names = [f"name {i}" for i in range(205)]
    figure = visualize.confusion_matrix(counts, names)
    assert_allclose(drawn(figure), cells / cells.sum(axis=1, keepdims=True))
    axes = figure.axes[0]
    assert axes.get_ylabel() == "true class, 3 per row"
    for tick, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        assert label.get_text() == f"name {3 * tick}"


def test_rare_confusions_can_be_seen():
    figure = visualize.confusion_matrix(np.array([[99, 1], [0, 100]]))
    colours = figure.axes[0].images[0].to_rgba(drawn(figure))
    assert np.abs(colours[0, 1] - colours[1, 0]).max() > 0.05


# Files and errors


def test_every_figure_is_saved_as_a_picture_with_nothing_cut_off(
    model, pictures, tmp_path
):
    figures = [
        visualize.token_mixing_filters(model),
        visualize.stem_filters(model),
        visualize.predictions(pictures, PROBABILITIES, LABELS, [0, 0]),
        visualize.training_curves({"a": {"loss": [2.0, 1.0], "accuracy": [0.1, 0.2]}}),
        visualize.confusion_matrix(np.eye(3), LABELS),
    ]
    for i, figure in enumerate(figures):
        assert isinstance(figure, Figure)
        path = tmp_path / "new" / "folder" / f"{i}.png"
        visualize.save(figure, path)
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        pixels = imread(path)
        width, height = figure.get_size_inches() * 150
        assert_allclose(pixels.shape[:2], (height, width), atol=1)
        assert pixels[..., :3].std() > 0.05
        inside = figure.get_tightbbox()
        assert inside.x0 >= 0 and inside.y0 >= 0
        assert inside.x1 <= width / 150 + 0.01 and inside.y1 <= height / 150 + 0.01
    assert len(list(path.parent.iterdir())) == len(figures)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    class Broken(Figure):
        def savefig(self, file, **kwargs):
            file.write(b"half")
            raise OSError("disk full")

    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        visualize.save(Broken(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_png_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in `.png`.*figure.jpg"):
        visualize.save(Figure(), tmp_path / "figure.jpg")


def test_errors_of_filters_say_what_there_is(model, tiny):
    with pytest.raises(ValueError, match="`block` must be .* 2 blocks.*block=2"):
        visualize.token_mixing_filters(model, block=2)
    for count in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="`count` must be a positive integer"):
            visualize.token_mixing_filters(model, count=count)
        with pytest.raises(ValueError, match="`count` must be a positive integer"):
            visualize.stem_filters(model, count=count)
    five_channels = mlp_mixer(**{**tiny, "input_shape": (32, 24, 5)})
    with pytest.raises(ValueError, match="1 or 3 channels.*Received: 5 channels"):
        visualize.stem_filters(five_channels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "one entry per picture. Received: 0, 2 and 0"),
        ({"true_labels": [1]}, "one entry per picture. Received: 2, 2 and 1"),
        ({"true_labels": [1, 3]}, r"`true_labels` must lie in \[0, 3\). Received: 3"),
        ({"labels": ["cat"]}, "1 names for 3 classes"),
        ({"images": np.zeros((2, 4, 4, 2))}, r"1 or 3 channels.*\(4, 4, 2\)"),
        ({"scores_or_predictions": PROBABILITIES * 10}, "from 1 to 7. Apply softmax"),
        ({"scores_or_predictions": PROBABILITIES - 1}, "Apply softmax to logits"),
        ({"top": 0}, "`top` must be a positive integer"),
        ({"columns": 0}, "`columns` must be a positive integer"),
    ],
)
def test_errors_of_predictions_name_the_argument(pictures, changes, message):
    arguments = {
        "images": pictures,
        "scores_or_predictions": PROBABILITIES,
        "labels": LABELS,
        "true_labels": None,
    }
    with pytest.raises(ValueError, match=message):
        visualize.predictions(**{**arguments, **changes})


def test_errors_of_curves_and_matrices_name_the_argument():
    for histories in ({}, {"a": {"accuracy": [0.1]}}):
        with pytest.raises(ValueError, match="`histories` must map names"):
            visualize.training_curves(histories)
    with pytest.raises(ValueError, match=r"`matrix` must be square.*\(2, 3\)"):
        visualize.confusion_matrix(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        visualize.confusion_matrix(([0, 1], [0]))
    with pytest.raises(ValueError, match=r"class numbers in \[0, 3\).*up to 3"):
        visualize.confusion_matrix(([0, 3], [0, 1]), LABELS)
    with pytest.raises(ValueError, match="3 names for 2 classes"):
        visualize.confusion_matrix(np.eye(2), LABELS)


def run_python(code):
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.backend_free
def test_without_matplotlib_only_drawing_fails_and_names_the_extra():
    run_python(
        "import sys, numpy as np\n"
        "sys.modules['matplotlib'] = sys.modules['matplotlib.figure'] = None\n"
        "from keras_mixer import visualize\n"
        "try:\n"
        "    visualize.confusion_matrix(np.eye(2))\n"
        "except ImportError as error:\n"
        "    sys.exit(\"pip install 'keras-mixer[plot]'\" not in str(error))\n"
        "sys.exit('no error')\n"
    )


@pytest.mark.backend_free
def test_figures_need_no_pyplot():
    run_python(
        "import sys, io, numpy as np\n"
        "sys.modules['matplotlib.pyplot'] = None\n"
        "from keras_mixer import visualize\n"
        "visualize.confusion_matrix(np.eye(2)).savefig(io.BytesIO())\n"
    )
