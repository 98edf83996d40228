"""Dataset files: which recordings they name, whose truth it is, what is wrong with them, and what is trained on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from mbr_live.datasets.dataset import Dataset, annotated, annotations_of, read_dataset, sampled_frames
from mbr_live.datasets.program import check_program, dataset_problems, problem_lines
from mbr_live.datasets.recordings import RecordingSpec, by_log_name
from mbr_live.training.preparation import prepare
from mbr_live.types import UNKNOWN, MbrError
from mbr_live.video.sources import JoinedFiles, VideoFile

HEAD = """
name = "lab"
summary = "Made by a test."
warmup_frames = 3
"""
BEHAVIOURS = """
[[behaviours]]
name = "grooming"
[[behaviours]]
name = "rearing"
[training]
frames_per_step = 4
frame_steps = 1
sequence_frames = 20
sequences_per_step = 2
sequence_steps = 1
"""


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def film(path: Path, frames: int = 12, fps: int = 30, codec: str = "libx264") -> Path:
    """A video that shows nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for _ in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def labels(path: Path, rows: Sequence[str], header: str = "grooming,rearing") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def lab(folder: Path, entries: str, head: str = HEAD, behaviours: str = BEHAVIOURS) -> Dataset:
    (folder / "dataset.toml").write_text(head + entries + behaviours, encoding="utf-8")
    return read_dataset(folder / "dataset.toml")


def entry(video: str, **keys: str) -> str:
    given = {"video": video, "group": video, **keys}
    return "[[recordings]]\n" + "".join(f"{key} = '{value}'\n" for key, value in given.items() if value)


TWO = entry("a.mp4", split="train") + entry("b.mp4", split="validation")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with two films and their labels."""
    for name in "ab":
        film(tmp_path / f"{name}.mp4")
        labels(tmp_path / f"{name}.csv", ["1,0"] * 6 + ["0,1"] * 6)
    return tmp_path


def specs_of(dataset: Dataset) -> dict[str, RecordingSpec]:
    return {spec.name: spec for spec in dataset.all_recordings()}


# Which recordings there are.


def test_recordings_have_names_groups_and_paths_beside_the_file(tmp_path: Path) -> None:
    entries = entry("videos/day1.mp4", group="mouse1", labels="marks/day1.csv", split="train", camera="left")
    joined = "[[recordings]]\nname = 'long'\nvideo = ['x.mp4', 'y.mp4']\ngroup = 'mouse2'\nsplit = 'validation'\n"
    made = specs_of(lab(tmp_path, entries + joined))
    assert (made["day1"].group, made["day1"].camera, made["day1"].log_name) == ("mouse1", "left", "day1")
    assert made["day1"].source.videos == (tmp_path / "videos/day1.mp4",)  # type: ignore[union-attr]
    assert made["day1"].source.labels == (tmp_path / "marks/day1.csv",)  # type: ignore[union-attr]
    assert made["long"].log_name == "long" and len(made["long"].source.videos) == 2  # type: ignore[union-attr]


def test_folders_take_names_groups_and_splits_from_patterns(tmp_path: Path) -> None:
    for name in ("m1-d1", "m1-d2", "m2-d1", "m3-d1"):
        film(tmp_path / "left" / f"{name}.mp4", frames=2)
    entries = """
[splits.groups]
m3 = "test"
[[folders]]
videos = "left/*.mp4"
name = "left-{stem}"
labels = "marks/{stem}.csv"
group_pattern = '^(m\\d)'
"""
    made = specs_of(lab(tmp_path, entries))
    assert list(made) == ["left-m1-d1", "left-m1-d2", "left-m2-d1", "left-m3-d1"]
    spec = made["left-m1-d2"]
    assert (spec.group, spec.log_name) == ("m1", "m1-d2")
    assert spec.source.labels == (tmp_path / "marks/m1-d2.csv",)  # type: ignore[union-attr]
    assert made["left-m3-d1"].split == "test" and made["left-m1-d1"].split == made["left-m1-d2"].split
    assert {spec.split for spec in made.values()} == {"train", "validation", "test"}


CLIPS = """
[splits.groups]
cage1 = "train"
cage2 = "validation"
[[clips]]
folder = "clips"
classes = { grooming = ["grooming", "licking"], rearing = ["up"] }
negatives = ["normal"]
group_pattern = '^(cage\\d)'
"""


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for name in ("grooming/cage1_5", "licking/cage2_5", "licking/17", "up/17", "normal/cage1_6", "jumping/cage1_9"):
        film(tmp_path / "clips" / f"{name}.mkv", frames=4)
    return tmp_path


@pytest.mark.parametrize("pattern", [r"^(cage\d)", r"^(cage\d)?", r"^(cage\d|)"])
def test_clips_show_the_behaviour_of_their_class(clips: Path, pattern: str) -> None:
    dataset = lab(clips, CLIPS.replace(r"^(cage\d)", pattern), head=HEAD + "window_px = 40\n")
    made = specs_of(dataset)
    assert {name: (spec.group, spec.split) for name, spec in made.items()} == {
        "grooming-cage1_5": ("cage1", "train"),
        "licking-cage2_5": ("cage2", "validation"),
        "licking-17": ("clips-unmatched", "train"),
        "up-17": ("clips-unmatched", "train"),
        "normal-cage1_6": ("cage1", "train"),
    }
    shown = {name: annotations_of(spec, dataset).marks.tolist() for name, spec in made.items()}
    assert shown["licking-17"] == [[1, 0]] * 4 and shown["up-17"] == [[0, 1]] * 4
    assert shown["normal-cage1_6"] == [[0, 0]] * 4
    with pytest.raises(MbrError, match=r"licking-17 and up-17 would both have the label log 17\.labels\.csv"):
        by_log_name(dataset.all_recordings())
    truth = {name: np.array(marks, np.int8) for name, marks in shown.items()}
    assert {problem.kind for problem in dataset_problems(dataset, truth)} == {
        "unused_class", "log_names", "empty_split", "one_class",
    }  # fmt: skip


def test_clips_whose_session_is_not_known_can_be_left_out(clips: Path) -> None:
    dataset = lab(clips, CLIPS + "unmatched = 'skip'\n", head=HEAD + "window_px = 40\n")
    assert set(by_log_name(dataset.all_recordings())) == {"cage1_5", "cage2_5", "cage1_6"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("", "names no recording"),
        (entry("a.mp4", split="train") + entry("b.mp4", group=""), "b has no group"),
        (entry("a.mp4", split="train") + entry("b.mp4", group="a.mp4", split="test"), "a.mp4 is in two splits"),
        (entry("a.mp4") + entry("x/a.mp4"), "a more than once"),
        (entry("a.mp4") + entry("x/../a.mp4", name="again"), "a in a.mp4, again in x/../a.mp4"),
        (entry("a.mp4") + "[[folders]]\nvideos = '*.mp4'\nname = 'f-{stem}'\ngroup = 'f'\n", "a.mp4 is in two groups"),
        (entry("a.mp4") + entry("b.mp4", group="a.mp4"), "no validation recordings"),
        (entry("a.mp4", split="random frames"), "neighbours are nearly the same picture"),
        ("split_by = 'clip'\n" + TWO, "neighbours are nearly the same picture"),
        ("[splits.groups]\nmouse9 = 'test'\n" + TWO, "mouse9, which is no group"),
        ("[splits.groups]\n'a.mp4' = 'test'\n" + TWO, "Keep one of the two"),
        ("[problems]\noverlap = 'bad'\n" + TWO, r"problems\.overlap"),
        ("[[folders]]\nvideos = 'none/*.mp4'\n", "found no video there"),
        ("[[folders]]\nvideos = '*.mp4'\ngroup_pattern = 'm'\n", "0 capture groups"),
        ("[[folders]]\nvideos = '*.mp4'\ngroup_pattern = '(m'\n", "no regular expression"),
        ("[[folders]]\nvideos = '*.mp4'\ngroup_pattern = '(m)'\n", "is not in its name"),
        ("[[folders]]\nvideos = '*.mp4'\ngroup_pattern = '(m)?'\n", "is not in its name"),
        (CLIPS, "window_px"),
        (CLIPS.replace("rearing =", "flying ="), "flying"),
        (entry("a.mp4", format="excel"), r"recordings 'a\.mp4'\.format.*found 'excel'"),
    ],
)
def test_dataset_files_that_are_refused(two: Path, clips: Path, entries: str, message: str) -> None:
    with pytest.raises(MbrError, match=message):
        lab(two, entries)


@pytest.mark.parametrize(
    ("named", "other", "message"),
    [
        ('"lab"', "my mice", r"dataset\.toml: name: .*'my mice' can not name a bundle"),
        ('"lab"', "../lab", "can not name a bundle"),
        ('"grooming"', "rearing mid", r"behaviours .*name: .*'rearing mid' can not name a behaviour"),
        ('"grooming"', "Grooming", "'Grooming' can not name a behaviour"),
        ('"grooming"', "frame", "two columns frame"),
        ('"grooming"', "p_rearing", "two columns p_rearing"),
    ],
)
def test_names_that_no_bundle_can_have_are_found_before_the_training(
    two: Path, named: str, other: str, message: str
) -> None:
    with pytest.raises(MbrError, match=message):
        lab(two, TWO, HEAD.replace(named, f'"{other}"'), BEHAVIOURS.replace(named, f'"{other}"'))


@pytest.mark.parametrize(
    ("link", "entries"),
    [
        ("c.mp4", "[[folders]]\nvideos = '*.mp4'\nlabels = '{stem}.csv'\ngroup_pattern = '(.)'\n"),
        ("clips/normal/cage1_7.mkv", "window_px = 40\n" + CLIPS),
    ],
)
def test_a_link_to_a_video_that_is_gone(two: Path, clips: Path, link: str, entries: str) -> None:
    """Of a drive that is not mounted today, say."""
    (two / link).symlink_to("/nowhere/video.mp4")
    with pytest.raises(MbrError, match=f"{link}: links to a file that is not there"):
        lab(two, entries)


def test_chunks_of_one_animal_may_be_groups_of_their_own_if_that_is_said(two: Path) -> None:
    entries = "[[folders]]\nvideos = '*.mp4'\nlabels = '{stem}.csv'\n"
    with pytest.raises(MbrError, match="has no group"):
        lab(two, entries)
    dataset = lab(two, entries, head=HEAD + "groups_share_animal = true\n")
    assert [spec.group for spec in dataset.all_recordings()] == ["a", "b"]
    assert "neighbouring chunks are the same animal" in dataset.caveats[0]


def test_a_dataset_to_evaluate_on_needs_no_training_recordings(two: Path) -> None:
    assert [spec.split for spec in lab(two, entry("a.mp4", split="test")).all_recordings()] == ["test"]


# Truth, and what is wrong with it.


def test_truth_has_the_behaviours_of_the_dataset_in_order(two: Path) -> None:
    labelled = TWO.replace("group = 'a.mp4'", "group = 'a.mp4'\nlabels = 'a.csv'")
    behaviours = "[[behaviours]]\nname = 'up'\ncolumns = ['rearing']\n[[behaviours]]\nname = 'grooming'\n"
    dataset = lab(two, labelled, behaviours=behaviours)
    annotations = annotations_of(dataset.all_recordings()[0], dataset)
    assert annotations.behaviours == ("up", "grooming")
    assert annotations.marks.tolist() == [[0, 1]] * 6 + [[1, 0]] * 6


def test_problems_are_as_grave_as_the_dataset_file_says(two: Path) -> None:
    labels(two / "a.csv", ["1,0"] * 30)
    for severity, expected in (("error", "error"), ("warning", "warning"), ("ignore", None)):
        entries = f"[problems]\ntoo_many_frames = '{severity}'\n" + TWO.replace("split", "labels = 'a.csv'\nsplit")
        dataset = lab(two, entries)
        spec = dataset.all_recordings()[0]
        _, problems = annotated(spec, dataset)
        assert [problem.severity for problem in problems] == ([expected] if expected else [])
        if severity == "error":
            with pytest.raises(MbrError, match=r"Recording a: a\.csv has labels of 30 frames, the video 12 frames"):
                annotations_of(spec, dataset)
        else:
            assert annotations_of(spec, dataset).marks.shape == (30, 2)


def test_recordings_without_video_or_labels_are_said_to_be_so(two: Path) -> None:
    dataset = lab(two, entry("gone.mp4", split="train") + entry("b.mp4", split="validation"))
    gone, unlabelled = (annotated(spec, dataset) for spec in dataset.all_recordings())
    assert [problem.kind for problem in gone[1]] == ["missing_video"] and gone[0].marks.shape == (0, 2)
    assert [problem.kind for problem in unlabelled[1]] == ["no_annotation"]


def test_problems_that_recordings_share_are_one_line(two: Path) -> None:
    dataset = lab(two, TWO)
    problems = [problem for spec in dataset.all_recordings() for problem in annotated(spec, dataset)[1]]
    lines = problem_lines(problems)
    assert len(lines) == 1 and lines[0].startswith("warning (no_annotation): a, b: it has no label file")


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "libx264"), ("avi", "mpeg4"), ("avi", "mjpeg")],
)
def test_times_without_decoding_are_those_of_decoding(tmp_path: Path, ending: str, codec: str) -> None:
    files = [VideoFile(film(tmp_path / f"{frames}.{ending}", frames, 24, codec)) for frames in (20, 7)]
    joined = JoinedFiles("long", files)
    assert joined.times_ns().tolist() == [frame.time_ns for frame in joined]


def test_check_prints_problems_and_draws_plots(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="training is not installed: pip install 'mbr-live[train]'")
    entries = TWO.replace("group = 'a.mp4'", "group = 'a.mp4'\nlabels = 'a.csv'")
    lab(two, entries.replace("group = 'b.mp4'", "group = 'b.mp4'\nlabels = 'b.csv'"))
    assert check_program(two / "dataset.toml", two / "plots") == 0
    printed = capsys.readouterr().out
    assert "2 recordings, 0 errors, 0 warnings" in printed and "validation" in printed
    for name in ("ethograms-1.png", "bout-lengths.png"):
        assert (two / "plots" / name).read_bytes().startswith(b"\x89PNG")
    lab(two, entries.replace("a.csv", "gone.csv"))
    assert check_program(two / "dataset.toml", None) == 1
    assert "error (invalid_format): a: " in capsys.readouterr().out


# What is trained on.


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def real_form(box_video: Path, tmp_path: Path) -> Path:
    """The simulated recording twice, as a lab would have it; half of the grooming is not labelled."""
    truth = box_video.with_name("box.truth.csv").read_text(encoding="utf-8").splitlines()
    header = truth[0].split(",")
    first, grooming, rearing = (header.index(name) for name in ("source_frame", "grooming", "rearing"))
    rows = [row.split(",") for row in truth[1:]]
    marks = [
        f"{row[grooming]},{row[rearing]}" if int(row[first]) // 10 % 2 else f"-1,{int(int(row[first]) % 3 == 0)}"
        for row in rows
    ]
    for name in "ab":
        shutil.copy(box_video, tmp_path / f"{name}.mp4")
        labels(tmp_path / f"{name}.csv", marks)
    film(tmp_path / "c.mp4")
    entries = "".join(
        entry(f"{name}.mp4", labels=marked, split=split)
        for name, marked, split in (("a", "a.csv", "train"), ("b", "b.csv", "validation"), ("c", "", "train"))
    )
    lab(tmp_path, entries)
    return tmp_path / "dataset.toml"


def test_crops_of_videos_are_kept_and_their_truth_is_looked_up_by_source_frame(real_form: Path, cache: Path) -> None:
    dataset = read_dataset(real_form)
    made = prepare(dataset, cache, silent)
    assert [recording.name for recording in made] == ["a", "b"]  # nobody labelled c
    recording = made[0]
    assert len(recording.ticks) == len(recording.crops) == len(recording.truth) > 50
    assert recording.crops.shape[1:] == (160, 160, 3) and recording.truth.dtype == np.int8
    spec = dataset.all_recordings()[0]
    truth = annotations_of(spec, dataset).at(sampled_frames(spec))
    np.testing.assert_array_equal(recording.truth, truth[recording.ticks])
    assert np.any(recording.truth[:, 0] == UNKNOWN) and not np.any(recording.truth[:, 1] == UNKNOWN)
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len([path for path in before if path.name.endswith(".crops.npy")]) == 2
    again = prepare(dataset, cache, silent)
    np.testing.assert_array_equal(again[0].crops, recording.crops)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before


def test_training_masks_what_nobody_labelled(real_form: Path, cache: Path) -> None:
    pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")
    from mbr_live.training.train import train

    bundle = train(real_form, real_form.parent / "bundle", progress=silent, cache=cache)
    card = bundle.manifest.training
    assert card.recordings == ("a (train)", "b (validation)")
    frames = {score.behaviour: score.frames for score in card.scores}
    assert 0 < frames["grooming"] < 0.7 * frames["rearing"]


def test_the_real_cylinder(realdata: Path, tmp_path: Path) -> None:
    folder = realdata / "cylinder"
    entries = f"""
groups_share_animal = true
[splits.groups]
"17500" = "validation"
"10500" = "train"
[[folders]]
videos = '{folder}/camera_L/*.mp4'
labels = '{folder}/labels/{{stem}}.csv'
group_pattern = '^(\\d+)$'
"""
    dataset = lab(tmp_path, entries)
    shown = {}
    for spec in dataset.all_recordings():
        annotations, problems = annotated(spec, dataset)
        assert problems == () and annotations.marks.shape == (3500, 2)
        shown[spec.name] = int(np.count_nonzero(annotations.marks[:, 0] == 1)) / 24
    assert round(sum(shown.values()), 1) == 85.8  # stills; the last one of a chunk is cut short
    assert min(shown[name] for name in ("03500", "07000", "10500", "17500", "24500")) > 0
    assert len(sampled_frames(dataset.all_recordings()[0])) == 292
