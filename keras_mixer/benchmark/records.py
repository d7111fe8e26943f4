"""What a benchmark runs and what it found, as plain records."""

from dataclasses import asdict, dataclass, field

from keras_mixer.benchmark.flops import growth_exponent, matrix_flops
from keras_mixer.benchmark.timing import Ratio, Timing
from keras_mixer.variants import count_params, parse_variant


@dataclass(frozen=True)
class Case:
    """What one measurement runs.

    Attributes:
        variant: Name of a model, such as `"B/16"`; it has 1000 classes here.
        batch_size: Images of a call. Positive.
        image_size: Edge of the square images in pixels; `None` for the model's own.
        dtype: Dtype policy of the blocks, such as `"mixed_bfloat16"`.
        training: A whole step of the official fine-tuning, not inference.
    """

    variant: str
    batch_size: int = 1
    image_size: int | None = None
    dtype: str = "float32"
    training: bool = False

    @property
    def sizes(self):
        """The arguments of `mlp_mixer` that fix the architecture."""
        variant = parse_variant(self.variant)
        edge = variant.image_size if self.image_size is None else self.image_size
        return {**variant.sizes, "input_shape": (edge, edge, 3), "num_classes": 1000}

    @property
    def num_patches(self):
        """S in the paper."""
        sizes = self.sizes
        return (sizes["input_shape"][0] // sizes["patch_size"]) ** 2


@dataclass(frozen=True)
class Result:
    """What one measurement found.

    Attributes:
        case: What ran.
        timing: Seconds of the calls, one batch each.
        build_seconds: From nothing to a model with its weights.
        compile_seconds: How much longer the first call took than the later ones.
        ceiling: Operations per second of large matrix products in the same dtype.
        host_peak: Most memory of the process while it built and first ran the model,
            in bytes; `None` where the system does not tell.
        device_peak: That of the device; `None` where the backend does not tell.
        loop: Speed of `predict` or `fit` as a multiple of a bare loop over the same
            compiled function; `None` if not measured.
        peers: Our speed as a multiple of theirs, by name.
        layers: Seconds of each kind of layer run alone, over the whole model; empty if
            not measured.
    """

    case: Case
    timing: Timing
    build_seconds: float
    compile_seconds: float
    ceiling: float
    host_peak: int | None = None
    device_peak: int | None = None
    loop: Ratio | None = None
    peers: dict[str, Ratio] = field(default_factory=dict)
    layers: dict[str, float] = field(default_factory=dict)

    @property
    def num_params(self):
        """Number of weights."""
        return count_params(**self.case.sizes)

    @property
    def images_per_second(self):
        """Throughput, by the median."""
        return self.case.batch_size / self.timing.median

    @property
    def flops_per_second(self):
        """Operations in matrix products, counted, per measured second."""
        flops = matrix_flops(**self.case.sizes, training=self.case.training)
        return flops * self.images_per_second

    @property
    def share_of_ceiling(self):
        """The same, relative to large matrix products."""
        return self.flops_per_second / self.ceiling

    def to_dict(self):
        """Return all numbers as JSON takes them."""
        return {
            **asdict(self),
            "num_params": self.num_params,
            "num_patches": self.case.num_patches,
            "median_seconds": self.timing.median,
            "quartiles": self.timing.quartiles,
            "images_per_second": self.images_per_second,
            "flops_per_second": self.flops_per_second,
            "share_of_ceiling": self.share_of_ceiling,
        }


@dataclass(frozen=True)
class Report:
    """Several measurements on one machine.

    Attributes:
        machine: What they ran on: devices, versions.
        results: In the order of the measurements.
    """

    machine: dict[str, str]
    results: tuple[Result, ...]

    def image_sizes(self):
        """Return the results that differ in nothing but image size, as lists."""
        groups: dict[tuple, list[Result]] = {}
        for result in self.results:
            case = result.case
            key = (case.variant, case.batch_size, case.dtype, case.training)
            groups.setdefault(key, []).append(result)
        return [group for group in groups.values() if len(group) > 1]

    def to_dict(self):
        """Return everything as JSON takes it."""
        return {
            "machine": self.machine,
            "results": [result.to_dict() for result in self.results],
            "growth": [
                {"case": asdict(group[0].case), "exponent": growth(group)}
                for group in self.image_sizes()
            ],
        }


def growth(results):
    """Return the exponent with which time grows with patches; the paper says 1.

    Args:
        results: Of one model at different image sizes.
    """
    return growth_exponent(
        [result.case.num_patches for result in results],
        [result.timing.median for result in results],
    )
