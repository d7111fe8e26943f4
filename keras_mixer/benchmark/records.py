"""What a benchmark measures and what it found, as plain records."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from keras_mixer.benchmark.flops import growth_exponent, matrix_flops
from keras_mixer.benchmark.timing import Ratio, Timing
from keras_mixer.variants import count_params, parse_variant


@dataclass(frozen=True)
class Case:
    """What one measurement measures.

    Attributes:
        variant: Name of a model, such as `"B/16"`, here with 1000 classes.
        batch_size: Images per call. Positive.
        image_size: Edge of the square images in pixels; `None` for the model's own.
        dtype: Dtype policy of the blocks, such as `"mixed_bfloat16"`.
        training: Whether to measure a whole step of the official fine-tuning instead
            of inference.
    """

    variant: str
    batch_size: int = 1
    image_size: int | None = None
    dtype: str = "float32"
    training: bool = False

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments of `mlp_mixer` that fix the architecture."""
        variant = parse_variant(self.variant)
        edge = variant.image_size if self.image_size is None else self.image_size
        return {**variant.sizes, "input_shape": (edge, edge, 3), "num_classes": 1000}

    @property
    def num_patches(self) -> int:
        """Number of patches, S in the paper."""
        sizes = self.sizes
        return (sizes["input_shape"][0] // sizes["patch_size"]) ** 2


@dataclass(frozen=True)
class Result:
    """What one measurement found.

    Attributes:
        case: What was measured.
        timing: Seconds of the calls, one batch each.
        build_seconds: Time to build the model and set its weights.
        compile_seconds: How much longer the first call took than the later ones.
        ceiling: Operations per second of large matrix products in the same dtype.
        host_peak: Largest memory of the process while it built and first ran the
            model, in bytes; `None` where the system does not report it.
        device_peak: The same of the device; `None` where the backend does not report
            it.
        loop: Speed of `predict` or `fit` as a multiple of a hand-written loop over the
            same compiled function; `None` if not measured.
        peers: Our speed as a multiple of each peer's, by its name.
        layers: Seconds of each kind of layer run alone, times the number of such
            layers in the model; empty if not measured.
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
    def num_params(self) -> int:
        """Number of weights."""
        return count_params(**self.case.sizes)

    @property
    def images_per_second(self) -> float:
        """Throughput: batch size over the median time of a call."""
        return self.case.batch_size / self.timing.median

    @property
    def flops_per_second(self) -> float:
        """Operations of the matrix products (`matrix_flops`) per measured second."""
        flops = matrix_flops(**self.case.sizes, training=self.case.training)
        return flops * self.images_per_second

    @property
    def share_of_ceiling(self) -> float:
        """`flops_per_second` as a fraction of `ceiling`."""
        return self.flops_per_second / self.ceiling

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON types."""
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
class FirstPrediction:
    """What a new process does until its first prediction.

    Attributes:
        case: What was measured.
        seconds: By phase: the imports, building, reading weights, compiling, and
            running one batch.
    """

    case: Case
    seconds: dict[str, float]

    @property
    def multiple_of_import(self) -> float:
        """All phases as a multiple of the import of Keras with its backend."""
        return sum(self.seconds.values()) / self.seconds["import Keras"]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON types."""
        return {**asdict(self), "multiple_of_import": self.multiple_of_import}


@dataclass(frozen=True)
class Report:
    """Several measurements on one machine.

    Attributes:
        machine: Devices and versions, see `describe_machine`.
        results: In the order of the measurements.
        first_predictions: Of new processes, if they were measured.
    """

    machine: dict[str, str]
    results: tuple[Result, ...]
    first_predictions: tuple[FirstPrediction, ...] = ()

    def image_sizes(self) -> list[list[Result]]:
        """Return the results that differ in image size only, one list per group."""
        groups: dict[tuple[object, ...], list[Result]] = {}
        for result in self.results:
            case = result.case
            key = (case.variant, case.batch_size, case.dtype, case.training)
            groups.setdefault(key, []).append(result)
        return [group for group in groups.values() if len(group) > 1]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "machine": self.machine,
            "results": [result.to_dict() for result in self.results],
            "first_predictions": [first.to_dict() for first in self.first_predictions],
            "growth": [
                {"case": asdict(group[0].case), "exponent": growth(group)}
                for group in self.image_sizes()
            ],
        }


def growth(results: Sequence[Result]) -> float:
    """Return `p` of `time ~ patches**p`; a Mixer's cost is linear (paper, section 2).

    Args:
        results: Those of one model at different image sizes.
    """
    return growth_exponent(
        [result.case.num_patches for result in results],
        [result.timing.median for result in results],
    )
