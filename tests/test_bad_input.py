"""What users get wrong: one paragraph that names subject, finding, expectation and remedy, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from live import mbr_live

from mbr_live.config import DEMO_BUNDLE


def write_video(path: Path, sizes: list[tuple[int, int]], frames: int = 30) -> None:
    """An MJPEG AVI or MKV; with more than one size, pieces of each written one after the other."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuvj420p"
        noise = np.random.default_rng(1)
        at = 0
        for width, height in sizes:
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
            encoder.time_base = Fraction(1, 10)
            for _ in range(frames):
                picture = av.VideoFrame.from_ndarray(
                    noise.integers(0, 255, (height, width, 3), np.uint8), format="rgb24"
                ).reformat(format="yuvj420p")
                picture.pts, picture.time_base = at, Fraction(1, 10)
                at += 1
                for packet in encoder.encode(picture):
                    packet.stream = stream
                    container.mux(packet)


def explained(done: object, *words: str) -> None:
    """The run failed with one paragraph that contains the words, and no traceback."""
    assert done.returncode in (1, 2)  # type: ignore[attr-defined]
    said = done.stderr.strip()  # type: ignore[attr-defined]
    assert "Traceback" not in said
    (paragraph,) = [line for line in said.splitlines() if line.startswith("mbr-live: ")]
    for word in words:
        assert word in paragraph
    assert paragraph.rstrip().endswith((".", ")"))


@pytest.fixture
def not_a_video(tmp_path: Path) -> Path:
    path = tmp_path / "notes.mp4"
    path.write_text("not a video at all\n" * 100)
    return path


@pytest.fixture
def truncated(tmp_path: Path, box_video: Path) -> Path:
    """The first two thirds of an MP4 whose index stands in front, as a copy that was broken off leaves it."""
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    with av.open(str(box_video)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) * 2 // 3])
    return cut


def no_frames(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
    return path


@pytest.mark.parametrize("program", ["batch", "replay", "locate"])
def test_not_a_video(program: str, not_a_video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    explained(mbr_live(program, not_a_video, "--out", out), "notes.mp4", "not a video")
    assert not out.exists() or not list(out.iterdir())


def test_a_missing_file(tmp_path: Path) -> None:
    explained(mbr_live("batch", tmp_path / "nowhere.mp4", "--out", tmp_path / "out"), "nowhere.mp4", "no such file")


def test_no_frames(tmp_path: Path) -> None:
    out = tmp_path / "out"
    explained(mbr_live("batch", no_frames(tmp_path / "empty.avi"), "--out", out), "empty.avi")
    assert not list(out.glob("*"))


@pytest.mark.parametrize("program", ["batch", "locate"])
def test_truncated(program: str, truncated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / ("positions.csv" if program == "locate" else "")
    explained(mbr_live(program, truncated, "--out", out), "cut.mp4", "opy")
    assert not list((tmp_path / "out").glob("*"))


def test_a_size_that_changes(tmp_path: Path) -> None:
    video, out = tmp_path / "changing.mkv", tmp_path / "out"
    write_video(video, [(320, 240), (160, 120)])
    explained(mbr_live("batch", video, "--out", out), "changing.mkv", "160 x 120", "320 x 240", "frame 30")
    assert not list(out.glob("*"))


def test_a_broken_file_does_not_stop_the_others(not_a_video: Path, box_video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = mbr_live("batch", not_a_video, box_video, "--out", out)
    assert done.returncode == 1
    assert "notes.mp4" in done.stderr
    assert done.stderr.rstrip().endswith("mbr-live: 1 of 2 could not be labelled, as told above: notes.")
    assert sorted(path.name for path in out.iterdir()) == ["box.bouts.csv", "box.labels.csv", "box.run.json"]


def test_two_files_with_one_name(box_video: Path, tmp_path: Path) -> None:
    twin = tmp_path / "other" / "box.mp4"
    twin.parent.mkdir()
    shutil.copy(box_video, twin)
    explained(mbr_live("batch", box_video, twin, "--out", tmp_path / "out"), "box", "--out")


@pytest.fixture
def bundle_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle"))


def test_a_wrong_bundle(box_video: Path, tmp_path: Path) -> None:
    explained(mbr_live("batch", box_video, "--bundle", tmp_path, "--out", tmp_path / "o"), "bundle", "manifest.json")
    assert not (tmp_path / "o").exists()


def test_a_tampered_bundle(box_video: Path, bundle_copy: Path, tmp_path: Path) -> None:
    graph = bundle_copy / "temporal.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(bytes(content))
    explained(
        mbr_live("batch", box_video, "--bundle", bundle_copy, "--out", tmp_path / "o"), "temporal.onnx", "SHA-256"
    )
    assert not (tmp_path / "o").exists()


def test_a_bundle_with_changed_thresholds_is_another_bundle(bundle_copy: Path, box_video: Path, tmp_path: Path) -> None:
    """Thresholds may be changed without retraining; the run manifest then names another bundle."""
    manifest = bundle_copy / "manifest.json"
    document = json.loads(manifest.read_text())
    document["behaviours"][0]["enter"] = 0.99
    manifest.write_text(json.dumps(document))
    for bundle, out in ((DEMO_BUNDLE, "a"), (bundle_copy, "b")):
        assert mbr_live("batch", box_video, "--bundle", bundle, "--out", tmp_path / out).returncode == 0
    one, other = (json.loads((tmp_path / out / "box.run.json").read_text()) for out in "ab")
    assert one["bundle_sha256"] != other["bundle_sha256"]


def test_a_log_of_another_bundle_is_not_continued(bundle_copy: Path, box_video: Path, tmp_path: Path) -> None:
    out = tmp_path / "live"
    out.mkdir()
    labels = out / "cage.labels.csv"
    labels.write_text("frame,source_frame,time_ns,status,x_px,y_px,p_digging,digging\n0,0,0,warmup,1.0,1.0,,-1\n")
    config = live_config(tmp_path, out=str(out))
    explained(mbr_live("run", config, "--plain"), "cage.labels.csv", "digging")
    assert labels.read_text().endswith("0,0,0,warmup,1.0,1.0,,-1\n")


def live_config(folder: Path, out: str = "live", frames: str = "tcp://127.0.0.1:5701", extra: str = "") -> Path:
    path = folder / "system.toml"
    path.write_text(
        f'out = "{out}"\nbundle = "{DEMO_BUNDLE}"\n'
        f'[wire]\nframes = "{frames}"\nstatus = "tcp://127.0.0.1:5702"\n'
        f'[[camera]]\nname = "cage"\nsource = {{ kind = "simulated" }}\n{extra}\n'
    )
    return path


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def test_a_port_in_use(busy_port: int, tmp_path: Path) -> None:
    config = live_config(tmp_path, frames=f"tcp://127.0.0.1:{busy_port}")
    explained(mbr_live("infer", config), str(busy_port), "another mbr-live", "[wire]")
    assert not list((tmp_path / "live").glob("*"))
    explained(mbr_live("run", config, "--plain"), str(busy_port))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("recrd = true", ["camera 'cage'.recrd", "not a key"]),
        ("window_px = 'wide'", ["camera 'cage'.window_px", "'wide'"]),
        ("[camera.loss]\nfraction = 2", ["camera 'cage'.loss.fraction", "less than 1"]),
        ('[[camera]]\nname = "Käfig 2"\nsource = { kind = "simulated" }', ["camera 'Käfig 2'.name", "A to Z, digits"]),
        (
            '[[camera]]\nsource = { kind = "simulated", seeds = 2 }',
            ["camera 2.name: is missing", "camera 2.source.seeds"],
        ),
        ('[[camera]]\nname = "cage"\nsource = { kind = "simulated" }', ["more than one camera", "cage"]),
        ('[[camera]]\nname = "b"\nsource = { kind = "telepathy" }', ["telepathy", "simulated"]),
    ],
)
def test_mistakes_in_the_configuration(extra: str, words: list[str], tmp_path: Path) -> None:
    explained(mbr_live("run", live_config(tmp_path, extra=extra), "--plain"), "system.toml", *words)
    assert not (tmp_path / "live").exists()


def test_a_bind_beyond_this_machine_is_refused(tmp_path: Path) -> None:
    explained(mbr_live("infer", live_config(tmp_path, frames="tcp://0.0.0.0:5701")), "wire.frames", "0.0.0.0", "keys")
    explained(mbr_live("infer", live_config(tmp_path, frames="tcp://*:5701")), "wire.frames", "tcp://0.0.0.0:PORT")


def test_a_camera_that_is_not_in_the_configuration(tmp_path: Path) -> None:
    explained(mbr_live("capture", live_config(tmp_path), "cage7"), "cage7", "only cage")


def test_a_camera_that_does_not_open(tmp_path: Path) -> None:
    extra = '[[camera]]\nname = "roof"\nsource = { kind = "opencv", device = "/dev/video99", backend = "v4l2" }'
    config = live_config(tmp_path, extra=extra)
    explained(mbr_live("capture", config, "roof"), "roof", "/dev/video99", "v4l2")
    assert not list((tmp_path / "live").glob("*"))


def test_a_replay_into_a_used_folder(box_video: Path, tmp_path: Path) -> None:
    (tmp_path / "box.labels.csv").write_text("something\n")
    explained(mbr_live("replay", box_video, "--out", tmp_path, "--plain"), "box", "empty folder")
    assert (tmp_path / "box.labels.csv").read_text() == "something\n"


@pytest.mark.parametrize(
    ("name", "words"), [("Käfig 1.mp4", ["Käfig 1", "A to Z"]), ("other/box.mp4", ["box", "apart"])]
)
def test_a_replay_whose_cameras_cannot_have_the_names_of_its_files(
    name: str, words: list[str], box_video: Path, tmp_path: Path
) -> None:
    second = tmp_path / name
    second.parent.mkdir(exist_ok=True)
    shutil.copy(box_video, second)
    explained(mbr_live("replay", box_video, second, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_positions_take_the_place_of_positions_alone(box_video: Path, tmp_path: Path) -> None:
    video = Path(shutil.copy(box_video, tmp_path / "box.mp4"))
    explained(mbr_live("locate", video, "--out", video), "box.mp4", "holds no positions")
    assert video.read_bytes() == box_video.read_bytes()
    explained(mbr_live("locate", video, "--out", tmp_path), "folder", "positions.csv")
    for _ in range(2):
        assert mbr_live("locate", video, "--out", tmp_path / "positions.csv").returncode == 0


@pytest.mark.parametrize("program", ["locate", "simulate"])
def test_a_place_that_cannot_be_written(program: str, box_video: Path, tmp_path: Path) -> None:
    file = tmp_path / "taken"
    file.write_text("a file, where a folder is wanted")
    given = [box_video] if program == "locate" else ["--minutes", "0.01"]
    explained(mbr_live(program, *given, "--out", file / "deeper" / "out"), "taken", "Check the name")


def test_an_unknown_condition_leaves_no_folder(tmp_path: Path) -> None:
    explained(mbr_live("simulate", "--condition", "bax", "--out", tmp_path / "out"), "bax", "box")
    assert not (tmp_path / "out").exists()


def test_a_configuration_that_is_none(box_video: Path) -> None:
    explained(mbr_live("run", box_video), "not TOML")
