"""Predictions of a checkpoint for images without labels: `python -m ratc_runtime predict CHECKPOINT IMAGES -o DIR`.

Segmentation writes a mask for each image, detection one file of boxes in the COCO layout, both in the pixels of the
images' own files; classification writes one table of classes and their probabilities. An unreadable image gives a
warning and is left out; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from torch.utils.data import default_collate
from tqdm import tqdm

from ratc_runtime import inference
from ratc_runtime.data import pytree
from ratc_runtime.data.unlabelled import Piece, find_images, pieces
from ratc_runtime.errors import RuntimeFinding, say, warn
from ratc_runtime.inference import OpenCheckpoint
from ratc_runtime.output.results import prepare_output, unwritable
from ratc_runtime.tasks.base import Writer


def predict(
    model: OpenCheckpoint, images: Sequence[Path], output: Path, threshold: float = 0.5, force: bool = False
) -> int:
    """Predict images into a folder; return the number of unreadable images.

    Raises R510 if the folder cannot be written, R542 if the form of images or outputs is the user's own, R543 if a file
    would be overwritten (unless `force`) or two images have one name.
    """
    writer = model.task.writer(output, threshold)
    _check_names(images, writer, force)
    found = pieces(images, model.lock)
    prepare_output(output)
    bad = 0
    with tqdm(total=len(images), unit="image", disable=None, leave=False) as bar:
        for group in _groups(found, model.lock.training.micro_batch_size):
            good = [piece for piece in group if piece.problem is None]
            for piece in group:
                if piece.problem is not None:
                    bad += 1
                    warn(f"[{piece.problem.code}] {piece.problem.message}: {piece.problem.note}; left out")
            _write(model, good, writer)
            bar.update(sum(piece.last for piece in group))
    try:
        writer.close()
    except OSError as error:
        raise unwritable(output, error) from None
    return bad


def _groups(found: Iterator[Piece], size: int) -> Iterator[list[Piece]]:
    while group := list(islice(found, size)):
        yield group


def _write(model: OpenCheckpoint, group: list[Piece], writer: Writer) -> None:
    if not group:
        return
    device = model.engine.world.device
    batch = pytree.to_device(default_collate([piece.image for piece in group]), device)
    outputs = pytree.apply(lambda tensor: tensor.cpu(), model.engine.predict(batch))
    for row, piece in enumerate(group):
        try:
            writer.add(piece, pytree.select(outputs, [row]))
        except OSError as error:
            raise unwritable(writer.path_of(piece.path), error) from None


def _check_names(images: Sequence[Path], writer: Writer, force: bool) -> None:
    """Raise R543 for a conflict of file names, before the first image is predicted."""
    seen: dict[Path, Path] = {}
    for image in images:
        path = writer.path_of(image)
        if path in seen and not writer.together:
            raise RuntimeFinding(
                "R543", f"{seen[path]} and {image} would have one file, {path.name}", help="rename one of them"
            )
        seen[path] = image
        if path.exists() and not force:
            raise RuntimeFinding("R543", f"{path} exists", help="name another folder with -o, or give --force")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number between 0 and 1")
    return value


def _run(arguments: argparse.Namespace) -> int:
    model = inference.open_checkpoint(
        arguments.checkpoint, arguments.lock, arguments.device, arguments.batch_size, arguments.trust
    )
    if arguments.task is None and model.task.parts:
        raise RuntimeFinding(
            "R542",
            "an image is of one task, and the checkpoint has several",
            help=f"--task {' or '.join(model.task.parts)}",
        )
    model = model.of(arguments.task)
    images = find_images(arguments.images, model.lock)
    bad = predict(model, images, arguments.output, arguments.threshold, arguments.force)
    say(f"{len(images) - bad} of {len(images)} image(s) predicted by {model.path}; written: {arguments.output}")
    return 1 if bad else 0


def main(argv: list[str] | None = None) -> int:
    """Predict images and write the results; return 0, or 1 after a finding or if an image was left out."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime predict", description="Write a checkpoint's predictions for images."
    )
    inference.add_arguments(parser)
    parser.add_argument("images", type=Path, help="a folder of images, or one image")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to write into")
    parser.add_argument(
        "--threshold",
        type=_share,
        default=0.5,
        help="of one foreground class, or of a box's score (default: 0.5)",
    )
    parser.add_argument("--task", help="which of several tasks")
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    try:
        return _run(parser.parse_args(argv))
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the files written so far are whole", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
