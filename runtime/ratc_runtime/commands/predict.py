"""Predictions of a checkpoint: `python -m ratc_runtime predict CHECKPOINT IMAGES -o DIR` for images without labels, and
with `--split` in place of the images for a split of the run's data set, which may be the user's own.

Segmentation writes a mask for each image, detection one file of boxes in the COCO layout, both in the pixels of the
images' own files; classification writes one table of classes and their probabilities, and a custom task the arrays of
each sample. An unreadable image gives a
warning and is left out; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate
from tqdm import tqdm

from ratc_runtime import inference
from ratc_runtime.commands.evaluate import check_slides, open_split, outputs_of
from ratc_runtime.config import option_types
from ratc_runtime.data import pytree
from ratc_runtime.data.folders import SPLITS
from ratc_runtime.data.loading import evaluation_loader
from ratc_runtime.data.unlabelled import Piece, find_images, pieces
from ratc_runtime.errors import RuntimeFinding, say, warn
from ratc_runtime.inference import OpenCheckpoint
from ratc_runtime.output.results import prepare_output, unwritable
from ratc_runtime.output.sizes import counted
from ratc_runtime.tasks.arrays import ArrayWriter
from ratc_runtime.tasks.base import Writer
from ratc_runtime.tasks.segmentation.sliding import slide


def predict(
    model: OpenCheckpoint,
    images: Sequence[Path],
    output: Path,
    threshold: float = 0.5,
    force: bool = False,
    overlap: float | None = None,
) -> int:
    """Predict images into a folder; return the number of unreadable images. With `overlap`, from 0 to below 1, masks
    are made of patches in the resolution of the files, which cover that share of one another and are blended (`slide`).

    Raises R510 if the folder cannot be written, R542 if the form of images or outputs is the user's own, R543 if a file
    would be overwritten (unless `force`) or two images have one name.
    """
    writer = model.task.writer(output, threshold)
    if overlap is not None:
        check_slides(model)
    _check_names(images, writer, force)
    found = pieces(images, model.lock, whole=overlap is not None)
    prepare_output(output)
    bad = 0
    with tqdm(total=len(images), unit="image", disable=None, leave=False) as bar:
        for group in _groups(found, model.lock.training.micro_batch_size if overlap is None else 1):
            good = [piece for piece in group if piece.problem is None]
            for piece in group:
                if piece.problem is not None:
                    bad += 1
                    warn(f"[{piece.problem.code}] {piece.problem.message}: {piece.problem.note}; left out")
            if good and overlap is not None:
                _add(good[0], slide(partial(outputs_of, model), good[0].image, model.lock, overlap), writer)
            elif good:
                _write(model, good, writer, default_collate([piece.image for piece in good]))
            bar.update(sum(piece.last for piece in group))
    try:
        writer.close()
    except OSError as error:
        raise unwritable(output, error) from None
    return bad


def predict_split(
    model: OpenCheckpoint, split: str, data_dir: Path, output: Path, threshold: float = 0.5, force: bool = False
) -> int:
    """Predict the samples of a split into a folder, in files by the samples' names; return their number.

    Masks and boxes are in the pixels that the data set gives. Patches of volumes are written as arrays of logits.
    Raises the errors of `open_split`, R506 for a bad sample, R510 if the folder cannot be written, R543 if a file would
    be overwritten (unless `force`) or two samples have one name.
    """
    lock, task = model.lock, model.task
    if task.parts:
        raise RuntimeFinding(
            "R542", "a split of several tasks cannot be predicted", help="give images and choose one --task"
        )
    dataset = open_split(model, split, data_dir)
    patches = lock.task_type == "segmentation" and lock.spatial_dims == 3
    writer: Writer = ArrayWriter(output) if patches else task.writer(output, threshold)
    prepare_output(output)
    seen: set[Path] = set()
    loader = evaluation_loader(dataset, lock, 0, task.collate)
    with tqdm(total=len(dataset), unit="sample", disable=None, leave=False) as bar:
        for batch in loader:
            size = tuple(next(pytree.tensors(batch.image)).shape[2:])
            for name in batch.names:
                _check_free(writer.path_of(Path(_file_name(name))), name, seen, writer, force)
            group = [Piece(Path(_file_name(name)), size=size) for name in batch.names]
            _write(model, group, writer, batch.image)
            bar.update(len(group))
    try:
        writer.close()
    except OSError as error:
        raise unwritable(output, error) from None
    return len(dataset)


def _file_name(name: str) -> str:
    """Return a sample's name as that of a file: without folders and without signs that a shell reads."""
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".-") or "_"


def _check_free(path: Path, name: str, seen: set[Path], writer: Writer, force: bool) -> None:
    """Raise R543 if a sample's file is there, or is another sample's."""
    if path in seen and not writer.together:
        raise RuntimeFinding(
            "R543", f"two samples would be written to the same file, {path.name}", f"the second is {name:.200}"
        )
    if path not in seen and path.exists() and not force:
        raise RuntimeFinding("R543", f"{path} exists", help="name another folder with -o, or add --force")
    seen.add(path)


def _groups(found: Iterator[Piece], size: int) -> Iterator[list[Piece]]:
    while group := list(islice(found, size)):
        yield group


def _write(model: OpenCheckpoint, group: list[Piece], writer: Writer, images: Any) -> None:
    """Predict a batch of images, those of the pieces, and write the outputs. Raises R597 if they are NaN."""
    outputs = outputs_of(model, images)
    for row, piece in enumerate(group):
        _add(piece, pytree.select(outputs, [row]), writer)


def _add(piece: Piece, output: Any, writer: Writer) -> None:
    if pytree.hold_nan(output):
        help = "use an earlier checkpoint, or check the values of this image"
        raise RuntimeFinding("R597", f"the model's outputs for {piece.path} are NaN", help=help)
    try:
        writer.add(piece, output)
    except OSError as error:
        raise unwritable(writer.path_of(piece.path), error) from None


def _check_names(images: Sequence[Path], writer: Writer, force: bool) -> None:
    """Raise R543 for a conflict of file names, before the first image is predicted."""
    seen: dict[Path, Path] = {}
    for image in images:
        path = writer.path_of(image)
        if path in seen and not writer.together:
            raise RuntimeFinding(
                "R543",
                f"{seen[path]} and {image} would be written to the same file, {path.name}",
                help="rename one of them",
            )
        seen[path] = image
        if path.exists() and not force:
            raise RuntimeFinding("R543", f"{path} exists", help="name another folder with -o, or add --force")


def _run(arguments: argparse.Namespace) -> int:
    model = inference.open_checkpoint(
        arguments.checkpoint, arguments.lock, arguments.device, arguments.batch_size, arguments.trust
    )
    if arguments.split is not None:
        data_dir = arguments.data_dir or Path(os.environ.get("RAT_DATA_DIR") or model.lock.data.data_dir)
        place = arguments.output, arguments.threshold, arguments.force
        number = predict_split(model, arguments.split, data_dir, *place)
        say(f"{number} samples of {arguments.split} predicted by {model.path}; written: {arguments.output}")
        return 0
    if arguments.task is None and model.task.parts:
        raise RuntimeFinding(
            "R542",
            "the checkpoint has several tasks, and an image needs one of them",
            help=f"--task {' or '.join(model.task.parts)}",
        )
    model = model.of(arguments.task)
    images = find_images(arguments.images, model.lock)
    place = arguments.output, arguments.threshold, arguments.force
    bad = predict(model, images, *place, arguments.overlap)
    say(
        f"{len(images) - bad} of {counted(len(images), 'image')} predicted by {model.path}; written: {arguments.output}"
    )
    return 1 if bad else 0


def main(argv: list[str] | None = None) -> int:
    """Predict images and write the results; return 0, or 1 after a finding or if an image was left out."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime predict", description="Write a checkpoint's predictions for images."
    )
    inference.add_arguments(parser)
    parser.add_argument("images", type=Path, nargs="?", help="a folder of images, or one image")
    parser.add_argument("--split", choices=SPLITS, help="a split of the run's data set, instead of images")
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="with --split, folder of the data (default: RAT_DATA_DIR, or the folder in the lock)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to write into")
    parser.add_argument(
        "--threshold",
        type=option_types.threshold,
        default=0.5,
        help="threshold for the probability of one foreground class, or for the score of a box (default: 0.5)",
    )
    parser.add_argument(
        "--overlap",
        type=option_types.share,
        help="predict patches of the training's size at the resolution of the file, and blend them; each covers this "
        "share of the next one (0 to below 1); for large pictures and volumes",
    )
    parser.add_argument("--task", help="the task to predict, if the checkpoint has several")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    # Intermixed: images may stand behind an option.
    arguments = parser.parse_intermixed_args(argv)
    if (arguments.images is None) == (arguments.split is None):
        parser.error("name either images or a --split")
    if arguments.split is not None and arguments.overlap is not None:
        parser.error("--overlap works with images only; with --split the data set decides")
    try:
        return _run(arguments)
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the files written so far are complete", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
