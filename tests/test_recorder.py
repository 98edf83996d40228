"""Recordings: whole files, every bit of every picture, and never at the cost of a label."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from live import labelled, mbr_live, simulated, system_config, wait_for

from mbr_live import config
from mbr_live.live.capture import Journal
from mbr_live.live.run import System
from mbr_live.sinks.label_log import read_labels
from mbr_live.sinks.run_manifest import read_run
from mbr_live.types import Frame, MbrError
from mbr_live.video.recorder import Form, Recorder
from mbr_live.video.recording import Recording
from mbr_live.video.segments import INDEX_SUFFIX, Segment, part_of, read_index, segments_of

SHORT = config.Recording(segment_minutes=1 / 60, min_free_gb=0)  # ten pictures a file


def films(ticks: Sequence[int], camera: str = "cage", side: int = 48) -> list[Frame]:
    noise = np.random.default_rng(3)
    return [
        Frame(camera, n, 3 * n, 77 + n * 100_000_000, 77, noise.integers(0, 256, (side, 64, 3), np.uint8))
        for n in ticks
    ]


def record(
    out: Path, frames: Sequence[Frame], settings: config.Recording = SHORT, form: Form = "lossless", end: bool = True
) -> Recorder:
    """As a capture process does; without `end`, as one that is killed."""
    recorder = Recorder(out, frames[0].camera, form, settings)
    with closing(Journal(out / f"{frames[0].camera}.frames.csv")) as journal:
        for frame in frames:
            journal.note(frame)
            recorder.keep(frame)
    if end:
        recorder.close()
    return recorder


def same(found: Sequence[Frame], expected: Sequence[Frame]) -> None:
    assert [frame.index for frame in found] == [frame.index for frame in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert (one.source_frame, one.time_ns, one.origin_ns) == (other.source_frame, other.time_ns, other.origin_ns)


def test_a_recording_is_lossless_and_keeps_ticks_and_times(tmp_path: Path) -> None:
    """Two processes, with a gap between them and a missing tick inside."""
    frames = films([0, 1, 2, 4, 5, 6, 20, 21, 22, 23, 24, 25])
    record(tmp_path, frames[:6])
    record(tmp_path, frames[6:])
    same(list(Recording(tmp_path / "cage.frames.csv").frames("cage")), frames)


def test_files_are_short_whole_and_in_the_index(tmp_path: Path) -> None:
    frames = films(range(35))
    record(tmp_path, frames, end=False)
    assert [path.name for path in segments_of(tmp_path, "cage")] == [
        "cage.0.mkv", "cage.10.mkv", "cage.20.mkv", "cage.30.mkv.part",
    ]  # fmt: skip
    index = read_index(tmp_path / f"cage{INDEX_SUFFIX}")
    assert [(row.file, row.first_frame, row.last_frame) for row in index] == [
        ("cage.0.mkv", 0, 9), ("cage.10.mkv", 10, 19), ("cage.20.mkv", 20, 29),
    ]  # fmt: skip
    assert all(row.bytes == (tmp_path / row.file).stat().st_size for row in index)
    same(list(Recording(tmp_path / "cage.frames.csv").frames("cage"))[:30], frames[:30])


def test_what_a_killed_process_left_is_closed_by_the_next(tmp_path: Path) -> None:
    frames = films(range(25))
    record(tmp_path, frames[:14], end=False)
    record(tmp_path, frames[14:])
    rows = read_index(tmp_path / f"cage{INDEX_SUFFIX}")
    assert [row.file for row in rows] == ["cage.0.mkv", "cage.10.mkv", "cage.14.mkv", "cage.24.mkv"]
    assert not list(tmp_path.glob("*.part"))
    found = list(Recording(tmp_path / "cage.frames.csv").frames("cage"))
    kept = {frame.index for frame in found}
    assert set(range(25)) - kept <= {12, 13}  # a kill loses the picture it was at
    assert rows[1] == Segment(
        "cage.10.mkv", 10, max(tick for tick in kept if tick < 14), frames[10].time_ns,
        frames[max(tick for tick in kept if tick < 14)].time_ns, (tmp_path / "cage.10.mkv").stat().st_size,
    )  # fmt: skip
    same(found, [frame for frame in frames if frame.index in kept])


@pytest.mark.parametrize("rows", [13, 7, 0])
def test_pictures_whose_rows_were_lost_shift_no_others(
    rows: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A power cut after which the disk has 20 pictures and fewer rows, and the process that goes on."""
    frames = films(range(45))
    journal = tmp_path / "cage.frames.csv"
    record(tmp_path, frames[:20])
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[: 1 + rows]))
    record(tmp_path, frames[30:])
    recording = Recording(journal)
    found = list(recording.frames("cage"))
    assert [frame.index for frame in found] == [*range(rows), *range(30, 45)]
    for frame in found:
        assert np.array_equal(frame.pixels, frames[frame.index].pixels)
        assert frame.time_ns == frames[frame.index].time_ns
    said = [message for message in caplog.messages if "left out" in message]
    assert sum(int(re.findall(r"last (\d+) pictures", message)[0]) for message in said) == 20 - rows
    assert [frame.index for frame in recording.frames("cage", from_frame=41)] == [*range(40, 45)]


def test_an_index_made_anew_gives_no_segment_the_rows_of_the_next(tmp_path: Path) -> None:
    frames = films(range(55))
    journal = tmp_path / "cage.frames.csv"
    record(tmp_path, frames[:20])
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:14]))
    record(tmp_path, frames[30:40])
    (tmp_path / f"cage{INDEX_SUFFIX}").unlink()
    record(tmp_path, frames[50:])
    rows = read_index(tmp_path / f"cage{INDEX_SUFFIX}")
    assert [(row.first_frame, row.last_frame) for row in rows] == [(0, 9), (10, 12), (30, 39), (50, 54)]


def test_what_lies_far_back_in_the_journal_is_not_read_again(tmp_path: Path) -> None:
    """Neither when a process that was killed goes on, nor for some pictures: a session may last for weeks."""
    frames = films(range(400))
    record(tmp_path, frames[:392], end=False)
    journal = tmp_path / "cage.frames.csv"
    rows = journal.read_text().splitlines(keepends=True)
    rows[5] = "what, reading the journal, is an error\n"
    journal.write_text("".join(rows))
    record(tmp_path, frames[392:])
    index = read_index(tmp_path / f"cage{INDEX_SUFFIX}")
    assert [row.first_frame for row in index[-3:]] == [380, 390, 392]
    same(list(Recording(journal).frames("cage", from_frame=395)), frames[392:])


@pytest.mark.parametrize("found", ["", "\0" * 200, "{whole}cage.20.mkv,2", "{whole}nonsense\n", "{header}\0\0\n"])
def test_an_index_that_is_damaged_is_made_anew(found: str, tmp_path: Path) -> None:
    """It is for convenience: a capture process, and with it the labels, must not fail for its sake."""
    frames = films(range(35))
    record(tmp_path, frames[:25])
    index = tmp_path / f"cage{INDEX_SUFFIX}"
    whole = index.read_text()
    index.write_text(found.format(whole=whole, header=whole.splitlines()[0] + "\n"))
    record(tmp_path, frames[25:])
    rows = read_index(index)
    assert index.read_text().startswith(whole)
    assert [(row.first_frame, row.last_frame) for row in rows[3:]] == [(25, 34)]
    same(list(Recording(tmp_path / "cage.frames.csv").frames("cage")), frames)


@pytest.mark.parametrize("form", ["h264", "lossless"])
def test_an_index_is_made_anew_without_reading_what_was_finished(tmp_path: Path, form: Form) -> None:
    """Of weeks of pictures, that would take hours; one that a killed process left is read."""
    record(tmp_path, films(range(26)), form=form)
    record(tmp_path, films(range(26, 30)), form=form, end=False)
    index = tmp_path / f"cage{INDEX_SUFFIX}"
    record(tmp_path, films(range(30, 31)), form=form)  # takes up what was left
    before = read_index(index)
    whole = (tmp_path / "cage.10.mkv").read_bytes()
    (tmp_path / "cage.10.mkv").write_bytes(whole[: len(whole) // 2])
    index.unlink()
    Recorder(tmp_path, "cage", form, SHORT).close()
    found = read_index(index)
    assert [row.first_frame for row in found] == [0, 10, 20, 26, 30]
    assert [(row.file, row.last_frame) for row in found] == [(row.file, row.last_frame) for row in before]


def test_a_segment_that_is_damaged_within_shifts_no_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the disk lost is missing; what it kept is shown at its own time."""
    frames = films(range(120))
    record(tmp_path, frames, SHORT.model_copy(update={"segment_minutes": 1.0}))
    file = tmp_path / "cage.0.mkv"
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes(20_000) + whole[middle + 20_000 :])
    found = list(Recording(tmp_path / "cage.frames.csv").frames("cage"))
    same(found[:50], frames[:50])
    same([frame for frame in found if frame.index >= 70], frames[70:])  # from the next picture that is whole on
    assert len(found) < 120 and any("damaged" in message for message in caplog.messages)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.99])
def test_a_segment_that_was_cut_off_ends_where_it_ends(share: float, tmp_path: Path) -> None:
    frames = films(range(10))
    record(tmp_path, frames, end=False)
    part = part_of(tmp_path / "cage.0.mkv")
    part.write_bytes(part.read_bytes()[: int(share * part.stat().st_size)])
    closing_ = Recorder(tmp_path, "cage", "lossless", SHORT)
    closing_.close()
    (row,) = read_index(tmp_path / f"cage{INDEX_SUFFIX}") or [None]
    if row is None:
        assert share < 0.1 and not segments_of(tmp_path, "cage")
        return
    found = list(Recording(tmp_path / "cage.frames.csv").frames("cage"))
    assert len(found) == row.last_frame + 1 <= 10 * share + 1
    same(found, frames[: len(found)])


def test_a_segment_that_was_cut_off_as_it_began_holds_nothing(tmp_path: Path) -> None:
    """At whatever byte of its header; what was recorded before can be labelled."""
    frames = films(range(11))
    record(tmp_path, frames, end=False)
    part = part_of(tmp_path / "cage.10.mkv")
    header = part.read_bytes()
    for size in range(0, len(header) + 1, 20):
        part.write_bytes(header[:size])
        same(list(Recording(tmp_path / "cage.frames.csv").frames("cage")), frames[:10])
    (tmp_path / "cage.0.mkv").unlink()
    with pytest.raises(MbrError, match="no pictures beside it"):
        Recording(tmp_path / "cage.frames.csv")


@pytest.mark.parametrize("size", [(49, 65), (48, 65), (49, 64)])
@pytest.mark.parametrize("form", ["h264", "lossless"])
def test_pictures_of_odd_sides_are_recorded(tmp_path: Path, form: Form, size: tuple[int, int]) -> None:
    even = np.kron(np.random.default_rng(3).integers(0, 256, (7, 9, 1), np.uint8), np.ones((8, 8, 3), np.uint8))
    frames = [Frame("cage", n, n, n * 100_000_000, 0, even[: size[0], : size[1]]) for n in range(5)]
    recorder = record(tmp_path, frames, form=form)
    assert (recorder.recorded, recorder.unrecorded) == (5, 0)
    found = list(Recording(tmp_path / "cage.frames.csv").frames("cage"))
    assert len(found) == 5
    height, width = size if form == "lossless" else (48, 64)
    for frame in found:
        assert frame.pixels.shape == (height, width, 3)
        off = np.abs(frame.pixels.astype(int) - frames[0].pixels[:height, :width]).mean()
        assert off == 0 if form == "lossless" else off < 5


def test_h264_is_small_and_close(tmp_path: Path) -> None:
    """Of a smooth picture; noise is what it throws away."""
    ramp = np.broadcast_to(np.linspace(40, 200, 64, dtype=np.uint8)[None, :, None], (48, 64, 3))
    frames = [Frame("cage", n, n, n * 100_000_000, 0, np.ascontiguousarray(ramp)) for n in range(10)]
    record(tmp_path, frames, form="h264")
    found = list(Recording(tmp_path / "cage.frames.csv").frames("cage"))
    assert len(found) == 10
    assert all(np.abs(one.pixels.astype(int) - ramp.astype(int)).mean() < 4 for one in found)


def test_the_oldest_files_go_by_size_and_by_age(tmp_path: Path) -> None:
    frames = films(range(50))
    record(tmp_path, frames[:40])
    size = (tmp_path / "cage.0.mkv").stat().st_size
    record(tmp_path, frames[40:], SHORT.model_copy(update={"keep_gb": 2.5 * size / 1e9}))
    assert [path.name for path in segments_of(tmp_path, "cage")] == ["cage.20.mkv", "cage.30.mkv", "cage.40.mkv"]
    for path in segments_of(tmp_path, "cage"):
        os.utime(path, (0, 0))  # the date was set: the time of the session counts
    record(tmp_path, films(range(50, 52)), SHORT.model_copy(update={"keep_days": 1.5 / 86400}))
    assert [row.file for row in read_index(tmp_path / f"cage{INDEX_SUFFIX}")] == [
        "cage.30.mkv", "cage.40.mkv", "cage.50.mkv",
    ]  # fmt: skip
    same(list(Recording(tmp_path / "cage.frames.csv").frames("cage"))[:20], frames[30:])


def test_the_newest_file_is_kept_though_it_is_larger_than_what_is_kept(tmp_path: Path) -> None:
    """Else no clip could be cut from it, and nothing but the file that is being written would ever be there."""
    record(tmp_path, films(range(35)), SHORT.model_copy(update={"keep_gb": 1e-6}), end=False)
    assert [row.file for row in read_index(tmp_path / f"cage{INDEX_SUFFIX}")] == ["cage.20.mkv"]
    assert [path.name for path in segments_of(tmp_path, "cage")] == ["cage.20.mkv", "cage.30.mkv.part"]


def test_cameras_whose_names_begin_alike_do_not_meet(tmp_path: Path) -> None:
    record(tmp_path, films(range(5)))
    record(tmp_path, films(range(5), camera="cage.1"))
    assert [path.name for path in segments_of(tmp_path, "cage")] == ["cage.0.mkv"]
    assert [path.name for path in segments_of(tmp_path, "cage.1")] == ["cage.1.0.mkv"]


def test_off_touches_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "cage", "off", SHORT)
    recorder.keep(films([0])[0])
    recorder.close()
    assert not list(tmp_path.iterdir())


def test_with_too_little_room_recording_stops_and_goes_on_later(small_disk: Path) -> None:
    """In one process, with a disk that fills up and has room again; a clock of its own, so that nobody waits."""
    now_s = 0.0
    settings = config.Recording(segment_minutes=1, min_free_gb=0.015)
    recorder = Recorder(small_disk, "cage", "lossless", settings, clock_s=lambda: now_s)
    ballast = small_disk / "ballast"
    with closing(Journal(small_disk / "cage.frames.csv")) as journal:
        for frame in films(range(60)):
            now_s += 2.0
            if frame.index in (20, 40):
                ballast.write_bytes(bytes(30_000_000)) if frame.index == 20 else ballast.unlink()
            journal.note(frame)
            recorder.keep(frame)
    recorder.close()
    assert (recorder.recorded, recorder.unrecorded) == (40, 20)
    ticks = [frame.index for frame in Recording(small_disk / "cage.frames.csv").frames("cage")]
    assert ticks == [*range(20), *range(40, 60)]


def test_files_that_grow_too_old_make_room_where_there_was_none(small_disk: Path) -> None:
    now_s = 0.0
    settings = config.Recording(segment_minutes=1 / 60, min_free_gb=0.015, keep_days=7)
    recorder = Recorder(small_disk, "cage", "lossless", settings, clock_s=lambda: now_s)
    with closing(Journal(small_disk / "cage.frames.csv")) as journal:
        for frame in films(range(60), side=2400):  # 14 MB of 40 in the first thirty
            now_s += 10.0
            if frame.index == 30:
                (small_disk / "ballast").write_bytes(bytes(15_000_000))
            if frame.index >= 40:
                frame = replace(frame, time_ns=frame.time_ns + 8 * 86400 * 10**9)
            journal.note(frame)
            recorder.keep(frame)
    recorder.close()
    ticks = [frame.index for frame in Recording(small_disk / "cage.frames.csv").frames("cage")]
    assert ticks and ticks == list(range(ticks[0], 60)) and 40 <= ticks[0] <= 46  # it looks once a minute
    assert (recorder.recorded, recorder.unrecorded) == (30 + len(ticks), ticks[0] - 30)


def test_a_disk_that_refuses_a_picture_costs_that_picture(small_disk: Path) -> None:
    """Without a reserve the disk is filled to the last byte."""
    now_s = 0.0
    settings = config.Recording(segment_minutes=1, min_free_gb=0)
    recorder = Recorder(small_disk, "cage", "lossless", settings, clock_s=lambda: now_s)
    with closing(Journal(small_disk / "cage.frames.csv")) as journal:
        for frame in films(range(120), side=2400):
            journal.note(frame)
            recorder.keep(frame)
            now_s += 1.0
    recorder.close()
    assert recorder.recorded > 20 and recorder.unrecorded > 20
    for segment in segments_of(small_disk, "cage"):
        segment.rename(segment)  # still there
    found = [frame.index for frame in Recording(small_disk / "cage.frames.csv").frames("cage")]
    assert found == sorted(set(found)) and len(found) >= 20


def test_labels_go_on_when_the_disk_has_no_room_for_pictures(small_disk: Path, tmp_path: Path) -> None:
    """Real processes: recording gives way, every frame is labelled, and the manifest says what was not recorded."""
    plain = system_config(small_disk / "live", simulated("cage", record="lossless"))
    settings = config.Recording(segment_minutes=0.02, min_free_gb=0.02)
    (small_disk / "ballast").write_bytes(bytes(15_000_000))

    def unrecorded() -> bool:
        return labelled(plain.out, "cage") > 40 and shutil.disk_usage(small_disk).free < 20_000_000

    with System(plain.model_copy(update={"recording": settings})) as system:
        wait_for(unrecorded, "the reserve to be reached", system)
        before = labelled(plain.out, "cage")
        wait_for(lambda: labelled(plain.out, "cage") > before + 40, "labels to go on", system)
    run = read_run(plain.out / "cage.run.json")
    assert run.capture["unrecorded"] > 5 and run.capture["recorded"] > 0
    rows = list(read_labels(plain.out / "cage.labels.csv"))
    assert [row.index for row in rows] == list(range(len(rows)))
    assert {row.index for row in rows if row.status != "gap"} == set(ticks(plain.out))  # all that was sampled


def ticks(out: Path) -> list[int]:
    return [int(line.split(",")[0]) for line in (out / "cage.frames.csv").read_text().splitlines()[1:]]


def test_a_lossless_recording_in_many_files_gives_the_same_labels(tmp_path: Path) -> None:
    live, offline = tmp_path / "live", tmp_path / "offline"
    plain = system_config(live, simulated("cage", record="lossless"))
    with System(plain.model_copy(update={"recording": config.Recording(segment_minutes=0.02)})) as system:
        wait_for(lambda: len(segments_of(live, "cage")) > 3 and labelled(live, "cage", "ok") > 20, "files", system)
    done = mbr_live("batch", live / "cage.frames.csv", "--out", offline, "--drops", live / "cage.run.json")
    assert done.returncode == 0, done.stderr
    assert (live / "cage.labels.csv").read_bytes() == (offline / "cage.labels.csv").read_bytes()
