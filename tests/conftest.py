"""One suite for every backend: `KERAS_BACKEND=jax pytest`, then tensorflow, then torch.

Nothing here switches the backend, and no test imports one to compute a result: every
backend is compared with the same NumPy oracle and the same golden arrays.
"""

import gc
import os
import sys
from pathlib import Path

# Before TensorFlow is first imported, or it reports its CPU features on stderr.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Or OpenVINO, where a test imports it, reports that to its makers, from a fork.
os.environ.setdefault("CI", "true")
# Most of the suite's time would be XLA's, for programs that run a few times. Set and
# empty, the variable brings its optimizations back; `make nightly` does.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# Let JAX compile a program once, not in every test that builds the same model.
PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# As many tests run at once as there are cores: more threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

TINY = {
    "patch_size": 8,
    "hidden_dim": 16,
    "num_blocks": 2,
    "tokens_mlp_dim": 12,
    "channels_mlp_dim": 20,
    "input_shape": (32, 24, 3),
    "num_classes": 5,
}


def pytest_report_header():
    return f"keras {keras.version()}, backend {keras.config.backend()}"


def pytest_collection_finish():
    # Keras collects garbage whenever a layer loses a variable, as in `quantize`. What
    # is imported stays: it need not be looked through each time.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_random_numbers():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _global_dtype_policy():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def tiny():
    """Arguments of a small rectangular model; every size is different."""
    return dict(TINY)


@pytest.fixture
def tiny_images():
    rng = np.random.default_rng(1)
    return rng.uniform(0, 255, (4, *TINY["input_shape"])).astype("float32")
