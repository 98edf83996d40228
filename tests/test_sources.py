"""Files and recordings deliver every frame with its exact time."""

from __future__ import annotations

from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mbr_live.live.capture import Journal
from mbr_live.types import Frame, Image, MbrError
from mbr_live.video.journal import journal_ends, read_journal
from mbr_live.video.sources import JoinedFiles, VideoFile, pictures_at, sampled


def test_a_file_delivers_every_frame_at_its_presentation_time(clutter_video: Path) -> None:
    frames = [(frame.number, frame.time_ns) for frame in VideoFile(clutter_video)]
    rate = Fraction(30000, 1001)
    assert frames == [(n, round(n / rate * 1_000_000_000)) for n in range(len(frames))]
    assert len(frames) == round(12 * rate)


def test_sampled_frames_of_29_97_fps_do_not_drift(clutter_video: Path) -> None:
    for frame in sampled(VideoFile(clutter_video), "c"):
        assert abs(frame.time_ns - frame.index * 100_000_000) <= 17_000_000


def test_variable_frame_rate(tmp_path: Path) -> None:
    """Times come from the file, not from counting."""
    times_ms = [0, 33, 70, 190, 210, 300, 333, 610, 700]
    path = tmp_path / "vfr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in times_ms:
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), time_ms % 256, np.uint8), format="rgb24")
            picture.pts, picture.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    assert [frame.time_ns // 1_000_000 for frame in VideoFile(path)] == times_ms
    assert [(f.index, f.source_frame) for f in sampled(VideoFile(path), "c")] == [
        (0, 0), (2, 3), (3, 5), (6, 7), (7, 8),
    ]  # fmt: skip


def film(path: Path, codec: str = "libx264", frames: int = 100, start: int = 0, **options: str) -> Path:
    """A bar that moves, at 25 fps; the first frame is at `start` frames of the file's own time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        stream.options = {name.replace("_", "-"): value for name, value in options.items()}
        for n in range(frames):
            pixels = np.full((48, 64, 3), 60, np.uint8)
            pixels[:, n % 48 : n % 48 + 8] = 200
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = start + n, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["late.mkv", "late.avi", "late.wmv", "late.mp4", "late.ts", "late.flv"])
def test_times_count_from_the_first_frame_wherever_it_lies(name: str, tmp_path: Path) -> None:
    """As in files of a segment muxer that keeps its times: whole, though their headers say 254 s of some."""
    path = film(tmp_path / name, "msmpeg4v2" if name.endswith("wmv") else "libx264", start=250 * 25, bf="0")
    video = VideoFile(path)
    times_ns = [frame.time_ns for frame in video]
    assert len(times_ns) == 100 and times_ns[0] == 0
    assert video.times_ns().tolist() == times_ns
    assert name.endswith("avi") or video.declared_s == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("start", [0, 250 * 25])
def test_a_file_that_is_cut_off_is_refused_wherever_it_begins(start: int, tmp_path: Path) -> None:
    path = film(tmp_path / "whole.mkv", start=start)
    content = path.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 3])
    with pytest.raises(MbrError, match=r"cut\.mkv: the file promises frames to .* It is cut off"):
        list(VideoFile(tmp_path / "cut.mkv"))


@pytest.mark.parametrize(("degrees", "bar"), [(0, "left"), (90, "bottom"), (180, "right"), (270, "top")])
def test_pictures_are_turned_as_players_show_them(degrees: int, bar: str, tmp_path: Path) -> None:
    """A bar at the left edge, and a file that says by how much to turn it anticlockwise."""
    flat, path = film(tmp_path / "flat.mp4", frames=1), tmp_path / "turned.mp4"
    with av.open(str(flat)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    (frame,) = VideoFile(path)
    bright = frame.picture()[:, :, 0] > 130
    assert bright.shape == ((48, 64) if degrees % 180 == 0 else (64, 48))
    edges = {"left": bright[:, :4], "right": bright[:, -4:], "top": bright[:4], "bottom": bright[-4:]}
    assert [edge for edge, pixels in edges.items() if pixels.all()] == [bar]
    assert (pictures_at(path, {0})[0][:, :, 0] > 130).tolist() == bright.tolist()


def with_sound(pictures: Path, path: Path, sound_s: int) -> Path:
    """The pictures of a file beside a sound track of that length."""
    with av.open(str(pictures)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("mp2", rate=16000, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), "s16", "mono")
        for second in range(sound_s):
            silence.sample_rate, silence.time_base, silence.pts = 16000, Fraction(1, 16000), 16000 * second
            target.mux(sound.encode(silence))
        target.mux(sound.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mkv", ".asf"])
def test_sound_may_last_longer_than_the_pictures(suffix: str, tmp_path: Path) -> None:
    pictures = film(tmp_path / f"pictures{suffix}", "mpeg4")
    path = with_sound(pictures, tmp_path / f"both{suffix}", sound_s=20)
    assert len([frame.time_ns for frame in VideoFile(path)]) == 100
    content = path.read_bytes()
    if suffix == ".mkv":  # the other does not say how long it is once it is cut
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(MbrError, match="It is cut off"):
            list(VideoFile(path))


def test_a_file_that_does_not_say_how_long_it_is_may_be_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = film(tmp_path / "old.wmv", "wmv2")
    assert len(list(VideoFile(path))) == 100 and not caplog.text
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    count = len(list(VideoFile(path)))
    assert 0 < count < 100
    assert f"so it may be cut off: {count} frames were read, to " in caplog.text


def excerpt(whole: Path, path: Path, first_packet: int) -> Path:
    """All packets from that one on, as a stream that somebody tuned in to."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and n >= first_packet:
                packet.stream = stream
                target.mux(packet)
    return path


OPEN_GOPS = {
    "libx264": {"x264_params": "open-gop=1:keyint=25:scenecut=0"},
    "libx265": {"x265_params": "open-gop=1:keyint=25:min-keyint=25:bframes=4:scenecut=0:log-level=error"},
    "mpeg2video": {"g": "25", "bf": "2"},
}


@pytest.mark.parametrize("codec", OPEN_GOPS)
@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
@pytest.mark.parametrize("where", ["in the middle of a group", "at a key frame"])
def test_times_are_those_of_the_frames_of_an_excerpt(codec: str, suffix: str, where: str, tmp_path: Path) -> None:
    """Some frames at its beginning refer to what is not there, and no decoder gives them."""
    whole = film(tmp_path / f"whole{suffix}", codec, **OPEN_GOPS[codec])
    with av.open(str(whole)) as container:
        keys = [n for n, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    first_packet = keys[2] if where == "at a key frame" else keys[1] + 5
    part = VideoFile(excerpt(whole, tmp_path / f"excerpt{suffix}", first_packet))
    joined = JoinedFiles("twice", [part, part])
    times_ns = [frame.time_ns for frame in joined]
    assert 80 < len(times_ns) <= 2 * (100 - first_packet)
    assert joined.times_ns().tolist() == times_ns


def bar_in(pixels: Image) -> int:
    """Left edge of the bar of `film`."""
    return int(np.flatnonzero(pixels[24, :, 0] > 130)[0])


@pytest.mark.parametrize("bf", ["3", "16"])
def test_pictures_of_an_avi_file_have_their_own_times_whatever_their_order_in_it(bf: str, tmp_path: Path) -> None:
    path = film(tmp_path / "reordered.avi", x264_params=f"bframes={bf}:b-adapt=0:keyint=60:scenecut=0")
    video = VideoFile(path)
    assert [abs(bar_in(frame.picture()) - frame.number % 48) < 3 for frame in video] == [True] * 100
    times_ns = [frame.time_ns for frame in video]
    assert times_ns == [n * 40_000_000 for n in range(100)] == video.times_ns().tolist()
    still = pictures_at(path, {70 * 40_000_000})[70 * 40_000_000]
    assert abs(bar_in(still) - 70 % 48) < 3


@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
def test_a_clock_that_was_set_back_is_told(suffix: str, tmp_path: Path) -> None:
    """The frames behind it would serve no tick, and be missed by nobody."""
    piece = film(tmp_path / f"piece{suffix}", "mpeg2video")
    path = tmp_path / f"whole{suffix}"
    path.write_bytes(piece.read_bytes() * 2)
    with pytest.raises(MbrError, match=r"frame 100 is said to be of 0\.000 s, but .* of 3\.960 s.*ffmpeg -r 25 -i /"):
        list(VideoFile(path))
    with pytest.raises(MbrError, match=r"frame 100 is said to be of 0\.000 s"):
        VideoFile(path).times_ns()


@pytest.mark.parametrize(("days", "refused"), [(6, False), (20_000, True)])
def test_a_clock_that_was_set_far_ahead_is_told(days: int, refused: bool, tmp_path: Path) -> None:
    """It would be a gap whose rows fill the disk."""
    path = tmp_path / "leap.mkv"
    with av.open(str(film(tmp_path / "whole.mkv", bf="0"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(source.demux(video=0)):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = (at + (n >= 50) * days * 86_400_000 for at in (packet.pts, packet.dts))
                packet.stream = stream
                target.mux(packet)
    if refused:
        with pytest.raises(MbrError, match="frame 50 is said to be of 1728000002"):
            list(VideoFile(path))
    else:
        assert len(list(VideoFile(path))) == 100


def test_a_stream_without_times_is_told(tmp_path: Path) -> None:
    path = film(tmp_path / "it is raw.h264")
    with pytest.raises(MbrError, match=r"frame 0 has no presentation time.*ffmpeg -r 25 -i '/.*raw\.h264' -qp 0"):
        list(VideoFile(path))


def test_joined_files_go_on_where_the_one_before_ended(box_video: Path) -> None:
    joined = JoinedFiles("twice", [VideoFile(box_video), VideoFile(box_video)])
    frames = [(frame.number, frame.time_ns) for frame in joined]
    assert frames == [(n, n * 100_000_000) for n in range(240)]
    assert joined.estimated_frames == 240


def test_files_of_different_size_are_not_joined(box_video: Path, realdata: Path) -> None:
    other = VideoFile(realdata / "home_cage_bedded" / "minimal_top.mp4")
    with pytest.raises(MbrError, match="one frame size"):
        JoinedFiles("mixed", [VideoFile(box_video), other])


def pictures(count: int) -> list[np.ndarray]:
    noise = np.random.default_rng(3)
    return [noise.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(count)]


def test_a_journal_goes_on_after_a_torn_row(tmp_path: Path) -> None:
    path = tmp_path / "cage.frames.csv"
    path.write_text("frame,source_frame,time_ns\n0,0,1000\n1,3,100001000\n2,6,2000")
    with closing(Journal(path)) as journal:
        assert journal.end is not None
        assert (journal.end.state.origin_ns, journal.end.state.last_index, journal.end.next_number) == (1000, 1, 4)
        journal.note(Frame("cage", 7, 20, 700001000, 1000, pictures(1)[0]))
    assert list(read_journal(path)) == [(0, 0, 1000), (1, 3, 100001000), (7, 20, 700001000)]
    assert journal_ends(path) == ((0, 0, 1000), (7, 20, 700001000))


def test_a_damaged_journal_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "cage.frames.csv"
    path.write_text("frame,source_frame,time_ns\n0,zero,1000\n")
    with pytest.raises(MbrError, match="three whole numbers"):
        list(read_journal(path))
    path.write_text("something,else\n")
    with pytest.raises(MbrError, match="header"):
        list(read_journal(path))
