import numpy as np
import pytest
from drawn import drawn_model

from keras_mixer import preprocess, visualize

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def album(tmp_path):
    """A folder of pictures, one of them below it."""
    rng = np.random.default_rng(0)
    pictures = {}
    for name in ("a.png", "b.png", "c.png", "below/d.png"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[path] = rng.integers(0, 256, (40, 30, 3), "uint8")
        Image.fromarray(pictures[path]).save(path)
    return pictures


def test_the_nearest_pictures_come_first(album, tmp_path):
    model = drawn_model()
    query = np.random.default_rng(1).integers(0, 256, (32, 24, 3), "uint8")
    features = model.features("pre_logits").predict(
        preprocess([query, *album.values()], model), verbose=0
    )
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosines = dict(zip(album, features[1:] @ features[0], strict=True))
    for batch_size in (1, 3, 32):
        found = visualize.similar(
            model, query, tmp_path / "album", batch_size=batch_size
        )
        assert [path for path, _ in found] == sorted(cosines, key=cosines.get)[::-1]
        for path, cosine in found:
            assert cosine == pytest.approx(cosines[path], abs=1e-5)
    two = visualize.similar(model, query, tmp_path / "album", 2)
    assert [path for path, _ in two] == [path for path, _ in found[:2]]


def test_a_picture_of_the_folder_is_not_its_own_neighbour(album, tmp_path):
    model, (first, *others) = drawn_model(), album
    found = visualize.similar(model, str(first), tmp_path / "album", 9)
    assert {path for path, _ in found} == set(others)
    copy = tmp_path / "copy.png"
    copy.write_bytes(first.read_bytes())
    (nearest, *_) = visualize.similar(model, copy, tmp_path / "album")
    assert nearest.path == first and nearest.cosine == pytest.approx(1, abs=1e-6)


def test_the_figure_shows_them_in_order(album, tmp_path):
    found = visualize.similar(drawn_model(), next(iter(album)), tmp_path / "album", 3)
    figure = visualize.similar_figure(next(iter(album)), found, columns=2)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["query", *(f"{c:.2f}  {path.name}" for path, c in found)]
    for axes, (path, _) in zip(figure.axes[1:], found, strict=True):
        drawn = axes.images[0].get_array()
        np.testing.assert_allclose(drawn, album[path] / 255, atol=1e-6)


def test_what_cannot_be_compared_is_said(album, tmp_path):
    model, query = drawn_model(), next(iter(album))
    with pytest.raises(ValueError, match="count=0"):
        visualize.similar(model, query, tmp_path / "album", 0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        visualize.similar(model, query, tmp_path / "nowhere")
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "a.png").write_bytes(query.read_bytes())
    with pytest.raises(ValueError, match="other pictures than `image`"):
        visualize.similar(model, alone / "a.png", alone)
    with pytest.raises(ValueError, match="`found` must hold a picture"):
        visualize.similar_figure(query, [])
