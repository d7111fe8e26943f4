"""The fields of /proc/cpuinfo."""

import pytest

from keras_mixer import processor

pytestmark = pytest.mark.backend_free

X86 = """processor\t: 0
model name\t: A processor: 2 GHz
flags\t\t: fpu amx_bf16 avx

processor\t: 1
model name\t: Another
"""


@pytest.mark.parametrize(
    ("name", "value"),
    [("model name", "A processor: 2 GHz"), ("flags", "fpu amx_bf16 avx"), ("fla", "")],
)
def test_the_first_processor_counts(name, value, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(X86)
    monkeypatch.setattr(processor, "_CPUINFO", path)
    assert processor.cpu_field(name) == value


def test_nothing_on_other_systems(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "absent")
    assert processor.cpu_field("flags") == ""


@pytest.mark.parametrize(
    ("flags", "dtypes"),
    [
        ("fpu avx512_bf16", {"bfloat16"}),
        ("amx_bf16 amx_fp16", {"bfloat16", "float16"}),
        ("avx512_fp16", {"float16"}),
        ("avx2 avx512f amx_int8", set()),
    ],
)
def test_dtypes_that_it_multiplies(flags, dtypes, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(f"flags\t: {flags}\n")
    monkeypatch.setattr(processor, "_CPUINFO", path)
    monkeypatch.setattr(processor, "multiplies", processor.multiplies.__wrapped__)
    for dtype in ("float32", "bfloat16", "float16"):
        assert processor.multiplies(dtype) == (dtype in dtypes)
