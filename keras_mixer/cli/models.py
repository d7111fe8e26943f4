"""The command `models`: the sizes of the family, and their published weights."""

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from keras_mixer.cli.arguments import add_command
from keras_mixer.cli.early_checks import check_variant
from keras_mixer.variants import VARIANTS, count_params, parse_variant

if TYPE_CHECKING:
    from keras_mixer.checkpoints import Checkpoint
    from keras_mixer.cli.arguments import Commands


def add(commands: "Commands") -> None:
    """Add the command to the command line."""
    command = add_command(
        commands,
        "models",
        _models,
        "list the models and their weights",
        examples=("models", "models --variant B/16", "models --json"),
        check=_check,
    )
    command.add_argument("--variant", help='only this one, for example "B/16"')
    command.add_argument(
        "--json", action="store_true", help="print all that is known, as JSON"
    )


def _check(options: argparse.Namespace) -> None:
    if options.variant is not None:
        check_variant(options.variant)


def _models(options: argparse.Namespace) -> None:
    from keras_mixer.checkpoints import list_checkpoints

    variants = [options.variant] if options.variant else VARIANTS
    sizes = [_sizes(variant) for variant in variants]
    checkpoints = [c for variant in variants for c in list_checkpoints(variant)]
    if options.json:
        weights = [_facts(checkpoint) for checkpoint in checkpoints]
        print(json.dumps({"models": sizes, "weights": weights}, indent=1))
        return
    print("Models (parameters with a head of 1000 classes)")
    head = ("model", "parameters", "image", "patch", "width", "blocks")
    names = ("parameters", "image_size", "patch_size", "hidden_dim", "num_blocks")
    rows = [(s["variant"], *(f"{s[name]:,}" for name in names)) for s in sizes]
    _print_table(head, rows, left=(0,))
    if not checkpoints:
        print("\nNo weights are published for it.")
        return
    print("\nWeights (--weights; sizes of the files in MB)")
    columns = ("model", "weights", "size", "licence", "classes", "image", "top-1")
    _print_table(columns, [_row(c) for c in checkpoints], left=(0, 1, 3, 6))
    print()
    for name, origin in dict.fromkeys((c.name, c.origin) for c in checkpoints):
        print(f"{name}: {origin}")


def _sizes(variant: str) -> dict[str, Any]:
    numbers = parse_variant(variant)
    parameters = count_params(
        **numbers.sizes, input_shape=numbers.image_shape, num_classes=1000
    )
    return {
        "variant": variant,
        "parameters": parameters,
        "image_size": numbers.image_size,
        **numbers.sizes,
    }


def _row(checkpoint: "Checkpoint") -> tuple[str, ...]:
    size, exact = _size(checkpoint)
    return (
        checkpoint.variant,
        checkpoint.name,
        f"{'' if exact else '~'}{size / 1e6:.1f}",
        checkpoint.licence,
        str(checkpoint.num_classes),
        str(checkpoint.image_size),
        checkpoint.accuracy.split(" (")[0],  # the source of the number: --json
    )


def _size(checkpoint: "Checkpoint") -> tuple[int, bool]:
    """Return the bytes of the file, and whether they are known or computed."""
    if checkpoint.hub_files:
        return max(file.size for file in checkpoint.hub_files), True
    if checkpoint.size is not None:
        return checkpoint.size, True
    numbers = parse_variant(checkpoint.variant)
    edge = checkpoint.image_size
    parameters = count_params(
        **numbers.sizes,
        input_shape=(edge, edge, 3),
        num_classes=checkpoint.num_classes,
    )
    return 4 * parameters, False


def _facts(checkpoint: "Checkpoint") -> dict[str, Any]:
    return {
        "variant": checkpoint.variant,
        "weights": checkpoint.name,
        "size": _size(checkpoint)[0],
        "licence": checkpoint.licence,
        "num_classes": checkpoint.num_classes,
        "image_size": checkpoint.image_size,
        "origin": checkpoint.origin,
        "accuracy": checkpoint.accuracy,
        "address": checkpoint.address,
        "hub_repository": checkpoint.hub_repository,
        "hub_commit": checkpoint.hub_commit,
        "value_range": checkpoint.preprocessing.value_range,
        "approximate_gelu": checkpoint.approximate_gelu,
    }


def _print_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Iterable[int]
) -> None:
    """Print columns that are as wide as their widest cell; nothing is cut."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    signs = ["<" if i in left else ">" for i in range(len(widths))]
    for row in table:
        cells = zip(row, signs, widths, strict=True)
        print("  ".join(f"{c:{sign}{width}}" for c, sign, width in cells).rstrip())
