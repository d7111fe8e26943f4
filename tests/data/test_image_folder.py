import os
import struct
import zlib

import numpy as np
import pytest

from keras_mixer import data
from keras_mixer.data import image_folder
from keras_mixer.data.image_folder import from_folder

# No backend computes here.
pytestmark = pytest.mark.backend_free

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")


def photo(seed=0, height=23, width=30):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 6, 3), "uint8")
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or photo()).save(path, **options)
    return path


def pictures(folder, names, count=10):
    for number, name in enumerate(names):
        for i in range(count):
            save(folder / name / f"{i}.png", photo(100 * number + i))
    return folder


def examples(source):
    files = source.dataset.map(lambda image, _: image).map(source.read)
    labels = source.dataset.map(lambda _, label: label)
    return list(zip(files.as_numpy_iterator(), map(int, labels), strict=True))


def test_folders_are_classes_and_files_their_examples(tmp_path):
    pictures(tmp_path, ["cat", "ant"])
    (tmp_path / ".cache" / "x").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("no class")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    source = data.open_source(tmp_path, "train")
    assert source.label_names == ("ant", "cat")
    assert source.num_examples == 20
    expected = {
        (path.read_bytes(), int(path.parent.name == "cat"))
        for path in tmp_path.rglob("*.png")
    }
    assert set(examples(source)) == expected


def test_file_names_come_in_the_order_of_the_images(tmp_path):
    pictures(tmp_path, ["cat", "ant"])
    for path in tmp_path.rglob("*.png"):
        path.rename(path.with_name(f"{path.parent.name}-{path.name}"))
    source = data.open_source(tmp_path, "train")
    contents = {path.name: path.read_bytes() for path in tmp_path.rglob("*.png")}
    found = [contents[name] for name in source.file_names()]
    assert len(contents) == 20
    assert found == [content for content, _ in examples(source)]


def test_train_and_test_folders_are_splits_with_the_same_classes(tmp_path):
    pictures(tmp_path / "train", ["ant", "bee", "cat"], count=2)
    pictures(tmp_path / "test", ["cat"], count=3)
    pictures(tmp_path / "val", ["bee"], count=1)
    assert from_folder(tmp_path).num_examples == 6
    test = from_folder(tmp_path, "test")
    assert test.label_names == ("ant", "bee", "cat")
    assert {label for _, label in examples(test)} == {2}
    assert from_folder(tmp_path, "validation").num_examples == 1
    assert from_folder(tmp_path, "train+test[:2]").num_examples == 8


def test_slices_divide_the_examples_and_hold_all_classes(tmp_path):
    pictures(tmp_path, ["a", "b", "c"], count=20)
    parts = [examples(from_folder(tmp_path, f"train[{x}]")) for x in (":70%", "70%:")]
    assert [len(part) for part in parts] == [42, 18]
    assert sorted(parts[0] + parts[1]) == sorted(examples(from_folder(tmp_path)))
    for part in parts:
        assert {label for _, label in part} == {0, 1, 2}


def test_a_new_picture_leaves_the_order_of_the_others(tmp_path):
    before = examples(from_folder(pictures(tmp_path, ["a", "b"])))
    new = save(tmp_path / "a" / "new.png", photo(999)).read_bytes()
    after = examples(from_folder(tmp_path))
    assert [example for example in after if example[0] != new] == before


@pytest.mark.parametrize(
    ("name", "change", "options"),
    [
        ("grey.jpg", lambda image: image.convert("L"), {}),
        ("cmyk.jpg", lambda image: image.convert("CMYK"), {}),
        ("rotated.jpg", lambda image: image, {"exif": "rotated"}),
        ("subsampled.jpg", lambda image: image, {"subsampling": 2, "quality": 60}),
        ("progressive.jpg", lambda image: image, {"progressive": True}),
        ("rotated.png", lambda image: image, {"exif": "rotated"}),
        ("alpha.png", lambda image: image.convert("RGBA"), {}),
        ("grey.png", lambda image: image.convert("L"), {}),
        ("palette.png", lambda image: image.convert("P"), {}),
        ("bits.png", lambda image: image.convert("1"), {}),
        ("wide.bmp", lambda image: image, {}),
        ("still.gif", lambda image: image, {}),
        ("scan.tiff", lambda image: image, {}),
        ("photo.webp", lambda image: image, {}),
    ],
)
def test_every_kind_of_file_has_the_pixels_of_preprocess(
    tmp_path, name, change, options
):
    from keras_mixer.preprocessing import decode_image

    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif}
    path = save(tmp_path / "class" / name, change(photo()), **options)
    expected = decode_image(path)
    height, width, _ = expected.shape
    ((images, _),) = data.evaluation_batches(
        from_folder(tmp_path), image_size=(height, width), batch_size=1
    )
    np.testing.assert_array_equal(images[0], expected)


def png_chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def raw_png(color_type, bits, *, before=b"", after=b"", height=11, width=13):
    """A PNG of random values, also of kinds that Pillow does not write."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    row = (width * samples * bits + 7) // 8
    rng = np.random.default_rng(bits)
    rows = rng.integers(0, 256, (height, row + 1), "uint8")
    rows[:, 0] = 0  # no filter
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    palette = rng.integers(0, 256, 3 * 2 ** min(bits, 8), "uint8").tobytes()
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + (png_chunk(b"PLTE", palette) if color_type == 3 else b"")
        + before
        + png_chunk(b"IDAT", zlib.compress(rows.tobytes()))
        + after
        + png_chunk(b"IEND", b"")
    )


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\x00\x00"))


def xmp_of(orientation):
    text = f'<x tiff:Orientation="{orientation}"/>'.encode()
    return png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)


PNGS = {
    f"color {color_type}, {bits} bits": raw_png(color_type, bits)
    for color_type, depths in {
        0: (1, 2, 4, 8, 16),
        2: (8, 16),
        3: (1, 4, 8),
        4: (8, 16),
        6: (8, 16),
    }.items()
    for bits in depths
} | {
    "transparent grey": raw_png(0, 8, before=png_chunk(b"tRNS", b"\0\x50")),
    "transparent colour": raw_png(2, 8, before=png_chunk(b"tRNS", b"\0\1" * 3)),
    "transparent palette": raw_png(3, 8, before=png_chunk(b"tRNS", bytes(range(256)))),
    "gamma": raw_png(2, 8, before=png_chunk(b"gAMA", struct.pack(">I", 100_000))),
    "early exif": raw_png(2, 8, before=exif_of(6)),
    "late exif": raw_png(2, 8, after=exif_of(8)),
    "xmp": raw_png(2, 8, before=xmp_of(3)),
    "late xmp": raw_png(2, 8, after=xmp_of(6)),
    "deep and turned": raw_png(0, 16, before=exif_of(6)),
}


@pytest.mark.parametrize("kind", PNGS)
@pytest.mark.parametrize("corrupt", ["raise", "trust"])
def test_every_kind_of_png_has_the_pixels_of_preprocess(tmp_path, kind, corrupt):
    from keras_mixer.preprocessing import decode_image

    path = tmp_path / "class" / "a.png"
    path.parent.mkdir()
    path.write_bytes(PNGS[kind])
    expected = decode_image(path)
    height, width, _ = expected.shape
    turned = "exif" in kind or "turned" in kind or kind == "late xmp"
    assert (height > width) == turned
    ((images, _),) = data.evaluation_batches(
        from_folder(tmp_path, corrupt=corrupt), image_size=(height, width), batch_size=1
    )
    np.testing.assert_array_equal(images[0], expected)


@pytest.mark.parametrize("corrupt", ["raise", "trust"])
def test_names_that_are_not_utf_8_are_names(tmp_path, corrupt):
    (tmp_path / "a").mkdir()
    name = os.fsencode(tmp_path / "a") + b"/caf\xe9.png"
    with open(name, "wb") as file:
        photo().save(file, "PNG")
    source = from_folder(tmp_path, corrupt=corrupt)
    assert source.file_names() == [os.fsdecode(b"caf\xe9.png")]
    batches = data.evaluation_batches(source, image_size=(23, 30), batch_size=1)
    np.testing.assert_array_equal(next(iter(batches))[0][0], photo())
    source.fingerprint()
    with open(name, "wb") as file:
        file.write(b"no picture")
    with pytest.raises(ValueError, match=r"caf\\xe9\.png"):
        from_folder(tmp_path)


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    values = np.arange(30 * 20, dtype="uint16").reshape(20, 30) * 100
    save(tmp_path / "class" / "deep.png", Image.fromarray(values))
    ((images, _),) = data.evaluation_batches(
        from_folder(tmp_path), image_size=(20, 30), batch_size=1
    )
    np.testing.assert_array_equal(images[0, :, :, 1], values >> 8)


@pytest.fixture(params=["jpg", "png", "webp", "not an image"])
def damaged(request, tmp_path):
    """A good folder but for one file, cut off in the middle or no image at all."""
    pictures(tmp_path, ["a", "b"], count=2)
    if request.param == "not an image":
        path = tmp_path / "a" / "bad.jpg"
        path.write_text("no picture")
    else:
        path = save(tmp_path / "a" / f"bad.{request.param}", photo(1, 90, 120))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_damaged_files_are_named_before_anything_runs(damaged):
    with pytest.raises(ValueError, match=r"1 of 5 images.*bad.*corrupt=\"skip\""):
        from_folder(damaged.parent.parent)


def test_damaged_files_are_skipped_and_counted_on_request(damaged):
    with pytest.warns(UserWarning, match=r"1 of 5 images.*left out.*bad"):
        source = data.open_source(damaged.parent.parent, "train", corrupt="skip")
    assert source.num_examples == 4
    batches = data.evaluation_batches(source, image_size=8, batch_size=4)
    assert [images.shape[0] for images, _ in batches] == [4]


def test_trusted_files_are_not_decoded(tmp_path):
    path = save(tmp_path / "a" / "bad.png", photo(1, 90, 120))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = from_folder(tmp_path, corrupt="trust")
    assert source.num_examples == 1
    batches = data.evaluation_batches(source, image_size=8, batch_size=1)
    with pytest.raises(tf.errors.OpError, match=r"bad\.png"):
        next(iter(batches))
    with pytest.raises(ValueError, match="1 of 1 images"):
        from_folder(tmp_path, corrupt="skip")
    with pytest.raises(ValueError, match="`corrupt` must be one of 'raise'"):
        from_folder(tmp_path, corrupt="ignore")


def test_folders_that_hold_no_data_set_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        from_folder(tmp_path / "nothing")
    save(tmp_path / "flat" / "1.png")
    with pytest.raises(ValueError, match="one folder of pictures per class"):
        from_folder(tmp_path / "flat")
    pictures(tmp_path / "gaps", ["a"])
    (tmp_path / "gaps" / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images.*gaps/empty"):
        from_folder(tmp_path / "gaps")


@pytest.mark.parametrize("split", ["test", "train[:0]", "train[", "test[:50%]"])
def test_wrong_splits_are_answered_with_the_right_ones(tmp_path, split):
    pictures(tmp_path, ["a"], count=2)
    message = r"`split` must be one of train,.*train\[:80%\].*Received: split="
    with pytest.raises(ValueError, match=message):
        from_folder(tmp_path, split)


@pytest.mark.parametrize("corrupt", ["skip", "raise"])
def test_too_large_pictures_are_damaged_ones(tmp_path, monkeypatch, corrupt):
    pictures(tmp_path, ["a"], count=2)
    save(tmp_path / "a" / "huge.png", photo(1, 90, 120))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    if corrupt == "raise":
        with pytest.raises(ValueError, match=r"huge\.png.*limit of 2000 pixels"):
            from_folder(tmp_path)
    else:
        with pytest.warns(UserWarning, match=r"1 of 3 images.*huge\.png.*limit"):
            assert from_folder(tmp_path, corrupt="skip").num_examples == 2


def test_of_large_folders_a_sample_is_checked(tmp_path, monkeypatch):
    pictures(tmp_path, ["a", "b"])
    order = from_folder(tmp_path).file_names()
    files = image_folder.pictures_of(image_folder.read_folder(tmp_path), "train")
    path = tmp_path / os.fsdecode(files.paths[1])
    assert path.name == order[1]
    path.write_text("no picture")
    with pytest.raises(ValueError, match="1 of 20 images"):
        from_folder(tmp_path)
    monkeypatch.setattr(image_folder, "CHECKED_FILES", 19)
    monkeypatch.setattr(image_folder, "CHECKED_SAMPLE", 4)
    batches = data.evaluation_batches(
        from_folder(tmp_path), image_size=8, batch_size=20
    )
    with pytest.raises(tf.errors.OpError, match=rf"{path.parent.name}/{path.name}"):
        next(iter(batches))
    (tmp_path / os.fsdecode(files.paths[10])).write_text("no picture")
    with pytest.raises(ValueError, match="1 of 4 images"):
        from_folder(tmp_path)
    with pytest.warns(UserWarning, match="2 of 20 images"):
        assert from_folder(tmp_path, corrupt="skip").num_examples == 18
