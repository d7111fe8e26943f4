"""Convert, verify and publish the named checkpoints, all of them or some.

    python weights/publish_checkpoints.py --dry-run folders/
    python weights/publish_checkpoints.py --owner keras-mixer
    python weights/publish_checkpoints.py --owner keras-mixer --only "B/16 imagenet21k"

Each file is fetched from where its authors publish it, built into its model, written as
the folder of a Hub repository, and read back: the folder must hold every array of the
source bit for bit, and compute what NumPy computes. Then it is published, as
`OWNER/mixer-b16-imagenet21k` and so on, and its commit is noted in
`weights/published.json`, from which `record_commits.py` updates the package.

What is done already, and right, is not done again. A checkpoint that fails does not
keep the others from being published; the exit status then is 1.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from keras_mixer.checkpoints.manifest import CARD, METADATA
from keras_mixer.checkpoints.records import (
    NOT_PUBLISHED,
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    weights_path,
)
from keras_mixer.files import atomic_write, sha256_of
from keras_mixer.hub.model_files import read_model, write_folder
from keras_mixer.hub.publish import push_to_hub
from keras_mixer.hub.verification import Report, verify
from keras_mixer.models.mixer import MLPMixer, mlp_mixer
from keras_mixer.variants import parse_variant

PUBLISHED = Path(__file__).parent / "published.json"

# What each was trained on, by the names in use on the Hub.
DATASETS = {
    "imagenet1k": ("imagenet-1k",),
    "imagenet21k": ("imagenet-21k",),
    "sam": ("imagenet-1k",),
    "gsam": ("imagenet-1k",),
    "miil_imagenet21k": ("imagenet-21k-p",),
    "miil_imagenet1k": ("imagenet-21k-p", "imagenet-1k"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--owner", help="user or organization on the Hub")
    parser.add_argument(
        "--only",
        action="append",
        metavar='"VARIANT NAME"',
        help='one checkpoint, such as "B/16 imagenet21k"; may be repeated',
    )
    parser.add_argument(
        "--dry-run",
        type=Path,
        metavar="FOLDER",
        help="write the repositories there, publish nothing",
    )
    parser.add_argument(
        "--private", action="store_true", help="only the owner can see them"
    )
    parser.add_argument(
        "--published",
        type=Path,
        default=PUBLISHED,
        metavar="FILE",
        help="where the commits are noted (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if not (options.owner or options.dry_run):
        parser.error("one of --owner and --dry-run is needed")
    try:
        checkpoints = select(options.only)
    except ValueError as error:
        parser.error(str(error))
    failed = []
    for i, checkpoint in enumerate(checkpoints, start=1):
        title = f"{checkpoint.variant} {checkpoint.name}"
        print(f"[{i}/{len(checkpoints)}] {title}", flush=True)
        try:
            publish(checkpoint, options)
        except (OSError, ValueError) as error:
            print(f"  failed: {error}", file=sys.stderr)
            failed.append(title)
    if failed:
        print(f"Failed: {', '.join(failed)}. Run again for these.", file=sys.stderr)
    return 1 if failed else 0


def select(names: list[str] | None = None) -> tuple[Checkpoint, ...]:
    """Return the records of `"VARIANT NAME"`s, all without any."""
    if not names:
        return list_checkpoints()
    for name in names:
        if len(name.split()) != 2:
            raise ValueError(
                'A checkpoint is a variant and a name, such as "B/16 imagenet21k". '
                f"Received: {name!r}"
            )
    return tuple(find_checkpoint(*name.split()) for name in names)


def publish(checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    """Do all that is still to be done for one checkpoint."""
    path = source_path(checkpoint)
    name = f"mixer-{checkpoint.variant.replace('/', '').lower()}-{checkpoint.name}"
    name = name.replace("_", "-")
    repository = f"{options.owner or 'owner'}/{name}"
    if options.dry_run:
        write_verified(checkpoint, path, options.dry_run / name, repository)
        return
    with tempfile.TemporaryDirectory() as scratch:
        model, facts = write_verified(
            checkpoint, path, Path(scratch) / name, repository
        )
    commit = push_to_hub(
        model,
        repository,
        private=options.private or None,
        commit_message=f"Mixer-{checkpoint.variant} {checkpoint.name}",
        **facts,
    )
    note(options.published, checkpoint, repository, commit)
    print(f"  published: hf://{repository}@{commit}")


def source_path(checkpoint: Checkpoint) -> Path:
    """Return the path of the file as its authors publish it, not as we do."""
    return weights_path(replace(checkpoint, hub_commit=None))


def write_verified(
    checkpoint: Checkpoint, path: Path, folder: Path, repository: str
) -> tuple[MLPMixer, dict[str, Any]]:
    """Write the folder of the repository, unless it is there; return what to publish.

    Returns:
        The model and what its card says, as `push_to_hub` takes them.
    """
    model, facts = build(checkpoint, path)
    if folder.exists():
        try:
            verify_conversion(folder, model, path)
        except (OSError, ValueError) as error:
            print(f"  written anew: {error}")
        else:
            print(f"  is there: {folder}")
            return model, facts
    write_folder(model, folder, overwrite=True, repo_id=repository, **facts)
    report = verify_conversion(folder, model, path)
    print("\n".join(f"  {line}" for line in str(report).splitlines()))
    return model, facts


def build(checkpoint: Checkpoint, path: Path) -> tuple[MLPMixer, dict[str, Any]]:
    """Return the model of a checkpoint, and what its card says."""
    if checkpoint.embedded:
        # Its folder is a repository already, written when it was trained.
        folder = path.parent
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        return read_model(folder), {
            "card": (folder / CARD).read_text(encoding="utf-8"),
            "provenance": metadata["provenance"],
        }
    sizes = asdict(parse_variant(checkpoint.variant))
    edge = sizes.pop("image_size")
    model = mlp_mixer(
        **sizes,
        input_shape=(edge, edge, 3),
        weights=path,
        approximate_gelu=checkpoint.approximate_gelu,
        preprocessing=checkpoint.preprocessing,
        name=f"mixer_{checkpoint.variant.replace('/', '').lower()}",
    )
    model.labels = checkpoint.labels
    num_classes = model.config["num_classes"]
    if num_classes != checkpoint.num_classes:
        raise ValueError(
            f"{path} has a head of {num_classes} classes, its record says "
            f"{checkpoint.num_classes}"
        )
    return model, facts(checkpoint, path)


def facts(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """Return what the card of a checkpoint says beside what is in the model."""
    metrics = {"accuracy": f"{checkpoint.accuracy}, top-1 in percent"}
    return {
        "licence": checkpoint.licence.lower(),
        "datasets": DATASETS.get(checkpoint.name, ()),
        "metrics": None if checkpoint.accuracy == NOT_PUBLISHED else metrics,
        "provenance": {
            "source": f"{checkpoint.address} ({checkpoint.origin})",
            "sha256": sha256_of(path),
            "conversion": (
                "the arrays were renamed and, where the layouts differ, transposed; "
                "no number was changed"
            ),
            "verification": (
                "every array, read back from here, is bit for bit that of the source; "
                "`pre_logits` and logits agree with a Mixer in NumPy and float64"
            ),
        },
    }


def verify_conversion(folder: Path, model: MLPMixer, path: Path) -> Report:
    """Check that a folder holds the model, and the arrays of the source."""
    report = verify(folder, same_as=path)
    written = read_model(folder)
    for what in ("config", "preprocessing", "labels"):
        if getattr(written, what) != getattr(model, what):
            raise ValueError(f"{folder} holds another {what} than the record")
    return report


def note(path: Path, checkpoint: Checkpoint, repository: str, commit: str) -> None:
    """Add a commit to the file of those that are published."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[f"{checkpoint.variant} {checkpoint.name}"] = {
        "repository": repository,
        "commit": commit,
    }
    with atomic_write(path, "t", encoding="utf-8") as file:
        file.write(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
