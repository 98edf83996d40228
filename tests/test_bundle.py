"""Bundles: what is written is what is read, and nothing else is accepted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mbr_live.bundle import Bundle, load_bundle, write_bundle
from mbr_live.manifest import CARD, FEATURES, FEATURES_INT8, TEMPORAL, Behaviour, Int8Card, Manifest, TrainingCard
from mbr_live.types import MbrError

CONTENTS = {FEATURES: b"features" * 100, TEMPORAL: b"temporal" * 10, CARD: b"# a card\n"}


def behaviour(name: str = "grooming", **changes: Any) -> Behaviour:
    values = {"enter": 0.6, "exit": 0.4, "min_bout_s": 0.5, "bridge_s": 0.2}
    return Behaviour(name=name, **(values | changes))


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "format": 1,
        "name": "test",
        "behaviours": (behaviour("grooming"), behaviour("rearing")),
        "crop_px": 160,
        "rate_fps": 10,
        "feature_dim": 8,
        "state_size": 16,
        "receptive_field_frames": 5,
        "warmup_frames": 20,
        "max_gap_s": 0.5,
        "files": {},
        "training": TrainingCard(
            summary="for a test",
            date="2026-01-31",
            seed=1,
            recordings=("box-1 (train)",),
            frames=100,
            steps={"clips": 2},
            versions={"torch": "2"},
            scores=(),
        ),
    }
    return Manifest(**(values | changes))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "model", manifest(), CONTENTS)


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    file = bundle.path / "manifest.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_what_is_written_is_read(bundle: Bundle) -> None:
    loaded = load_bundle(bundle.path)
    assert loaded == bundle
    assert loaded.manifest.model_copy(update={"files": {}}) == manifest()
    assert {name: loaded.read(name) for name in CONTENTS} == CONTENTS
    assert loaded.sha256 == hashlib.sha256((bundle.path / "manifest.json").read_bytes()).hexdigest()
    assert sorted(entry.name for entry in bundle.path.parent.iterdir()) == ["model"]


def test_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    hashes = {write_bundle(tmp_path / name, manifest(), CONTENTS).sha256 for name in "ab"}
    assert len(hashes) == 1


def test_times_become_frames() -> None:
    rules = (behaviour(min_bout_s=0.26, bridge_s=0.0), behaviour("rearing", min_bout_s=1.0, bridge_s=0.24))
    found = manifest(behaviours=rules, max_gap_s=0.54)
    assert (found.min_bout_frames, found.bridge_frames, found.max_gap_frames) == ((3, 10), (0, 2), 5)


# Anything else than a whole, unchanged bundle of this format is refused, and the text says why.


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(MbrError, match="does not exist"):
        load_bundle(tmp_path / "nowhere")


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("x")
    with pytest.raises(MbrError, match="is a file"):
        load_bundle(tmp_path / "model")


def test_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("x")
    with pytest.raises(MbrError, match=r"no manifest\.json"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '"format"', '{"name": "npm package"}'])
def test_foreign_manifest(bundle: Bundle, text: str) -> None:
    (bundle.path / "manifest.json").write_text(text)
    with pytest.raises(MbrError, match="no 'format'"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("cut", [0, 1, 100, -2])
def test_truncated_manifest(bundle: Bundle, cut: int) -> None:
    file = bundle.path / "manifest.json"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(MbrError, match="not JSON"):
        load_bundle(bundle.path)


def test_bundle_of_kinematics_alone_has_no_feature_network(tmp_path: Path) -> None:
    alone = manifest(feature_dim=0, kinematics=("speed", "rise"), kinematics_version=1)
    contents = {name: content for name, content in CONTENTS.items() if name != FEATURES}
    written = write_bundle(tmp_path / "alone", alone, contents)
    assert set(written.manifest.files) == {TEMPORAL, CARD} and written.manifest.input_dim == 2
    (written.path / FEATURES).write_bytes(b"more")
    with pytest.raises(MbrError, match=r"holds features\.onnx, not part of it"):
        load_bundle(written.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_dim": 0},
        {"kinematics": ("speed",)},
        {"kinematics_version": 1},
        {"kinematics": ("speed", "speed"), "kinematics_version": 1},
        {"window_px": 0},
    ],
)
def test_inputs_that_can_not_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        manifest(**changes)


def test_manifests_from_before_kinematics_are_read(bundle: Bundle) -> None:
    document = json.loads((bundle.path / "manifest.json").read_text())
    for key in ("kinematics", "kinematics_version", "window_px"):
        del document[key]
    (bundle.path / "manifest.json").write_text(json.dumps(document))
    assert load_bundle(bundle.path).manifest.kinematics == ()


@pytest.mark.parametrize("name", sorted(CONTENTS))
def test_missing_file(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(MbrError, match=f"lacks {name}"):
        load_bundle(bundle.path)


def test_extra_file(bundle: Bundle) -> None:
    (bundle.path / "weights.pkl").write_bytes(b"")
    with pytest.raises(MbrError, match=r"holds weights\.pkl"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("name", sorted(CONTENTS))
def test_truncated_file(bundle: Bundle, name: str) -> None:
    (bundle.path / name).write_bytes(CONTENTS[name][:-1])
    with pytest.raises(MbrError, match=rf"{name} has {len(CONTENTS[name]) - 1} bytes.*truncated"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("name", sorted(CONTENTS))
def test_tampered_file(bundle: Bundle, name: str) -> None:
    (bundle.path / name).write_bytes(bytes([CONTENTS[name][0] ^ 1]) + CONTENTS[name][1:])
    with pytest.raises(MbrError, match=rf"{name} has SHA-256.*changed"):
        load_bundle(bundle.path)


def test_change_after_loading(bundle: Bundle) -> None:
    (bundle.path / FEATURES).write_bytes(CONTENTS[FEATURES][::-1])
    with pytest.raises(MbrError, match="SHA-256"):
        bundle.read(FEATURES)


def test_link_instead_of_a_file(bundle: Bundle, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (bundle.path / CARD).rename(elsewhere)
    (bundle.path / CARD).symlink_to(elsewhere)
    with pytest.raises(MbrError, match="not a plain file"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/features.onnx", "..", ".", "a\\b", "./card.md"])
def test_names_that_leave_the_folder(bundle: Bundle, name: str) -> None:
    edit(bundle, lambda document: document["files"].update({name: document["files"][CARD]}))
    with pytest.raises(MbrError, match="outside the folder"):
        load_bundle(bundle.path)


def test_manifest_that_lists_too_little(bundle: Bundle) -> None:
    edit(bundle, lambda document: document["files"].pop(TEMPORAL))
    with pytest.raises(MbrError, match="the manifest lists"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("number", [0, 2, "1", None, True, 1.0])
def test_other_format(bundle: Bundle, number: object) -> None:
    edit(bundle, lambda document: document.update(format=number))
    with pytest.raises(MbrError, match="; this program reads format 1"):
        load_bundle(bundle.path)


@pytest.mark.parametrize(("key", "value"), [("rate_fps", 30), ("crop_px", 224)])
def test_what_this_program_does_not_support(bundle: Bundle, key: str, value: int) -> None:
    edit(bundle, lambda document: document.update({key: value}))
    with pytest.raises(MbrError, match=f"{value}, this program needs"):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d["behaviours"][0].update(colour="red"), r"behaviours\.0\.colour"),
        (lambda d: d.pop("warmup_frames"), "warmup_frames"),
        (lambda d: d.update(feature_dim="8"), "feature_dim"),
        (lambda d: d.update(behaviours=[]), "behaviours"),
        (lambda d: d["files"][CARD].update(bytes=-1), "bytes"),
        (lambda d: d["behaviours"][0].update(enter=float("nan")), "enter"),
    ],
)
def test_manifest_that_is_not_valid(bundle: Bundle, change: Callable[[Any], object], named: str) -> None:
    edit(bundle, change)
    with pytest.raises(MbrError, match=named):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("names", "clash"),
    [(("a", "a"), "a"), (("status",), "status"), (("x_px",), "x_px"), (("a", "p_a"), "p_a")],
)
def test_behaviours_that_clash_with_columns(names: tuple[str, ...], clash: str) -> None:
    with pytest.raises(ValidationError, match=f"clash.*'{clash}'"):
        manifest(behaviours=tuple(behaviour(name) for name in names))


@pytest.mark.parametrize("name", ["Grooming", "1st", "a-b", "a b", "", "a\n"])
def test_behaviour_names(name: str) -> None:
    with pytest.raises(ValidationError):
        behaviour(name)


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_exit_is_never_above_enter(enter: float, leave: float) -> None:
    if leave <= enter:
        assert behaviour(enter=enter, exit=leave).exit <= enter
    else:
        with pytest.raises(ValidationError, match="above the enter threshold"):
            behaviour(enter=enter, exit=leave)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5])
def test_thresholds_lie_between_0_and_1(value: float) -> None:
    with pytest.raises(ValidationError):
        behaviour(enter=value, exit=min(value, 0.1))


# Writing never destroys what is not a bundle.


def test_a_bundle_is_replaced(bundle: Bundle) -> None:
    other = write_bundle(bundle.path, manifest(name="other"), {**CONTENTS, CARD: b"new"})
    assert load_bundle(bundle.path) == other != bundle
    assert sorted(entry.name for entry in bundle.path.parent.iterdir()) == ["model"]


def test_a_damaged_bundle_is_replaced(bundle: Bundle) -> None:
    (bundle.path / FEATURES).unlink()
    write_bundle(bundle.path, manifest(), CONTENTS)


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_bundle(tmp_path / "model", manifest(), CONTENTS)


def test_other_things_are_not_replaced(bundle: Bundle, tmp_path: Path) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("precious")
    (bundle.path / "notes.txt").write_text("precious")
    file = tmp_path / "file"
    file.write_text("precious")
    for path in (foreign, bundle.path, file):
        with pytest.raises(MbrError, match="Cannot write a bundle"):
            write_bundle(path, manifest(), CONTENTS)
    kept = (foreign / "chapter1.tex", bundle.path / "notes.txt", file)
    assert [path.read_text() for path in kept] == ["precious"] * 3


def test_nothing_is_written_that_could_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(MbrError, match="this program needs 160"):
        write_bundle(tmp_path / "model", manifest(crop_px=224), CONTENTS)
    with pytest.raises(MbrError, match="contents are"):
        write_bundle(tmp_path / "model", manifest(), {CARD: b""})
    assert list(tmp_path.iterdir()) == []


def int8_card(**changes: object) -> Int8Card:
    card = {
        "date": "2026-11-25", "versions": {}, "recordings": ("a.mp4",), "calibration_frames": 10,
        "calibration_sha256": "0" * 64, "compared_frames": 100, "labels_differ": 0.01,
        "pr_auc": {"grooming": (0.9, 0.89), "rearing": (0.8, 0.81)}, "feature_error": 0.03,
    }  # fmt: skip
    return Int8Card.model_validate({**card, **changes})


def test_int8_features_are_part_of_a_bundle_that_says_so(tmp_path: Path) -> None:
    described = manifest(int8=int8_card())
    with pytest.raises(MbrError, match=r"expected \['card.md', 'features.int8.onnx', 'features.onnx', 'temporal.onnx'"):
        write_bundle(tmp_path / "model", described, CONTENTS)
    written = write_bundle(tmp_path / "model", described, {**CONTENTS, FEATURES_INT8: b"integers"})
    assert written.read(FEATURES_INT8) == b"integers"
    assert written.manifest.int8 == int8_card()
    write_bundle(tmp_path / "model", manifest(), CONTENTS)  # it can be replaced by one without
    assert not (tmp_path / "model" / FEATURES_INT8).exists()


def test_int8_without_a_feature_network() -> None:
    alone = {"feature_dim": 0, "kinematics": ("speed",), "kinematics_version": 1}
    with pytest.raises(ValidationError, match="int8 is of the feature network"):
        manifest(**alone, int8=int8_card())
