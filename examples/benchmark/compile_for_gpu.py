"""What XLA makes of a Mixer for a GPU that need not be here, ours and the official.

    pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12
    python examples/benchmark/compile_for_gpu.py --variant B/16 --batch-size 256 --train

Compiles a pass in bfloat16 for an H200 and prints how many kernels it has, how many
bytes they read and write, and how much memory they need beside weights and images. The
versions of the packages for CUDA must be that of JAX. Nothing is timed: without a
device XLA cannot try which kernels are fastest, so all products go to cuBLAS here.
"""

import argparse
import os
from unittest import mock

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"  # the GPU is only compiled for
os.environ["XLA_FLAGS"] = (
    "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax_mixer import MlpMixer  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from kernels import account  # noqa: E402

from keras_mixer import mlp_mixer  # noqa: E402
from keras_mixer.benchmark import Case  # noqa: E402
from keras_mixer.layers import zero_kernels  # noqa: E402
from keras_mixer.training import set_remat  # noqa: E402

_H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 7 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""


def main():
    """Compile ours and the official model, and print a line for each."""
    options = _options()
    case = Case(
        options.variant, options.batch_size, None, "mixed_bfloat16", options.train
    )
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=_H200, topology="1x1x1"
    )
    models = {"ours": _ours(case, options.remat), "official": _official(case)}
    for name, (logits, weights) in models.items():
        compiled = _compile(logits, weights, case, topology.devices[0])
        kernels, moved = account(compiled.as_text())
        memory = compiled.memory_analysis().temp_size_in_bytes
        print(
            f"{name:<9}{kernels:5} kernels, {moved / 2**30:7.2f} GiB read and written, "
            f"{memory / 2**20:8,.0f} MiB of memory"
        )


def _compile(logits, weights, case, device):
    def forward(weights, images, labels):
        return logits(weights, images)

    def training(weights, images, labels):
        def loss(weights):
            scores = jax.nn.log_softmax(logits(weights, images).astype(jnp.float32))
            return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean()

        gradients = jax.grad(loss)(weights)
        return jax.tree.map(lambda w, g: w - 0.03 * g, weights, gradients)

    shape = (case.batch_size, *case.sizes["input_shape"])
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    placed = jax.sharding.SingleDeviceSharding(device)
    step = jax.jit(
        training if case.training else forward,
        in_shardings=placed,
        out_shardings=placed,
        donate_argnums=0 if case.training else (),
    )
    return step.lower(weights, images, labels).compile()


def _ours(case, remat):
    """Return the function to the logits, and the shapes of the weights."""
    with zero_kernels():
        model = mlp_mixer(**case.sizes, classifier_activation=None, dtype=case.dtype)
    set_remat(model, remat)

    def logits(weights, images):
        # A GPU is not there to be found.
        with mock.patch("keras_mixer.layers.operations._on_gpu", return_value=True):
            return model.stateless_call(weights, [], images, training=case.training)[0]

    weights = [weight.value for weight in model.trainable_variables]
    return logits, jax.tree.map(_shape, weights)


def _official(case):
    sizes = dict(case.sizes)
    shape = sizes.pop("input_shape")
    mixer = MlpMixer(**sizes, dtype=jnp.bfloat16)

    def logits(params, images):
        x = images.astype(jnp.float32) / 127.5 - 1.0
        return mixer.apply({"params": params}, x)

    def params():
        return mixer.init(jax.random.key(0), jnp.zeros((1, *shape)))["params"]

    return logits, jax.eval_shape(params)


def _shape(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="B/16")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--remat", action="store_true", help="ours with remat")
    return parser.parse_args()


if __name__ == "__main__":
    main()
