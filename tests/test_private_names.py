"""Every private name of another library is in this table, and is still there.

Where one is gone, the test names the file of this package to mend.
"""

import ast
import importlib
from pathlib import Path

import keras
import pytest

PACKAGE = Path(__file__).parents[1] / "keras_mixer"

# (file of this package, private name) -> where it is looked for: a module and the
# object in it, or a function that makes an object that must have it.
TABLE = {
    ("layers/inner_calls.py", "_backward_hooks"): lambda: keras.layers.Dense(1),
    ("layers/inner_calls.py", "_backward_pre_hooks"): lambda: keras.layers.Dense(1),
    ("layers/inner_calls.py", "_forward_hooks"): lambda: keras.layers.Dense(1),
    ("layers/inner_calls.py", "_forward_pre_hooks"): lambda: keras.layers.Dense(1),
    ("layers/inner_calls.py", "_has_any_global_hook"): "torch.nn.modules.module",
    ("layers/inner_calls.py", "_remat_mode"): lambda: keras.layers.Dense(1),
    ("layers/torch_products.py", "_linear_pointwise"): lambda: mkldnn(),
    ("layers/torch_products.py", "_is_mkldnn_bf16_supported"): lambda: mkldnn(),
    ("layers/torch_products.py", "_is_mkldnn_fp16_supported"): lambda: mkldnn(),
    ("layers/torch_products.py", "_forward_hooks"): lambda: keras.layers.Dense(1),
    ("models/mixer.py", "_use_torch_compile"): lambda: keras.Sequential(),
    ("models/mixer.py", "model_supports_jit"): "keras.src.trainers.trainer",
    ("models/mixer.py", "_distribute_strategy"): lambda: keras.Sequential(),
    ("models/mixer.py", "_resolve_auto_jit_compile"): lambda: keras.Sequential(),
    ("training/update_rules.py", "_clip_gradients"): lambda: optimizer(),
    ("training/update_rules.py", "_get_variable_index"): lambda: optimizer(),
}
# What some of them were called before Keras 3.16.
BEFORE = {"_use_torch_compile": "_should_torch_compile"}
# argparse has no other names for what its public methods return; used in types alone.
IN_TYPES = {"_ActionsContainer", "_SubParsersAction"}
# Public in spite of the underscore.
PUBLIC = {"_asdict", "_replace", "_exit"}


def mkldnn():
    import torch

    return torch.ops.mkldnn


def optimizer():
    result = keras.optimizers.SGD(use_ema=True)
    result.build([keras.Variable([0.0])])
    return result


@pytest.mark.parametrize("place", TABLE, ids=lambda place: place[1])
def test_the_name_is_there(place):
    file, name = place
    where = TABLE[place]
    if name == "_distribute_strategy" and keras.config.backend() != "tensorflow":
        pytest.skip("TensorFlow's alone")
    torchs = ("layers/inner_calls.py", "layers/torch_products.py")
    if (
        file in torchs or name == "_use_torch_compile"
    ) and keras.config.backend() != "torch":
        pytest.skip("torch's alone")
    owner = importlib.import_module(where) if isinstance(where, str) else where()
    there = hasattr(owner, name) or hasattr(owner, BEFORE.get(name, name))
    assert there, f"{name} is gone: mend keras_mixer/{file}"


def private_names(trees):
    """Yield (file, name) of private names that the package does not define."""
    own = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                if private and node.attr not in own:
                    yield file, node.attr
            elif isinstance(node, ast.ImportFrom) and node.module:
                if "src" in node.module.split("."):
                    yield from ((file, alias.name) for alias in node.names)


def trees_of(sources):
    return {file: ast.parse(source) for file, source in sources.items()}


def test_every_private_name_is_in_the_table():
    sources = {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
    }
    found = {
        (file, name)
        for file, name in private_names(trees_of(sources))
        if name not in IN_TYPES | PUBLIC
    }
    assert found <= set(TABLE), f"put these in TABLE: {sorted(found - set(TABLE))}"
    for file, name in TABLE:
        assert name in sources[file], (
            f"{file} does not use {name}: take it out of TABLE"
        )


def test_a_new_private_name_is_found():
    source = "from keras.src.utils import thing\nlayer._hidden\nself._mine = 1\n"
    found = set(private_names(trees_of({"x.py": source + "self._mine\n"})))
    assert found == {("x.py", "thing"), ("x.py", "_hidden")}
