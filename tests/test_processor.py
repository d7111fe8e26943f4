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
