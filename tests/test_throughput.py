"""Overlapped, batched, in several threads or processes: the same bytes as one frame after the other."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import PATIENCE_S, mbr_live, wait_for

from mbr_live.ahead import Ahead
from mbr_live.batch.batch import Job, run_job
from mbr_live.bundle import Bundle
from mbr_live.config import Camera, Config, Simulated
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.live.arrivals import MAX_JUMP_TICKS, Eye, RefusedFrame, SeenFrame
from mbr_live.live.run import free_wire
from mbr_live.pipeline import LaneState, Pipeline, Seen
from mbr_live.simulation.camera import Simulation
from mbr_live.sinks.label_log import label_header, label_rows
from mbr_live.sinks.run_manifest import read_run
from mbr_live.types import TICK_NS, Decision, Frame
from mbr_live.video.sources import VideoFile, sampled
from mbr_live.wire.frames import FrameSender
from mbr_live.wire.messages import CaptureCounts, End, FrameHeader, own_clock
from mbr_live.wire.status import StatusSubscriber

WINDOW_PX = 160
FRAMES = 34  # the warm-up of the demo bundle takes 20
MISSING = (25, 26)


@pytest.fixture(scope="module")
def films() -> list[list[Frame]]:
    """What three cameras see; every camera of a test has one of them."""
    return [film(condition, seed) for condition, seed in (("box", 41), ("clutter", 42), ("dark", 43))]


def film(condition: str, seed: int) -> list[Frame]:
    simulation = Simulation(condition, seed)
    frames = []
    for n in range(FRAMES):
        simulation.advance()
        frames.append(Frame("", n, n, n * TICK_NS, 0, simulation.render()))
    return [frame for frame in frames if frame.index not in MISSING]


def of_camera(frame: Frame, camera: str) -> Frame:
    return Frame(camera, frame.index, frame.source_frame, frame.time_ns, frame.origin_ns, frame.pixels)


def stepped(pipeline: Pipeline, frames: list[Frame]) -> str:
    """The label log of a camera by itself, one frame after the other."""
    state, rows = pipeline.start(), [label_header(pipeline.manifest) + "\n"]
    for frame in frames:
        decisions, states = pipeline.step([frame], {frame.camera: state})
        state = states[frame.camera]
        rows += [row for decision in decisions for row in label_rows(decision)]
    return "".join(rows)


# Live.


@pytest.mark.parametrize("cameras", [1, 2, 8, 32])
def test_labels_do_not_depend_on_the_number_of_cameras(
    cameras: int, films: list[list[Frame]], demo_bundle: Bundle, engine: OpenVinoEngine, tmp_path: Path
) -> None:
    names = [f"cage{n}" for n in range(cameras)]
    config = Config(
        out=tmp_path, bundle=demo_bundle.path, wire=free_wire(),
        camera=tuple(Camera(name=name, source=Simulated(kind="simulated"), window_px=WINDOW_PX) for name in names),
    )  # fmt: skip
    (tmp_path / "system.json").write_text(config.model_dump_json())
    inference = subprocess.Popen([sys.executable, "-m", "mbr_live", "infer", str(tmp_path / "system.json")])
    try:
        with closing(StatusSubscriber(config.wire.status)) as subscriber:
            assert next(subscriber.messages(PATIENCE_S), None), "inference is not ready"
        logs = [tmp_path / f"{name}.labels.csv" for name in names]
        send_all(config.wire.frames, {name: films[n % len(films)] for n, name in enumerate(names)}, logs)
        inference.send_signal(signal.SIGTERM)
        assert inference.wait(PATIENCE_S) == 0
    finally:
        inference.kill()
    pipeline = Pipeline(demo_bundle.manifest, engine, {"": WINDOW_PX})
    alone = [stepped(pipeline, each) for each in films]
    assert all(log.count(",ok,") == FRAMES - 20 - len(MISSING) for log in alone)
    for n, name in enumerate(names):
        assert (tmp_path / f"{name}.labels.csv").read_text() == alone[n % len(films)]
        assert read_run(tmp_path / f"{name}.run.json").exit_status == "complete"


def send_all(endpoint: str, films: dict[str, list[Frame]], logs: list[Path]) -> None:
    """All cameras in turn, as fast as they are taken; returns when the logs have all rows."""
    senders = {name: FrameSender(endpoint, name, f"session-{name}") for name in films}
    for number in range(FRAMES - len(MISSING)):
        for name, frames in films.items():
            each = of_camera(frames[number], name)
            wait_for(partial(senders[name].send, each, time.monotonic_ns()), "inference to take a frame")
    for sender in senders.values():
        assert sender.end(FRAMES - 1, 0, CaptureCounts(), timeout_s=PATIENCE_S)
    wait_for(lambda: all(log.read_bytes().count(b"\n") == FRAMES + 1 for log in logs), "all rows")
    for sender in senders.values():
        sender.close()


def header(index: int, *, height: int = 480) -> FrameHeader:
    return FrameHeader(
        camera="a", session="a session", seq=index, index=index, source_frame=index, time_ns=index, origin_ns=0,
        captured_ns=0, clock=own_clock(), height=height, width=640,
    )  # fmt: skip


def test_a_frame_that_cannot_be_used_is_not_looked_at(
    films: list[list[Frame]], demo_bundle: Bundle, engine: OpenVinoEngine
) -> None:
    pipeline = Pipeline(demo_bundle.manifest, engine, {"a": WINDOW_PX})
    eye, pixels = Eye(pipeline, last_index=4), films[0][0].pixels

    def look(each: FrameHeader) -> SeenFrame | RefusedFrame:
        return eye.look(each, memoryview(pixels.tobytes())[: each.height * each.width * 3])

    assert look(header(4)) == RefusedFrame(header(4), "late")
    assert look(header(5 + MAX_JUMP_TICKS)) == RefusedFrame(header(5 + MAX_JUMP_TICKS), "jump")
    assert isinstance(look(header(5)), SeenFrame)
    assert look(header(6, height=240)) == RefusedFrame(header(6, height=240), "size")
    first = look(header(6))
    assert isinstance(first, SeenFrame) and first.seen.after.blind.same_pictures == 2  # it saw 5 and 6, nothing between
    eye.end(End(camera="a", session="a session", last_index=9, origin_ns=0, counts=CaptureCounts()))
    assert look(header(9)) == RefusedFrame(header(9), "late")
    assert isinstance(look(header(10)), SeenFrame)


# In groups, whatever they are.


@settings(max_examples=6)
@given(threads=st.sampled_from([1, 2]), seed=st.integers(0, 2**32))
def test_groups_and_threads_do_not_matter(
    threads: int, seed: int, films: list[list[Frame]], demo_bundle: Bundle, engine: OpenVinoEngine
) -> None:
    """Features of frames of any lanes, and of several frames of a lane, computed together on one or two threads."""
    chance = random.Random(seed)
    runtime = engine if threads == 1 else OpenVinoEngine(demo_bundle, threads=2)
    pipeline = Pipeline(demo_bundle.manifest, runtime, dict.fromkeys("abc", WINDOW_PX))
    queues = {name: [of_camera(frame, name) for frame in each] for name, each in zip("abc", films, strict=True)}
    states: dict[str, LaneState] = {name: pipeline.start() for name in queues}
    sights = {name: state.sight for name, state in states.items()}
    logs: dict[str, list[Decision]] = {name: [] for name in queues}
    while any(queues.values()):
        seen: list[Seen] = []
        for name in chance.choices("abc", k=chance.randint(1, 9)):
            if queues[name]:
                seen.append(pipeline.see(queues[name].pop(0), sights[name]))
                sights[name] = seen[-1].after
        for each, features in zip(seen, pipeline.features(seen), strict=True):
            decisions, states = pipeline.label([each], [features], states)
            logs[each.decision.camera] += decisions
    alone = Pipeline(demo_bundle.manifest, engine, {"": WINDOW_PX})
    for name, frames in zip("abc", films, strict=True):
        rows = "".join(row for decision in logs[name] for row in label_rows(decision))
        assert stepped(alone, frames) == label_header(demo_bundle.manifest) + "\n" + rows


# Recorded files.


@pytest.mark.parametrize("threads", [1, 2])
def test_batch_says_what_one_frame_after_the_other_says(
    threads: int, clutter_video: Path, demo_bundle: Bundle, tmp_path: Path
) -> None:
    engine = OpenVinoEngine(demo_bundle, threads=threads)
    run_job(Job("clutter", (clutter_video,)), tmp_path, demo_bundle, engine)
    pipeline = Pipeline(demo_bundle.manifest, engine)
    expected = stepped(pipeline, list(sampled(VideoFile(clutter_video), "clutter")))
    assert ",ok," in expected
    assert (tmp_path / "clutter.labels.csv").read_text() == expected


def test_several_files_at_once(box_video: Path, clutter_video: Path, dark_video: Path, tmp_path: Path) -> None:
    """The same bytes in every process; a broken file is named, and the others go on."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(box_video.read_bytes()[:40_000])
    videos = [broken, box_video, clutter_video, dark_video]
    for at_once in ("1", "3"):
        done = mbr_live("batch", *videos, "--at-once", at_once, "--out", tmp_path / at_once)
        assert done.returncode == 1
        assert "broken.mp4" in done.stderr
    names = {path.name for path in (tmp_path / "1").iterdir()}
    assert names == {path.name for path in (tmp_path / "3").iterdir()}
    assert len(names) == 9
    for name in names - {f"{stem}.run.json" for stem in ("box", "clutter", "dark")}:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_a_process_that_is_killed_is_named_and_leaves_the_others(box_video: Path, tmp_path: Path) -> None:
    """Its labeller dies while it is at the second file."""
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    done = subprocess.run(
        [sys.executable, str(program), str(box_video), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "complete", "1", "killed", "2", "complete"]


KILLED = """
import os, signal, sys
from pathlib import Path
from mbr_live.batch.batch import Job
from mbr_live.batch.workers import Labeller, labelled
from mbr_live.bundle import load_bundle
from mbr_live.config import DEMO_BUNDLE
from mbr_live.types import MbrError

class Killed(Labeller):
    def label(self, engine, job, far):
        if job.name == "box1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().label(engine, job, far)

if __name__ == "__main__":
    jobs = [Job(f"box{n}", (Path(sys.argv[1]),)) for n in range(3)]
    labeller = Killed(load_bundle(DEMO_BUNDLE), Path(sys.argv[2]))
    for number, ended in sorted(labelled(labeller, jobs, 2, lambda *far: None), key=lambda pair: pair[0]):
        if isinstance(ended, MbrError):
            assert "--at-once 1" in str(ended)
        print(number, "killed" if isinstance(ended, MbrError) else ended.exit_status)
"""


def test_an_interrupted_batch_of_several_leaves_nothing_half_written(clutter_video: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal; a plain kill of the first one must end the others too."""
    copies = [tmp_path / f"copy{n}.mp4" for n in range(6)]
    for copy in copies:
        copy.write_bytes(clutter_video.read_bytes())
    for number in (signal.SIGINT, signal.SIGKILL):
        out = tmp_path / number.name
        command = [sys.executable, "-m", "mbr_live", "batch", *map(str, copies), "--at-once", "2", "--out", str(out)]
        process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=heed_interrupts
        )
        wait_for(partial(holds_files, out), "the first files")
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        assert process.wait(PATIENCE_S) != 0
        wait_for(partial(session_is_over, process.pid), "the other processes to end")
        assert not list(out.glob("*.part"))
        assert not (out / "copy5.run.json").exists()


def heed_interrupts() -> None:
    """A shell has what it starts in the background ignore them, and so do the children of that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def holds_files(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def session_is_over(leader: int) -> bool:
    """Whether no process of the session that `leader` began is left."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            return False
    return True


# The thread that runs ahead.


@settings(max_examples=50)
@given(st.integers(0, 30), st.integers(1, 5), st.integers(1, 5))
def test_all_items_come_in_order_and_bounded(count: int, ahead: int, most: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for n in range(count):
            taken = n + 1
            yield n

    with closing(Ahead(items(), ahead)) as work:
        found: list[int] = []
        for group in work.groups(most):
            assert 1 <= len(group) <= most
            found += group
            assert taken <= len(found) + ahead + 1
    assert found == list(range(count))


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("torn")

    found = []
    with closing(Ahead(items(), 8)) as work, pytest.raises(OSError, match="torn"):
        for item in work:
            found.append(item)
    assert found == [1, 2]


def test_the_thread_ends_when_nobody_wants_more() -> None:
    before = set(threading.enumerate())
    endless = iter(int, 1)
    with closing(Ahead(endless, 2)) as work:
        assert next(iter(work)) == 0
    assert set(threading.enumerate()) <= before
