"""Label files of every format that labs have, written as those programs write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbr_live.annotation.formats import Format, read_annotations, recognised
from mbr_live.annotation.marks import Annotations, Finding, runs
from mbr_live.stages.sampler import sample
from mbr_live.types import UNKNOWN, MbrError

FRAMES = 90
TIMES_NS = np.round(np.arange(FRAMES) * 1e9 / 30).astype(np.int64)
BOTH = {"grooming": ("grooming",), "rearing": ("rearing",)}


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def read(
    path: Path | Sequence[Path],
    columns: Mapping[str, Sequence[str]] = BOTH,
    format_: Format = "auto",
    times_ns: np.ndarray = TIMES_NS,
) -> tuple[Annotations, tuple[Finding, ...]]:
    paths = [path] if isinstance(path, Path) else path
    return read_annotations(paths, format_, columns, times_ns, ["mouse1"])


def shown(annotations: Annotations, behaviour: str, value: int = 1) -> list[list[int]]:
    """Runs of a behaviour as [first frame, frame after the last]."""
    found: list[list[int]] = runs(annotations.marks[:, annotations.behaviours.index(behaviour)], value).tolist()
    return found


def frame_table(header: str, rows: Sequence[str], frames: int = FRAMES) -> str:
    """`rows` of a table, the last one repeated until there is one for every frame."""
    return "\n".join([header, *rows, *[rows[-1]] * (frames - len(rows))]) + "\n"


# Tables with a row per source frame.


@pytest.mark.parametrize(
    "header",
    ["grooming,rearing", "g,r", "Grooming , Rearing", "G,R", "x_nose,y_nose,g,likelihood,r", "g;r", "g\tr", "x;y;g;r"],
)
def test_spellings_and_delimiters_of_frame_tables(tmp_path: Path, header: str) -> None:
    mark = next(mark for mark in ",;\t" if mark in header)  # decimal commas where it is no comma
    names = [name.strip().lower()[0] for name in header.split(mark)]
    rows = [
        mark.join({"g": g, "r": r}.get(name, "3.7" if mark == "," else "3,7") for name in names)
        for g, r in (("1", ""), ("1", "1"), ("", "0"))
    ]
    annotations, findings = read(written(tmp_path / "mouse1.csv", frame_table(header, rows)))
    assert findings == ()
    assert annotations.marks.shape == (FRAMES, 2) and annotations.marks.dtype == np.int8
    assert shown(annotations, "grooming") == [[0, 2]] and shown(annotations, "rearing") == [[1, 2]]
    assert not np.any(annotations.marks == UNKNOWN)


def test_label_files_of_several_videos_are_not_laid_over_one_another(tmp_path: Path) -> None:
    first = written(tmp_path / "a.csv", frame_table("grooming,rearing", ["0,0"], FRAMES // 2))
    second = written(tmp_path / "b.csv", frame_table("G,mid rearing", ["1,0"], FRAMES // 2))
    _, findings = read([first, second])
    (wrong,) = [each for each in findings if each.kind == "invalid_format"]
    assert "a.csv and b.csv all mark 'grooming'" in wrong.text and "one label file" in wrong.text
    other = written(tmp_path / "c.csv", frame_table("rearing", ["1"]))
    _, findings = read([written(tmp_path / "d.csv", frame_table("grooming", ["1"])), other])
    assert findings == ()


def test_rearing_can_be_merged_or_kept_apart_whatever_it_is_called(tmp_path: Path) -> None:
    catalan = written(tmp_path / "a.csv", frame_table("rearing mig,rearing paret", ["1,0", "0,1", "0,0"]))
    short = written(tmp_path / "b.csv", frame_table("WR,MR", ["0,1", "1,0", "0,0"]))
    for path in (catalan, short):
        merged, _ = read(path, {"rearing": ("rearing mid", "rearing wall")})
        assert shown(merged, "rearing") == [[0, 2]]
        apart, _ = read(path, {"mid": ("rear_mid",), "wall": ("wall rearing",)})
        assert shown(apart, "mid") == [[0, 1]] and shown(apart, "wall") == [[1, 2]]
        annotations, findings = read(path, {"rearing": ("rearing",)})
        assert [each.kind for each in findings] in (["missing_column"], ["invalid_format"])
        assert not np.any(annotations.marks == 1)


def test_every_column_of_a_behaviour_has_to_be_in_the_labels(tmp_path: Path) -> None:
    """Where one is missing, frames that the others do not show are not known to be without the behaviour."""
    columns = {"rearing": ("rearing mid", "rearing wall")}
    half = written(tmp_path / "mid.csv", frame_table("mid rearing,x", ["1,5", "0,5"]))
    annotations, findings = read(half, columns)
    assert [each.kind for each in findings] == ["missing_column"]
    assert "no column 'rearing wall' for rearing; the labels have 'mid rearing', 'x'" in findings[0].text
    assert shown(annotations, "rearing") == [[0, 1]] and shown(annotations, "rearing", 0) == []
    other = written(tmp_path / "wall.csv", frame_table("wr", ["0", "1", "0"]))
    annotations, findings = read([half, other], columns)
    assert findings == () and shown(annotations, "rearing") == [[0, 2]]
    events = boris(tmp_path / "obs.csv", [boris_row("wr", "START", 1.0), boris_row("wr", "STOP", 1.5)])
    annotations, findings = read(events, columns)
    assert findings == () and shown(annotations, "rearing", 0) == [[0, 30], [45, 90]]


def test_blank_lines_of_a_table_of_one_column_are_frames(tmp_path: Path) -> None:
    path = written(tmp_path / "mouse1.csv", "g\n" + "\n1\n" * (FRAMES // 2))
    annotations, findings = read(path, {"grooming": ("grooming",)})
    assert findings == () and annotations.marks[:, 0].tolist() == [0, 1] * (FRAMES // 2)


def test_windows_text_with_a_mark_of_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "mouse1.csv"
    path.write_bytes(b"\xef\xbb\xbf" + frame_table("grooming;rearing", ["1;0"]).replace("\n", "\r\n").encode())
    assert shown(read(path)[0], "grooming") == [[0, FRAMES]]


def test_deepethogram(tmp_path: Path) -> None:
    rows = [f"{frame},{marks}" for frame, marks in enumerate(["0,1,0"] * 5 + ["-1,-1,-1"] * 5 + ["1,0,0"] * 80)]
    path = written(tmp_path / "mouse1_labels.csv", frame_table(",background,grooming,rearing", rows))
    annotations, findings = read(path)
    assert recognised(path) == "deepethogram" and findings == ()
    assert shown(annotations, "grooming") == [[0, 5]] and shown(annotations, "rearing", UNKNOWN) == [[5, 10]]
    _, findings = read(path, {"grooming": ("grooming",)})
    assert [each.kind for each in findings] == ["unknown_behaviour"] and "rearing" in findings[0].text


@pytest.mark.parametrize("format_", ["auto", "simba"])
def test_simba(tmp_path: Path, format_: Format) -> None:
    header = ",Nose_x,Nose_y,Nose_p,Movement_sum,Probability_grooming,grooming,rearing"
    rows = [f"{frame},12.5,40.1,0.98,3.25,0.4,{int(frame < 7)},0" for frame in range(FRAMES)]
    annotations, findings = read(written(tmp_path / "mouse1.csv", frame_table(header, rows)), format_=format_)
    assert findings == () and shown(annotations, "grooming") == [[0, 7]]


@pytest.mark.parametrize("column", ["frame", "Frame number", ""])
@pytest.mark.parametrize(
    ("numbers", "row"),
    [
        ([*range(FRAMES)], None),
        ([*range(1, FRAMES + 1)], None),
        ([*range(40), *range(FRAMES - 40)], None),  # two tables on end
        ([3] * FRAMES, 1),
        ([*range(10, FRAMES)], 1),
        ([*range(40), *range(41, FRAMES)], 41),
        ([*range(40), 39, *range(40, FRAMES - 1)], 41),
        ([f"{number}.5" for number in range(FRAMES)], None),  # whatever that is
    ],
)
def test_a_table_that_leaves_frames_out_is_not_taken_for_one_of_every_frame(
    tmp_path: Path, column: str, numbers: list[object], row: int | None
) -> None:
    for header, marks in (("background,grooming,rearing", "1,0,0"), ("grooming,rearing", "0,0")):
        rows = [f"{column},{header}", *(f"{number},{marks}" for number in numbers)]
        _, findings = read(written(tmp_path / "mouse1.csv", "\n".join(rows) + "\n"))
        assert [each.kind for each in findings] == ([] if row is None else ["invalid_format"])
        assert row is None or f"row {row} below the header" in findings[0].text


# Sparse rows.


@pytest.mark.parametrize(("first", "step", "stills"), [(0, 1, False), (7, 1, False), (0, 3, True)])
def test_a_row_for_every_frame_is_no_judgement_of_stills(tmp_path: Path, first: int, step: int, stills: bool) -> None:
    rows = [f"{frame},{int(frame > 40)},0" for frame in range(first, FRAMES, step)]
    annotations, findings = read(written(tmp_path / "a.csv", "\n".join(["source_frame,grooming,rearing", *rows])))
    assert findings == () and (annotations.judged is not None) == stills
    assert np.all(annotations.marks[:first] == UNKNOWN) and not np.any(annotations.marks[first:] == UNKNOWN)


def test_a_sparse_row_holds_until_the_next_and_the_last_as_long_as_the_one_before(tmp_path: Path) -> None:
    text = "source_frame,grooming,rearing,rear_wall\n0,0,1,-1\n24,1,0,0\n48,-1,0,0\n"
    annotations, findings = read(written(tmp_path / "mouse1.csv", text))
    assert findings == () and len(annotations.marks) == 72
    assert shown(annotations, "grooming") == [[24, 48]] and shown(annotations, "rearing") == [[0, 24]]
    assert shown(annotations, "grooming", UNKNOWN) == [[48, 72]]
    assert annotations.at(np.array([71, 72, 500])).tolist() == [[-1, 0], [-1, -1], [-1, -1]]


def test_a_still_is_shown_by_the_first_sampled_frame_at_or_after_it(tmp_path: Path) -> None:
    text = "source_frame,grooming,rearing\n0,0,1\n24,1,0\n48,0,0\n50,0,0\n"
    annotations, _ = read(written(tmp_path / "mouse1.csv", text))
    assert annotations.judged is not None and np.flatnonzero(annotations.judged).tolist() == [0, 24, 48, 50]
    # At 10 fps of 120: frame 49 was lost, so nothing shows the still of frame 48; a gap shows no frame.
    sampled = np.array([0, 12, UNKNOWN, 24, 36, 51, 60])
    assert annotations.judged_at(sampled).tolist() == [True, False, False, True, False, True, False]
    assert annotations.judged_at(np.array([12, 36, 48])).tolist() == [True, True, True]


def test_every_frame_is_judged_where_a_table_has_them_all(tmp_path: Path) -> None:
    sparse = written(tmp_path / "a.csv", "source_frame,grooming\n0,0\n24,1\n")
    other = written(tmp_path / "b.csv", "source_frame,rearing\n12,0\n24,1\n")
    dense = written(tmp_path / "c.csv", frame_table("rearing", ["0"]))
    both, _ = read([sparse, other])
    assert both.judged is not None and np.flatnonzero(both.judged).tolist() == [0, 12, 24]
    mixed, _ = read([sparse, dense])
    assert mixed.judged is None and mixed.judged_at(np.arange(5)).all()


@pytest.mark.parametrize("starts", ["24,0", "0,0", "-1,5", "0.5,2", "0,inf", "0,nan", "0,1e300"])
def test_sparse_rows_that_do_not_rise(tmp_path: Path, starts: str) -> None:
    first, second = starts.split(",")
    text = f"source_frame,grooming,rearing\n{first},0,0\n{second},0,0\n"
    assert [each.kind for each in read(written(tmp_path / "a.csv", text))[1]] == ["invalid_format"]


# BORIS.

BORIS = (
    "Observation id,Observation date,Description,Observation duration,Observation type,Source,Time offset (s),"
    "Media duration (s),FPS,Subject,Behavior,Behavioral category,Modifier #1,Behavior type,Time,Media file name,"
    "Image index,Image file path,Comment"
)


def boris_row(behaviour: str, kind: str, time: float, media: str = "C:\\v\\mouse1.mp4", **more: str) -> str:
    observation, offset, source = more.get("observation", "obs1"), more.get("offset", "0.0"), more.get("source", media)
    return (
        f"{observation},2026-01-01,,3.0,Media file(s),{source},{offset},3.0,30,No focal subject,"
        f"{behaviour},,,{kind},{time:.3f},{media},NA,NA,"
    )


def boris(path: Path, rows: Sequence[str]) -> Path:
    return written(path, "\n".join([BORIS, *rows]) + "\n")


def test_boris_tabular(tmp_path: Path) -> None:
    rows = [
        boris_row("Grooming", "START", 10 / 30),
        boris_row("Rearing", "POINT", 0.5),
        boris_row("Grooming", "STOP", 20 / 30),
        boris_row("Grooming", "START", 2.0),
        boris_row("Grooming", "STOP", 3.0),
    ]
    path = boris(tmp_path / "obs.csv", rows)
    annotations, findings = read(path)
    assert recognised(path) == "boris" and [each.kind for each in findings] == ["point_events"]
    assert shown(annotations, "grooming") == [[10, 20], [60, 90]] and shown(annotations, "rearing") == [[15, 16]]
    assert not np.any(annotations.marks == UNKNOWN)


def test_boris_tabular_of_older_versions(tmp_path: Path) -> None:
    lines = [
        ["Observation id", "obs1"],
        ["Observation date", "2018-03-02 10:00:00"],
        [""],
        ["Time", "Media file path", "Total length", "FPS", "Subject", "Behavior", "Behavioral category", "Comment",
         "Status"],
        ["0.333", "/data/mouse1.avi", "3.0", "30", "", "g", "", "", "START"],
        ["0.667", "/data/mouse1.avi", "3.0", "30", "", "g", "", "", "STOP"],
    ]  # fmt: skip
    path = written(tmp_path / "old.tsv", "\n".join("\t".join(line) for line in lines) + "\n")
    annotations, findings = read(path)
    assert findings == () and shown(annotations, "grooming") == [[10, 20]] and shown(annotations, "rearing") == []


def test_boris_aggregated(tmp_path: Path) -> None:
    header = (
        "Observation id,Observation date,Subject,Observation duration by subject by observation,Behavior,"
        "Behavioral category,Modifier #1,Behavior type,Start (s),Stop (s),Duration (s),Media file name,"
        "Image index start,Image index stop,Image file path start,Image file path stop,Comment start,Comment stop"
    )
    rows = [
        f"obs1,2026-01-01,,3.0,{name},,,STATE,{start:.3f},{stop:.3f},{stop - start:.3f},mouse1.mp4,,,,,,"
        for name, start, stop in (("grooming", 0.0, 1.0), ("grooming", 0.9, 1.5), ("digging", 2.0, 2.5))
    ]
    path = written(tmp_path / "aggregated.csv", "\n".join([header, *rows]) + "\n")
    annotations, findings = read(path)
    assert recognised(path) == "boris_aggregated" and {each.kind for each in findings} == {
        "overlap",
        "unknown_behaviour",
    }
    assert shown(annotations, "grooming") == [[0, 45]]


def test_boris_binary_table_needs_to_be_named(tmp_path: Path) -> None:
    rows = [f"{step / 10:.3f},{int(5 <= step < 10)},0" for step in range(25)]
    path = written(tmp_path / "binary.csv", "\n".join(["time,grooming,rearing", *rows]) + "\n")
    _, findings = read(path)
    assert findings[0].kind == "invalid_format" and "format = 'boris_binary'" in findings[0].text
    annotations, findings = read(path, format_="boris_binary")
    assert findings == () and shown(annotations, "grooming") == [[15, 30]]
    assert shown(annotations, "rearing", UNKNOWN) == [[75, 90]]  # the table ends before the video


def test_boris_event_without_its_other_end_leaves_the_stretch_unlabelled(tmp_path: Path) -> None:
    rows = [boris_row("grooming", "STOP", 1.0), boris_row("grooming", "START", 2.0)]
    annotations, findings = read(boris(tmp_path / "obs.csv", rows))
    assert [each.kind for each in findings] == ["unpaired", "unpaired"]
    assert shown(annotations, "grooming", UNKNOWN) == [[0, 30], [60, 90]]


def test_faults_of_behaviours_that_nobody_asked_for_do_not_matter(tmp_path: Path) -> None:
    rows = [boris_row("digging", "START", 1.0), boris_row("grooming", "START", 2.0), boris_row("grooming", "STOP", 2.5)]
    annotations, findings = read(boris(tmp_path / "obs.csv", rows))
    assert [each.kind for each in findings] == ["unknown_behaviour"] and shown(annotations, "grooming") == [[60, 75]]


def test_boris_export_of_several_observations_takes_the_one_of_the_video(tmp_path: Path) -> None:
    def bout(media: str, start: float) -> list[str]:
        return [
            boris_row("grooming", kind, start + later, media, observation=media)
            for kind, later in (("START", 0.0), ("STOP", 0.5))
        ]

    annotations, findings = read(boris(tmp_path / "a.csv", [*bout("mouse1.mp4", 1.0), *bout("mouse2.mp4", 2.0)]))
    assert findings == () and shown(annotations, "grooming") == [[30, 45]]
    shifted = [row.replace(",0.0,3.0,", ",2.5,3.0,") for row in bout("mouse2.mp4", 2.0)]  # of no concern here
    annotations, findings = read(boris(tmp_path / "c.csv", [*bout("mouse1.mp4", 1.0), *shifted]))
    assert findings == () and shown(annotations, "grooming") == [[30, 45]]
    _, findings = read(boris(tmp_path / "b.csv", [*bout("mouse3.mp4", 1.0), *bout("mouse2.mp4", 2.0)]))
    assert findings[0].kind == "invalid_format" and "mouse2, mouse3" in findings[0].text


BOUTS_S = {"a": (1.0, 1.5), "b": (4.0, 5.0)}  # by the video that shows them
TWO_PLAYERS = "player #1:v/a.mp4;v/b.mp4|player #2:v/c.mp4"


@pytest.mark.parametrize(
    ("source", "events", "videos", "fits"),
    [
        (TWO_PLAYERS, "ba", "ab", True),
        (TWO_PLAYERS, "ba", "a", True),  # it is the first of them
        (TWO_PLAYERS, "ba", "b", False),
        (TWO_PLAYERS, "b", "b", False),
        ("player #1: v/a.mp4;v/b.mp4 player #2: v/c.mp4", "ba", "b", False),
        ("player #1:v/b.mp4|player #2:v/a.mp4", "b", "b", True),
        ("player #1:v/b.mp4", "b", "ab", False),  # the times begin with the second video of the recording
        ("", "ba", "b", False),  # older exports do not say it; events do
        ("", "b", "ab", True),
        ("NA", "ba", "a", True),
    ],
)
@pytest.mark.parametrize("aggregated", [False, True])
def test_times_of_a_boris_observation_count_from_its_first_video(
    tmp_path: Path, source: str, events: str, videos: str, fits: bool, aggregated: bool
) -> None:
    path = tmp_path / "obs.csv"
    if aggregated:  # sorted by behaviour, not by time
        rows = [f"obs1,{source},,grooming,STATE,{BOUTS_S[v][0]},{BOUTS_S[v][1]},{v}.mp4" for v in events]
        written(path, "\n".join([AGGREGATED.replace("id,", "id,Source,"), *rows]) + "\n")
    else:
        boris(
            path,
            [
                boris_row("grooming", kind, time, f"{v}.mp4", source=source)
                for v in sorted(events)
                for kind, time in zip(("START", "STOP"), BOUTS_S[v], strict=True)
            ],
        )
    times_ns = np.round(np.arange(300) * 1e9 / 30).astype(np.int64)
    annotations, findings = read_annotations([path], "auto", {"grooming": ("grooming",)}, times_ns, list(videos))
    assert [each.kind for each in findings] == ([] if fits else ["invalid_format"])
    assert fits or "its times count from the start of" in findings[0].text
    expected = [[round(30 * at) for at in BOUTS_S[v]] for v in "ab" if v in videos and v in events]
    assert shown(annotations, "grooming") == (expected if fits else [])


AGGREGATED = "Observation id,Subject,Behavior,Behavior type,Start (s),Stop (s),Media file name"


@pytest.mark.parametrize("aggregated", [False, True])
@pytest.mark.parametrize(
    ("media", "taken"),
    [("mouse1.mp4", True), ("/v/MOUSE1.avi;/v/b.avi", True), ("", True), ("LIVE", True), ("/v/mouse2.mp4", False)],
)
def test_boris_events_of_another_video_are_not_taken(tmp_path: Path, media: str, taken: bool, aggregated: bool) -> None:
    """One observation in an export, be it of all: those without events have no row."""
    rows = [boris_row("grooming", kind, time, media) for kind, time in (("START", 1.0), ("STOP", 1.5))]
    path = boris(tmp_path / "all.csv", rows)
    if aggregated:
        written(path, f"{AGGREGATED}\nobs1,,grooming,STATE,1.0,1.5,{media}\n")
    annotations, findings = read(path)
    assert shown(annotations, "grooming") == ([[30, 45]] if taken else [])
    assert [each.kind for each in findings] == ([] if taken else ["invalid_format"])
    assert taken or "found events of mouse2, expected events of mouse1" in findings[0].text


@pytest.mark.parametrize("header", [BORIS, AGGREGATED])
def test_a_boris_export_without_events_is_no_label(tmp_path: Path, header: str) -> None:
    annotations, findings = read(written(tmp_path / "empty.csv", header + "\n"))
    assert findings[0].kind == "invalid_format" and "found no event, expected events of mouse1" in findings[0].text
    assert not len(annotations.marks)


@pytest.mark.parametrize(
    ("row", "kind", "text"),
    [
        (boris_row("grooming", "START", 1.0, offset="2.5"), "invalid_format", "time offset of 2.5 s"),
        (boris_row("grooming", "PAUSE", 1.0), "invalid_format", "'PAUSE'"),
        (boris_row("grooming", "POINT", np.inf), "invalid_format", "'inf' in column 'time' is no time"),
        (boris_row("grooming", "POINT", -9.0), "too_many_frames", "something of -9.0 s"),
        (boris_row("grooming", "POINT", 9.0), "too_many_frames", "something of 9.0 s, the video ends at 3.0 s"),
    ],
)
def test_boris_events_that_do_not_fit(tmp_path: Path, row: str, kind: str, text: str) -> None:
    _, findings = read(boris(tmp_path / "obs.csv", [row]))
    assert any(each.kind == kind and text in each.text for each in findings)


def test_a_boris_bout_before_the_video_is_in_no_frame_and_a_short_one_in_one(tmp_path: Path) -> None:
    times = ((-5.0, -4.0), (-4.0, 0.0), (1.01, 1.02))
    rows = [
        boris_row("grooming", kind, time) for bout in times for kind, time in zip(("START", "STOP"), bout, strict=True)
    ]
    annotations, _ = read(boris(tmp_path / "obs.csv", rows))
    assert shown(annotations, "grooming") == [[31, 32]]


@pytest.mark.parametrize(
    ("times", "kind", "text"),
    [
        (("0", "1", "nan"), "invalid_format", "the times do not rise"),
        (("nan", "1", "2"), "invalid_format", "the times do not rise"),
        (("0", "1", "inf"), "invalid_format", "column 'time' has 'inf'"),
        (("0", "1", "1e30"), "invalid_format", "column 'time' has '1e30'"),
        (("0,0", "1,5", "2,0"), "invalid_format", "column 'time' has '0,0'"),
        (("0", "1", "600"), "too_many_frames", "something of 600.0 s, the video ends at 3.0 s"),
    ],
)
def test_times_that_a_binary_table_can_not_have(tmp_path: Path, times: tuple[str, ...], kind: str, text: str) -> None:
    rows = [f"{time};0;{place % 2}" for place, time in enumerate(times)]
    path = written(tmp_path / "binary.csv", "\n".join(["time;grooming;rearing", *rows]) + "\n")
    _, findings = read(path, format_="boris_binary")
    assert [each.kind for each in findings] == [kind] and text in findings[0].text


def test_texts_with_commas_do_not_part_columns(tmp_path: Path) -> None:
    header, *rows = (BORIS, boris_row("grooming", "START", 1.0), boris_row("grooming", "STOP", 1.5))
    rows = [
        row.replace("2026-01-01\t\t", "2026-01-01\tlight, dark" + "," * 40 + "\t")
        for row in (row.replace(",", "\t") for row in rows)
    ]
    annotations, findings = read(
        boris_tabs := written(tmp_path / "obs.tsv", "\n".join([header.replace(",", "\t"), *rows]))
    )
    assert findings == () and shown(annotations, "grooming") == [[30, 45]], boris_tabs
    quoted = [f'"{";" * number}",{number % 2}' for number in range(FRAMES)]
    annotations, findings = read(
        written(tmp_path / "a.csv", frame_table("note,g", quoted)), {"grooming": ("grooming",)}
    )
    assert findings == () and annotations.marks[:, 0].tolist() == [0, 1] * (FRAMES // 2)


# JAABA.


@pytest.fixture
def savemat() -> Callable[..., None]:
    scipy_io = pytest.importorskip("scipy.io", reason="training is not installed: pip install 'mbr-live[train]'")
    written: Callable[..., None] = scipy_io.savemat
    return written


def cell(*items: object) -> np.ndarray:
    made = np.empty((1, len(items)), object)
    for place, item in enumerate(items):
        made[0, place] = item
    return made


def test_jaaba_scores_count_from_one_and_end_one_past(tmp_path: Path, savemat: Callable[..., None]) -> None:
    values = np.full(FRAMES, -1.0)
    values[80:] = np.nan
    scores = {"t0s": cell([11.0, 31.0]), "t1s": cell([21.0, 32.0]), "scores": cell(values)}
    savemat(tmp_path / "scores_g.mat", {"allScores": scores, "behaviorName": "Grooming"})
    annotations, findings = read(tmp_path / "scores_g.mat")
    assert findings == () and shown(annotations, "grooming") == [[10, 20], [30, 31]]
    assert shown(annotations, "grooming", UNKNOWN) == [[80, 90]]
    assert shown(annotations, "rearing", UNKNOWN) == [[0, 90]]  # nobody scored it
    savemat(tmp_path / "scores_r.mat", {"allScores": scores, "behaviorName": "Rearing"})
    both, _ = read([tmp_path / "scores_g.mat", tmp_path / "scores_r.mat"])
    assert shown(both, "rearing") == shown(both, "grooming") == [[10, 20], [30, 31]]


def test_jaaba_labels_leave_the_rest_unlabelled(tmp_path: Path, savemat: Callable[..., None]) -> None:
    labels = {"t0s": cell([11.0, 31.0]), "t1s": cell([21.0, 41.0]), "names": cell(cell("Grooming", "None"))}
    savemat(tmp_path / "labels.mat", {"labels": labels})
    annotations, findings = read(tmp_path / "labels.mat")
    assert findings == () and shown(annotations, "grooming") == [[10, 20]]
    assert shown(annotations, "grooming", 0) == [[30, 40]] and shown(annotations, "grooming", UNKNOWN)[0] == [0, 10]
    labels["t1s"] = cell([21.0, 141.0])
    savemat(tmp_path / "longer.mat", {"labels": labels})
    assert [each.kind for each in read(tmp_path / "longer.mat")[1]] == ["too_many_frames"]


def test_a_matlab_file_of_a_format_that_is_not_read(tmp_path: Path) -> None:
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + (0x0200).to_bytes(2, "little") + b"IM"
    (tmp_path / "labels.mat").write_bytes(header.ljust(512, b"\0") + b"\x89HDF\r\n")
    (finding,) = read(tmp_path / "labels.mat")[1]
    assert finding.kind == "invalid_format" and "format 7.3" in finding.text and "-v7" in finding.text


def test_jaaba_file_of_two_animals_or_of_nothing(tmp_path: Path, savemat: Callable[..., None]) -> None:
    scores = {"t0s": cell([1.0], [2.0]), "t1s": cell([2.0], [3.0]), "scores": cell(np.zeros(9), np.zeros(9))}
    savemat(tmp_path / "two.mat", {"allScores": scores, "behaviorName": "Grooming"})
    savemat(tmp_path / "other.mat", {"trx": np.zeros(3)})
    written(tmp_path / "none.mat", "not MATLAB")
    for name, text in (("two.mat", "2 animals"), ("other.mat", "no t0s"), ("none.mat", "cannot be read")):
        _, findings = read(tmp_path / name)
        assert [each.kind for each in findings] == ["invalid_format"] and text in findings[0].text


@pytest.mark.parametrize(
    ("starts", "stops", "text"),
    [
        ([0.0, 5.0], [3.0, 8.0], "t0 0 and t1 3"),  # counted from 0: every bout would be a frame early
        ([8.0, 9.0], [3.0, 12.0], "t0 8 and t1 3"),
        ([1.5, 5.0], [3.0, 8.0], "t0 1.5 and t1 3"),
        ([np.nan, 5.0], [3.0, 8.0], "t0 nan and t1 3"),
        ([1.0, 5.0], [3.0], "t0s has 2 entries, t1s has 1"),
        ([1.0, 5.0], [3.0, FRAMES + 2.0], f"scores of {FRAMES} frames"),
    ],
)
def test_jaaba_bouts_that_cannot_be(
    tmp_path: Path, savemat: Callable[..., None], starts: list[float], stops: list[float], text: str
) -> None:
    bouts = {"t0s": cell(np.array(starts)), "t1s": cell(np.array(stops))}
    savemat(
        tmp_path / "scores.mat", {"allScores": bouts | {"scores": cell(np.zeros(FRAMES))}, "behaviorName": "Grooming"}
    )
    savemat(tmp_path / "labels.mat", {"labels": bouts | {"names": cell(cell("Grooming", "None"))}})
    for name in ("scores.mat",) if "scores" in text else ("scores.mat", "labels.mat"):
        annotations, findings = read(tmp_path / name)
        assert [each.kind for each in findings] == ["invalid_format"] and text in findings[0].text
        assert not len(annotations.marks)


def test_jaaba_labels_without_a_name_for_each(tmp_path: Path, savemat: Callable[..., None]) -> None:
    labels = {"t0s": cell([1.0, 5.0]), "t1s": cell([3.0, 8.0]), "names": cell(cell("Grooming"))}
    savemat(tmp_path / "labels.mat", {"labels": labels})
    _, findings = read(tmp_path / "labels.mat")
    assert [each.kind for each in findings] == ["invalid_format"] and "names has 1 entries" in findings[0].text


# What is wrong with label files.


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (frame_table("grooming,flying", ["0,0"]), "missing_column", "no column 'rearing' for rearing"),
        (frame_table("grooming,rearing", ["0,2"]), "invalid_format", "'2' in row 1"),
        (frame_table("grooming,rearing", ["0,x"]), "invalid_format", "Expected a number"),
        (frame_table("grooming,rearing", ["0,nan", "0,0"]), "nan_values", "NaN in 1 rows"),
        (frame_table("grooming,rearing", ["0,0"], 200), "too_many_frames", "200 frames, the video 90 frames"),
        (frame_table("grooming,rearing", ["0,0"], 30), "too_few_frames", "30 frames, the video 90 frames"),
        (frame_table("likes,shares", ["0,0"]), "invalid_format", "of no format that is known"),
        ("grooming,rearing\n", "invalid_format", "no row below the header"),
        ("source_frame,grooming\n0,0\n5,0\n", "missing_column", "no column 'rearing' for rearing"),
        ("", "invalid_format", "no header"),
    ],
)
def test_problems_are_found(tmp_path: Path, text: str, kind: str, message: str) -> None:
    annotations, findings = read(written(tmp_path / "mouse1.csv", text))
    assert [each.kind for each in findings] == [kind] and message in findings[0].text
    assert annotations.behaviours == ("grooming", "rearing") and not np.any(annotations.marks == 1)


def test_a_label_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "picture.csv").write_bytes(b"\xff\xfe\x00\x01")
    for name, text in (("none.csv", "no such label file"), ("picture.csv", "UTF-8")):
        assert text in read(tmp_path / name)[1][0].text


def test_a_missing_column_is_found_beside_files_that_have_no_header(
    tmp_path: Path, savemat: Callable[..., None]
) -> None:
    table = written(tmp_path / "mouse1.csv", frame_table("digging,x", ["0,5"]))
    scores = {"t0s": cell([11.0]), "t1s": cell([21.0]), "scores": cell(np.zeros(FRAMES))}
    savemat(tmp_path / "SCORES.MAT", {"allScores": scores, "behaviorName": "Grooming"})
    for other, kinds in (("none.csv", ["invalid_format", "missing_column"]), ("SCORES.MAT", ["missing_column"])):
        _, findings = read([tmp_path / other, table], {"digging": ("digging",), "rearing": ("rearing",)})
        assert [each.kind for each in findings if each.kind != "unknown_behaviour"] == kinds
        assert any("the labels have 'digging', 'x'" in each.text for each in findings)


def test_an_unknown_header_names_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(MbrError, match="likes, shares"):
        recognised(written(tmp_path / "a.csv", "likes,shares\n1,0\n"))


# Pure parts.


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=40))
def test_runs_put_together_again_are_the_marks(values: list[int]) -> None:
    marks = np.array(values, np.int8)
    again = np.full(len(marks), 9, np.int8)
    for value in (-1, 0, 1):
        for start, stop in runs(marks, value):
            assert start < stop and np.all(again[start:stop] == 9)
            again[start:stop] = value
    np.testing.assert_array_equal(again, marks)


changes = st.dictionaries(st.integers(0, FRAMES - 1), st.sampled_from([-1, 0, 1]), min_size=2)


@given(changes)
def test_sparse_rows_say_the_same_as_a_row_for_every_frame(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[int, int]
) -> None:
    starts = sorted(rows)
    stop = min(2 * starts[-1] - starts[-2], FRAMES)
    dense = [rows[max(start for start in starts if start <= frame)] for frame in range(starts[0], stop)]
    text = "source_frame,g\n" + "".join(f"{start},{rows[start]}\n" for start in starts)
    path = written(tmp_path_factory.mktemp("sparse") / "mouse1.csv", text)
    annotations, _ = read(path, {"grooming": ("grooming",)})
    assert annotations.marks[:, 0].tolist() == [UNKNOWN] * starts[0] + dense


@given(
    st.lists(st.tuples(st.integers(0, 80), st.integers(1, 9)), min_size=1, max_size=8),
    st.sampled_from([24, 25, 29.97, 30, 120]),
)
def test_bouts_in_seconds_come_back_as_the_frames_they_were_read_from(
    tmp_path_factory: pytest.TempPathFactory, bouts: list[tuple[int, int]], fps: float
) -> None:
    times_ns = np.round(np.arange(FRAMES) * 1e9 / fps).astype(np.int64)
    expected = np.zeros(FRAMES, np.int8)
    for start, length in bouts:
        expected[start : start + length] = 1
    rows = [
        boris_row("grooming", kind, frame / fps)
        for run in runs(expected).tolist()
        for kind, frame in zip(("START", "STOP"), run, strict=True)
    ]
    path = boris(tmp_path_factory.mktemp("boris") / "obs.csv", rows)
    annotations, findings = read(path, times_ns=times_ns)
    assert findings == ()
    np.testing.assert_array_equal(annotations.marks[:, 0], expected)


def test_labels_are_reduced_to_10_fps_by_the_sampler_and_nothing_else(tmp_path: Path) -> None:
    marks = np.random.default_rng(1).integers(0, 2, FRAMES)
    path = written(tmp_path / "mouse1.csv", frame_table("g,r", [f"{mark},0" for mark in marks]))
    state, chosen = None, []
    for number, time_ns in enumerate(TIMES_NS.tolist()):
        tick, state = sample(time_ns, state)
        chosen += [number] if tick is not None else []
    assert chosen == list(range(0, FRAMES, 3))
    np.testing.assert_array_equal(read(path)[0].at(np.array(chosen))[:, 0], marks[::3])
