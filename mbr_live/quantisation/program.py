"""`mbr-live calibrate int8`: which recordings and which truth, a line of progress, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from mbr_live.bundle import Bundle, check_replaceable, load_bundle
from mbr_live.datasets import dataset as datasets
from mbr_live.datasets.recordings import RecordingSpec, SimulatedRecording
from mbr_live.manifest import Int8Card
from mbr_live.quantisation.calibrate import (
    MAX_LABELS_DIFFER,
    MAX_PR_AUC_LOSS,
    Given,
    calibrate,
    largest_loss,
    read_list,
)
from mbr_live.types import MbrError


def calibrate_int8_program(
    bundle_path: Path,
    videos: Sequence[Path],
    dataset_file: Path | None,
    *,
    out: Path | None,
    folder: Path,
    frames: Path | None,
) -> None:
    """Make the int8 feature network of a bundle, in place or into the folder `out`."""
    bundle = load_bundle(bundle_path)
    target = out or bundle_path
    check_replaceable(target)
    again = read_list(frames) if frames else None
    list_file = folder / f"{bundle.manifest.name}.int8.json"
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        line = bars.add_task("reading the recordings and their truth", total=None)
        given = given_recordings(videos, dataset_file)
        made = calibrate(
            bundle,
            given,
            target,
            list_file,
            again=again,
            progress=lambda what, done: bars.update(line, description=f"{what}: {done} frames"),
        )
    _show(made, list_file)


def given_recordings(videos: Sequence[Path], dataset_file: Path | None) -> list[Given]:
    """The videos, with the truth that the dataset has of them; without videos, its recordings for validation."""
    if dataset_file is None:
        if not videos:
            raise MbrError("calibrate: give recordings: --videos FILE, or --dataset DATASET.toml.")
        return [Given(path.name, (path,)) for path in videos]
    dataset = datasets.read_dataset(dataset_file)
    if not videos:
        found = [_of_dataset(spec, dataset) for spec in dataset.all_recordings() if spec.split == "validation"]
        if not found:
            raise MbrError(f"{dataset_file}: found no recording for validation. Name recordings with --videos.")
        return found
    real = [spec for spec in dataset.all_recordings() if not isinstance(spec.source, SimulatedRecording)]
    by_file = {files[0].resolve(): spec for spec in real if len(files := datasets.video_files(spec)) == 1}
    return [
        _of_dataset(by_file[path.resolve()], dataset)
        if path.resolve() in by_file
        else Given(path.name, (path,), dataset.window_px)
        for path in videos
    ]


def _of_dataset(spec: RecordingSpec, dataset: datasets.Dataset) -> Given:
    truth = datasets.annotations_of(spec, dataset)
    return Given(spec.name, datasets.video_files(spec), dataset.window_px, truth)


def _show(bundle: Bundle, list_file: Path) -> None:
    card = bundle.manifest.int8
    if card is None:
        raise MbrError(f"Bundle {bundle.path}: the int8 features are gone. Did somebody else write it?")
    console = Console(soft_wrap=True, highlight=False)
    if card.pr_auc:
        console.print(_table(card))
        console.print(f"largest loss of PR-AUC {largest_loss(card.pr_auc):+.4f} (allowed: {MAX_PR_AUC_LOSS})")
    else:
        console.print(
            "There was no truth: PR-AUC was not measured. Measured instead: how many frames int8 labels otherwise than "
            f"float32 (allowed: {MAX_LABELS_DIFFER:.0%}), whichever of the two is right."
        )
    console.print(f"labels differ in {card.labels_differ:.3%} of {card.compared_frames} frames")
    console.print(f"{card.calibration_frames} calibration frames: {list_file}")
    console.print(f"{bundle.path}: use it with --engine openvino-int8", markup=False)


def _table(card: Int8Card) -> Table:
    table = Table("behaviour", "PR-AUC float32", "int8", "loss", title="int8 against float32, same frames")
    for name, (f32, int8) in card.pr_auc.items():
        table.add_row(name, f"{f32:.4f}", f"{int8:.4f}", f"{f32 - int8:+.4f}")
    return table
