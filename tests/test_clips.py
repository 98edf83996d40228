"""Clips of bouts show the bout, and what came before and after."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
from live import mbr_live, played, simulated, system_config, wait_for

from mbr_live.config import Recording as Settings
from mbr_live.live.run import System
from mbr_live.sinks.bouts import BOUTS_HEADER
from mbr_live.sinks.run_manifest import RunManifest, read_run, write_run
from mbr_live.types import TICK_NS, Frame
from mbr_live.video import clips_program
from mbr_live.video.clips import Clip, clips_of, cut
from mbr_live.video.clips_program import Follower
from mbr_live.video.journal import JOURNAL_HEADER
from mbr_live.video.recorder import Recorder
from mbr_live.video.recording import Recording
from mbr_live.video.sources import VideoFile, sampled


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def recorded(folder: Path, first: int, end: int, exit_status: Literal["running", "complete"]) -> None:
    """A session of `end` frames, recorded from `first` on into files of five seconds; grey levels tell frames apart."""
    recorder = Recorder(folder, "cage", "lossless", Settings(min_free_gb=0, segment_minutes=1 / 12))
    journal = "".join(f"{tick},{tick},{tick * TICK_NS}\n" for tick in range(end))
    (folder / "cage.frames.csv").write_text(f"{JOURNAL_HEADER}\n{journal}")
    for tick in range(first, end):
        recorder.keep(Frame("cage", tick, tick, tick * TICK_NS, 0, np.full((32, 32, 3), tick % 200, np.uint8)))
    recorder.close()
    run = RunManifest(
        recording="cage", mode="live", exit_status=exit_status, started="", bundle="", bundle_sha256="", engine="",
        versions={}, sources=[],
    )  # fmt: skip
    write_run(folder / "cage.run.json", run)


def with_bouts(folder: Path, name: str, *bouts: tuple[str, int, int]) -> None:
    """A bout log of our own, so that the test does not depend on what a network says."""
    rows = [
        f"{what},{start},{stop},{start / 10:.1f},{(stop + 1) / 10:.1f},{(stop + 1 - start) / 10:.1f},0.9,1"
        for what, start, stop in bouts
    ]
    (folder / f"{name}.bouts.csv").write_text("\n".join([BOUTS_HEADER, *rows]) + "\n")


def test_clips_of_a_file_show_the_frames_around_each_bout(box_video: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    assert mbr_live("batch", box_video, "--out", labels).returncode == 0
    with_bouts(labels, "box", ("grooming", 40, 59), ("rearing", 50, 52), ("grooming", 5, 9), ("rearing", 110, 119))
    done = mbr_live("clips", labels, "--pre-s", "1", "--post-s", "2")
    assert done.returncode == 0 and "4 new clips" in done.stdout, done.stderr
    truth = {frame.index: frame.pixels for frame in sampled(VideoFile(box_video), "box")}
    spans = {"grooming.40": (30, 79), "rearing.50": (40, 72), "grooming.5": (0, 29), "rearing.110": (100, 119)}
    assert {path.name for path in (labels / "clips").iterdir()} == {f"box.{name}.mp4" for name in spans}
    for name, (first, last) in spans.items():
        shown = pictures(labels / "clips" / f"box.{name}.mp4")
        assert len(shown) == last - first + 1
        for picture, tick in zip(shown, range(first, last + 1), strict=True):
            assert np.abs(picture.astype(int) - truth[tick].astype(int)).mean() < 6
    done = mbr_live("clips", labels, "--pre-s", "1", "--post-s", "2")
    assert "0 new clips" in done.stdout
    done = mbr_live("clips", labels, "--behaviour", "grooming", "--out", tmp_path / "g")
    assert "2 new clips" in done.stdout
    done = mbr_live("clips", labels, "--behaviour", "groming")
    assert done.returncode == 2 and "groming" in done.stderr and "grooming, rearing" in done.stderr
    assert mbr_live("clips", tmp_path / "g").returncode == 2


def test_a_running_session_gives_clips_of_what_is_closed(box_video: Path, tmp_path: Path) -> None:
    live = system_config(tmp_path / "live", played(box_video, speed=2))
    camera = live.camera[0].model_copy(update={"record": "lossless"})
    settings = Settings(segment_minutes=1 / 30, clips=("grooming",), pre_s=0.5, post_s=0.5)
    with System(live.model_copy(update={"camera": (camera,), "recording": settings})) as system:
        wait_for(lambda: system.ended, "the end of the file", system)
    found = sorted(path.name for path in (live.out / "clips").glob("*")) if (live.out / "clips").exists() else []
    expected = [clip.file_name for clip in clips_of(live.out, "box", ["grooming"], 0.5, 0.5)]
    assert found == sorted(expected)
    # As while it ran: what lies beyond the last closed file waits.
    run = read_run(live.out / "box.run.json")
    write_run(live.out / "box.run.json", run.model_copy(update={"exit_status": "running"}))
    clips = [Clip("box", "x", 3, 0, 10), Clip("box", "x", 30, 25, 10_000)]
    assert [path.name for path in cut(live.out, clips, tmp_path / "some", set())] == ["box.x.3.mp4"]
    # A camera that was not recorded does not keep those after it from their clips.
    write_run(live.out / "box.run.json", run)
    write_run(live.out / "attic.run.json", run.model_copy(update={"recording": "attic"}))
    for kind in ("labels", "bouts"):
        shutil.copy(live.out / f"box.{kind}.csv", live.out / f"attic.{kind}.csv")
    done = mbr_live("clips", live.out, "--behaviour", "grooming", "--out", tmp_path / "all")
    assert done.returncode == 0 and "attic was not recorded" in done.stdout, done.stderr
    assert {path.name.split(".")[0] for path in (tmp_path / "all").iterdir()} == {"box"}
    (live.out / "box.run.json").unlink()
    done = mbr_live("clips", live.out)
    assert done.returncode == 2 and "no pictures" in done.stderr


def test_only_files_that_hold_pictures_of_new_clips_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bout that found no room, one before the first picture in part, two in one file, one far behind."""
    recorded(tmp_path, 100, 600, "running")
    read: list[int] = []
    frames = Recording.frames

    def counted(self: Recording, camera: str, **more: Any) -> Iterator[Frame]:
        for frame in frames(self, camera, **more):
            read.append(frame.index)
            yield frame

    monkeypatch.setattr(Recording, "frames", counted)
    with_bouts(tmp_path, "cage", *(("x", start, start + 9) for start in (40, 85, 115, 120, 520)))
    for made, ticks in ((["85", "115", "120", "520"], [*range(100, 141), *range(500, 541)]), ([], [])):
        clips = clips_of(tmp_path, "cage", (), pre_s=1, post_s=1)
        assert [path.name for path in cut(tmp_path, clips, tmp_path / "clips", set())] == [
            f"cage.x.{name}.mp4" for name in made
        ]
        assert read == ticks
        read.clear()
    assert len(pictures(tmp_path / "clips" / "cage.x.85.mp4")) == 5  # 100 to 104
    shown = pictures(tmp_path / "clips" / "cage.x.520.mp4")
    assert np.allclose([picture.mean() for picture in shown], [tick % 200 for tick in range(510, 540)], atol=4)


def test_a_system_in_which_nothing_is_new_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bouts of weeks are gone through when there is one more, or a file is closed, and not every few seconds."""
    settings = Settings(min_free_gb=0, segment_minutes=1 / 12, clips=("grooming",), pre_s=1, post_s=1)
    config = system_config(tmp_path, simulated("cage", record="lossless"), simulated("dark"))
    follower = Follower(config.model_copy(update={"recording": settings}))
    asked: list[str] = []

    def counted(folder: Path, recording: str, *more: Any) -> list[Clip]:
        asked.append(recording)
        return clips_of(folder, recording, *more)

    monkeypatch.setattr(clips_program, "clips_of", counted)
    follower.cut_new()  # before the first label
    recorder = Recorder(tmp_path, "cage", "lossless", settings)
    journal = "".join(f"{tick},{tick},{tick * TICK_NS}\n" for tick in range(200))
    (tmp_path / "cage.frames.csv").write_text(f"{JOURNAL_HEADER}\n{journal}")
    run = RunManifest(
        recording="cage", mode="live", exit_status="running", started="", bundle="", bundle_sha256="", engine="",
        versions={}, sources=[],
    )  # fmt: skip
    write_run(tmp_path / "cage.run.json", run)
    made = []
    for tick in range(200):
        if tick in (20, 70, 120, 199):
            with_bouts(tmp_path, "cage", *(("grooming", each, each + 4) for each in (10, 60, 110, 190) if each < tick))
            follower.cut_new()
            follower.cut_new()
            folder = tmp_path / "clips"
            made.append(len(list(folder.iterdir())) if folder.exists() else 0)
        recorder.keep(Frame("cage", tick, tick, tick * TICK_NS, 0, np.full((32, 32, 3), tick, np.uint8)))
    recorder.close()
    write_run(tmp_path / "cage.run.json", run.model_copy(update={"exit_status": "complete"}))
    follower.cut_new()
    assert (made, len(list((tmp_path / "clips").iterdir())), asked) == ([0, 1, 2, 3], 4, ["cage"] * 5)


@pytest.mark.parametrize("found", ["nothing", "no header", "no end"])
def test_a_damaged_file_costs_its_own_clips_alone(found: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said, and the clips of all other files are cut, by the command as by a running system, which reads it once."""
    recorded(tmp_path, 0, 200, "complete")
    with_bouts(tmp_path, "cage", *(("grooming", start, start + 4) for start in (20, 60, 120, 170)))
    (tmp_path / "cage.labels.csv").write_text("frame,source_frame,time_ns,status,x_px,y_px,p_grooming,grooming\n")
    file = tmp_path / "cage.50.mkv"
    whole = file.read_bytes()
    file.write_bytes({"nothing": b"", "no header": bytes(200) + whole[200:], "no end": whole[: len(whole) // 2]}[found])
    done = mbr_live("clips", tmp_path, "--pre-s", "1", "--post-s", "1")
    assert done.returncode == 0, done.stderr
    made = {path.name.split(".")[2] for path in (tmp_path / "clips").iterdir()}
    if found == "no end":  # what is there is shown
        assert made == {"20", "60", "120", "170"} and "cage.50.mkv" not in done.stderr
        return
    assert made == {"20", "120", "170"} and "cage.50.mkv" in done.stderr
    damaged: set[Path] = set()
    wanted = clips_of(tmp_path, "cage", (), 1, 1)
    for _ in range(3):
        assert not list(cut(tmp_path, wanted, tmp_path / "clips", damaged))
    assert [message for message in caplog.messages if "cage.50.mkv" in message] and len(caplog.messages) == 1
