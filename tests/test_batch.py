"""Recorded files on request: what `batch` refuses before it begins, and what it never touches."""

from __future__ import annotations

import shutil
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import mbr_live

from mbr_live import locate_program
from mbr_live.batch.batch import Job, run_job
from mbr_live.batch.program import batch_program
from mbr_live.bundle import Bundle
from mbr_live.config import DEMO_BUNDLE
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.sinks.run_manifest import RunManifest, read_run, write_run
from mbr_live.sinks.session_log import SessionLog
from mbr_live.types import TICK_NS, Decision, MbrError, SourceFrame, Status
from mbr_live.video.sources import VideoFile


def live_session(out: Path, bundle: Bundle) -> SessionLog:
    """A session of the camera `box` that has written 20 rows, and goes on."""
    log = SessionLog.resume(out / "box.labels.csv", out / "box.bouts.csv", bundle.manifest)
    unknown = (-1,) * len(bundle.manifest.behaviours)
    for index in range(20):
        log.write(Decision("box", index, index, index * TICK_NS, Status.WARMUP, 1.0, 2.0, (), unknown))
    run = RunManifest(
        recording="box", mode="live", exit_status="running", started="", bundle="b", bundle_sha256="", engine="e",
        versions={}, sources=[],
    )  # fmt: skip
    write_run(out / "box.run.json", run)
    return log


def test_labels_of_a_live_session_are_not_replaced(
    box_video: Path, tmp_path: Path, demo_bundle: Bundle, engine: OpenVinoEngine
) -> None:
    log = live_session(tmp_path, demo_bundle)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(MbrError, match=r"box\.labels\.csv: these are the labels of a live session.*another --out"):
        run_job(Job("box", (box_video,)), tmp_path, demo_bundle, engine)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    log.close()


def test_nor_are_those_of_one_that_began_meanwhile(
    box_video: Path, tmp_path: Path, demo_bundle: Bundle, engine: OpenVinoEngine
) -> None:
    def progress(done: int) -> None:
        if done == 50:
            live_session(tmp_path, demo_bundle).close()

    with pytest.raises(MbrError, match="these are the labels of a live session"):
        run_job(Job("box", (box_video,)), tmp_path, demo_bundle, engine, progress=progress)
    assert len((tmp_path / "box.labels.csv").read_text().splitlines()) == 21
    assert read_run(tmp_path / "box.run.json").mode == "live"
    assert not list(tmp_path.glob("*.part"))


def test_results_that_another_process_is_at_are_left_to_it(
    box_video: Path, tmp_path: Path, demo_bundle: Bundle, engine: OpenVinoEngine
) -> None:
    refused: list[subprocess.CompletedProcess[str]] = []

    def progress(done: int) -> None:
        if done == 50:
            refused.append(mbr_live("batch", box_video, "--out", tmp_path, "--window-px", "40"))

    run = run_job(Job("box", (box_video,)), tmp_path, demo_bundle, engine, progress=progress)
    assert refused[0].returncode == 1 and "another process is at the results" in refused[0].stderr
    assert sum(run.rows.values()) == 120 == len((tmp_path / "box.labels.csv").read_text().splitlines()) - 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box.bouts.csv", "box.labels.csv", "box.run.json"]


def test_positions_that_another_process_is_writing_are_left_to_it(
    box_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "positions.csv"

    class Meddled:
        """A recording in whose middle somebody asks for the same positions."""

        name, declared_s = "box", None

        def __iter__(self) -> Iterator[SourceFrame]:
            for frame in VideoFile(box_video):
                if frame.number == 50:
                    refused = mbr_live("locate", box_video, "--out", out)
                    assert refused.returncode == 2 and "another process is writing these" in refused.stderr
                yield frame

    monkeypatch.setattr(locate_program, "VideoFile", lambda path: Meddled())
    locate_program.locate_program(box_video, out, stills=False)
    assert len(out.read_text().splitlines()) == 121
    assert list(tmp_path.iterdir()) == [out]


def test_labels_of_an_earlier_batch_are(
    box_video: Path, tmp_path: Path, demo_bundle: Bundle, engine: OpenVinoEngine
) -> None:
    first, second = (run_job(Job("box", (box_video,)), tmp_path, demo_bundle, engine) for _ in range(2))
    assert first.started < second.started == read_run(tmp_path / "box.run.json").started


def test_labels_of_another_recording_of_the_same_name_are_not(
    box_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cage in ("cage1", "cage2"):
        (tmp_path / cage).mkdir()
        shutil.copy(box_video, tmp_path / cage / "trial.mp4")
    out = tmp_path / "out"
    for _ in range(2):
        monkeypatch.chdir(tmp_path / "cage1")
        assert batch_program([Path("trial.mp4")], out, DEMO_BUNDLE) == 0
        before = (out / "trial.run.json").read_bytes()
        monkeypatch.chdir(tmp_path / "cage2")
        with pytest.raises(
            MbrError, match=r"trial\.labels\.csv: .*cage1/trial\.mp4, not of /.*cage2/trial\.mp4\. Give"
        ):
            batch_program([Path("trial.mp4")], out, DEMO_BUNDLE)
        assert (out / "trial.run.json").read_bytes() == before


def test_what_is_done_is_left_out_if_wanted(
    box_video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], demo_bundle: Bundle
) -> None:
    out, videos = tmp_path / "out", [Path(shutil.copy(box_video, tmp_path / name)) for name in ("a.mp4", "b.mp4")]

    def labelled_again(**options: Any) -> set[str]:
        before = {path.name: path.read_bytes() for path in out.glob("*.run.json")}
        assert batch_program(videos, out, DEMO_BUNDLE, skip_done=True, at_once=1, **options) == 0
        after = {path.name: path.read_bytes() for path in out.glob("*.run.json")}
        return {name.removesuffix(".run.json") for name in after if after[name] != before.get(name)}

    assert batch_program(videos[:1], out, DEMO_BUNDLE) == 0
    assert labelled_again() == {"b"}
    assert "1 of 2 were labelled before" in capsys.readouterr().out
    assert labelled_again() == set()
    window_px = read_run(out / "a.run.json").window_px
    assert window_px is not None and labelled_again(window_px=window_px) == set()
    assert labelled_again(window_px=window_px + 2) == {"a", "b"}
    videos[1].touch()
    assert labelled_again() == {"b"}
    other = read_run(out / "a.run.json")
    write_run(out / "a.run.json", other.model_copy(update={"bundle_sha256": "another"}))
    assert labelled_again() == {"a"}


@pytest.mark.parametrize("name", ["a file", "a file/below", "/proc/results"])
@pytest.mark.parametrize("files", [1, 2])
def test_a_folder_that_cannot_be_written_is_told_before_any_work(
    name: str, files: int, box_video: Path, tmp_path: Path
) -> None:
    videos = [tmp_path / f"{n}.mp4" for n in range(files)]
    for video in videos:
        video.symlink_to(box_video)
    (tmp_path / "a file").touch()
    with pytest.raises(MbrError, match=r"results cannot be written there \(.*another folder"):
        batch_program(videos, tmp_path / name, DEMO_BUNDLE)
    assert (tmp_path / "a file").read_bytes() == b""


def test_results_that_find_no_room_are_told_and_leave_nothing(
    box_video: Path, small_disk: Path, demo_bundle: Bundle, engine: OpenVinoEngine
) -> None:
    ballast = small_disk / "ballast"

    def progress(done: int) -> None:
        if done == 120:
            ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free))

    with pytest.raises(MbrError, match="No space left on device"):
        run_job(Job("box", (box_video,)), small_disk, demo_bundle, engine, progress=progress)
    assert list(small_disk.iterdir()) == [ballast]


@pytest.mark.parametrize("join", ["", " ", ".", "..", ".hidden", "../up", "a/b", "a/", "/tmp/a"])
def test_joined_recordings_have_a_name_and_no_path(join: str, box_video: Path, tmp_path: Path) -> None:
    with pytest.raises(MbrError, match=r"--join .* cannot name the results\. Give a name"):
        batch_program([box_video], tmp_path / "out", DEMO_BUNDLE, join=join)
    assert not list(tmp_path.iterdir())


def test_a_crop_window_of_any_size_is_refused(box_video: Path, tmp_path: Path) -> None:
    done = mbr_live("batch", box_video, "--out", tmp_path, "--window-px", "100000")
    assert done.returncode == 2 and "--window-px" in done.stderr and "4096" in done.stderr


def test_a_folder_is_told_from_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MbrError, match=r"this is a folder; it holds no file\. Give the recordings in it"):
        batch_program([tmp_path], tmp_path / "out", DEMO_BUNDLE)
    for name in ("b.mp4", "a.mp4"):
        (tmp_path / name).touch()
    with pytest.raises(MbrError, match=r"it holds a\.mp4 and 1 more\. Give .*/\*\.mp4"):
        batch_program([tmp_path], tmp_path / "out", DEMO_BUNDLE)


def test_a_file_of_sound_alone_is_told_as_such(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "calls.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16_000))
    with pytest.raises(MbrError, match=r"calls\.wav: the file has no video stream, only audio\. Give the file that"):
        VideoFile(tmp_path / "calls.wav")
