"""Model bundles: a folder with a manifest, one or two ONNX graphs and a card. No pickle and no code.

    manifest.json    what the model is; sizes and hashes of the other files
    features.onnx    crops uint8 [B, H, W, 3] RGB -> features float32 [B, D]; not there where D is 0. The crops are
                     of the kind that the manifest names: pixels, or the silhouette of the animal
    features.int8.onnx  the same in 8-bit integers, where the bundle was calibrated for it
    temporal.onnx    causal: features [B, D + M], state [B, S] -> logits [B, K], state_out [B, S]
                     looks ahead: features [1, T, D + M] -> logits [1, T, K], of a whole stretch at once
    card.md          for people: what it was trained on, how well it does, what it must not be used for
    reference.json   what it saw and said when it was made (`mbr_live.drift`); not there in bundles from before

The temporal network takes the D features of the crop and then M kinematic channels, by name (`kinematics`); both are as
they come, since what they are standardised by is inside the graph.

A bundle is checked whole before anything of it is used: every file, its size and its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mbr_live.manifest import CONTENTS, FEATURES_INT8, FORMAT, OPTIONAL, FileRecord, Manifest
from mbr_live.places import check_writable
from mbr_live.types import CROP_PX, RATE_FPS, MbrError

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files have been verified. `sha256` is of manifest.json and so pins every file."""

    path: Path
    manifest: Manifest
    sha256: str

    def read(self, name: str) -> bytes:
        """The bytes of one file, verified again: what is used is what was hashed.

        Raises MbrError where the file has changed since the bundle was loaded.
        """
        return _read_verified(self.path, name, self.manifest.files[name])


def load_bundle(path: Path) -> Bundle:
    """Check the bundle in folder `path` whole; raises MbrError with what is wrong and what to do."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise MbrError(f"Bundle {path} {what}. Expected a folder with {MANIFEST}: check the path.")
    text = _read_manifest(path)
    manifest = _parse_manifest(path, text)
    _check_supported(path, manifest)
    _check_listing(path, manifest)
    for name, record in manifest.files.items():
        _read_verified(path, name, record)
    return Bundle(path, manifest, hashlib.sha256(text).hexdigest())


def check_live(bundle: Bundle) -> None:
    """Raises MbrError for a bundle that looks ahead: a live label can not wait for later frames."""
    if not bundle.manifest.causal:
        raise MbrError(
            f"Bundle {bundle.path} ({bundle.manifest.name}) looks ahead: its labels depend on frames that a live "
            "camera has yet to deliver. Live needs a causal bundle: give one, or label recorded files with this one: "
            "mbr-live batch."
        )


def write_bundle(path: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> Bundle:
    """Write a bundle to folder `path` and load it back.

    `contents` holds the files that `manifest.contents` names, and any of OPTIONAL; `manifest.files` is replaced by
    their records.
    The folder is written beside and renamed, so that nobody sees half a bundle. A bundle that is there is
    replaced; anything else there is left alone and raises MbrError.
    """
    optional = [name for name in OPTIONAL if name in contents]
    if sorted(contents) != sorted([*manifest.contents, *optional]):
        raise MbrError(f"Bundle {path}: contents are {sorted(contents)}, expected {sorted(manifest.contents)}.")
    path = path.resolve()
    check_replaceable(path)
    records = {name: _record(contents[name]) for name in (*manifest.contents, *optional)}
    text = manifest.model_copy(update={"files": records}).model_dump_json(indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        fresh = Path(beside, "new")
        fresh.mkdir()
        for name, content in {**contents, MANIFEST: text.encode()}.items():
            _write_synced(fresh / name, content)
        load_bundle(fresh)
        if path.exists():
            path.rename(Path(beside, "old"))
        fresh.rename(path)
    return load_bundle(path)


def _read_manifest(path: Path) -> bytes:
    file = path / MANIFEST
    if not file.is_file():
        raise MbrError(f"{path} is not a bundle: it has no {MANIFEST}. Give the folder that contains one.")
    return file.read_bytes()


def _parse_manifest(path: Path, text: bytes) -> Manifest:
    subject = f"{path / MANIFEST}"
    try:
        document: Any = json.loads(text)
    except ValueError as error:
        raise MbrError(f"{subject} is not JSON ({error}). It is damaged: copy the bundle again.") from error
    if not isinstance(document, dict) or "format" not in document:
        raise MbrError(f"{subject} is no bundle manifest (no 'format'). It is of another program.")
    found = document["format"]
    if type(found) is not int or found != FORMAT:
        raise MbrError(
            f"{subject} has format {found!r}; this program reads format {FORMAT}. "
            "Use the program version that the bundle was made for, or train it anew."
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise MbrError(f"{subject} is not valid: {_first_lines(error)}. Copy the bundle again.") from error


def _first_lines(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False)
    said = [f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in found[:3]]
    return "; ".join(said) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _check_supported(path: Path, manifest: Manifest) -> None:
    for what, found, expected in (
        ("frames per second", manifest.rate_fps, RATE_FPS),
        ("crop side in pixels", manifest.crop_px, CROP_PX),
    ):
        if found != expected:
            raise MbrError(f"Bundle {path}: {what} {found}, this program needs {expected}. Train it anew.")


def _check_listing(path: Path, manifest: Manifest) -> None:
    """The manifest names exactly the files of a bundle, and the folder holds exactly those."""
    for name in manifest.files:
        if Path(name).name != name or "\\" in name or name == "..":
            raise MbrError(f"Bundle {path}: the manifest names {name!r}, outside the folder. Do not use it.")
    expected = set(manifest.contents) | (set(manifest.files) & set(OPTIONAL))
    if set(manifest.files) != expected:
        raise MbrError(f"Bundle {path}: the manifest lists {sorted(manifest.files)}, expected {sorted(expected)}.")
    present = {entry.name for entry in path.iterdir()}
    missing = sorted(expected - present)
    if missing:
        raise MbrError(f"Bundle {path} lacks {', '.join(missing)}. Copy the bundle again.")
    extra = sorted(present - expected - {MANIFEST})
    if extra:
        raise MbrError(f"Bundle {path} holds {', '.join(extra)}, not part of it. Move it out of the folder.")


def _read_verified(path: Path, name: str, record: FileRecord) -> bytes:
    file = path / name
    if file.is_symlink() or not file.is_file():
        raise MbrError(f"Bundle {path}: {name} is not a plain file. Copy the bundle again, with its files.")
    size = file.stat().st_size
    if size != record.bytes:
        raise MbrError(
            f"Bundle {path}: {name} has {size} bytes, the manifest says {record.bytes}. "
            "It is truncated or of another bundle: copy the bundle again."
        )
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != record.sha256:
        raise MbrError(
            f"Bundle {path}: {name} has SHA-256 {digest[:12]}…, the manifest says {record.sha256[:12]}…. "
            "It was changed after training: copy the bundle again from where you trust it."
        )
    return content


def check_replaceable(path: Path) -> None:
    """Raises MbrError where `path` holds something that a new bundle must not replace, or nothing can be written."""
    if not path.exists():
        check_writable(path)
        return
    if not path.is_dir():
        raise MbrError(f"Cannot write a bundle to {path}: it is a file. Choose another.")
    check_writable(path.resolve().parent)  # a bundle is written beside, and takes its place
    names = {entry.name for entry in path.iterdir()}
    if names and (MANIFEST not in names or names - {MANIFEST, *CONTENTS, FEATURES_INT8, *OPTIONAL}):
        raise MbrError(f"Cannot write a bundle to {path}: the folder holds other things. Choose another.")


def _record(content: bytes) -> FileRecord:
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _write_synced(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
