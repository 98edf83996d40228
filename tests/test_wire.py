"""Messages between processes: exact, checked, bounded; garbage costs a counter and nothing else."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from live import PATIENCE_S, free_endpoint, labelled, simulated, system_config, wait_for

from mbr_live.config import Config
from mbr_live.keys import load_keys, make_keys
from mbr_live.live.run import System
from mbr_live.status import SystemStatus, parse_status
from mbr_live.types import Frame, MbrError
from mbr_live.wire.frames import QUEUE_FRAMES, FrameReceiver, FrameSender
from mbr_live.wire.messages import BadMessage, CaptureCounts, End, FrameHeader, Heartbeat, frame_of, parse
from mbr_live.wire.sockets import free_endpoints
from mbr_live.wire.status import StatusPublisher, StatusSubscriber

GOOD = FrameHeader(
    camera="cage", session="0123456789abcdef", seq=0, index=0, source_frame=0, time_ns=0, origin_ns=0, captured_ns=0,
    clock="here", height=48, width=64,
)  # fmt: skip


@pytest.fixture
def receiver() -> Iterator[tuple[str, FrameReceiver]]:
    endpoint = free_endpoint()
    with closing(FrameReceiver(endpoint)) as bound:
        yield endpoint, bound


def frame(index: int, camera: str = "cage") -> Frame:
    pixels = np.full((48, 64, 3), index % 256, np.uint8)
    return Frame(camera, index, index * 3, index * 100_000_000, 7, pixels)


def connected(sender: FrameSender, receiver: FrameReceiver) -> None:
    """Wait for the connection: before it, a sender refuses frames."""

    def arrived() -> bool:
        sender.heartbeat(CaptureCounts())
        return receiver.receive(0.05) is not None

    wait_for(arrived, "the connection")


def test_free_addresses_are_each_another() -> None:
    assert len(set(free_endpoints(50))) == 50


def test_a_frame_arrives_as_it_was_sent(receiver: tuple[str, FrameReceiver]) -> None:
    endpoint, inbox = receiver
    with closing(FrameSender(endpoint, "cage", "0123456789abcdef")) as sender:
        connected(sender, inbox)
        for index in (0, 1):
            assert sender.send(frame(index), captured_ns=11)
        sender.skip()
        assert sender.send(frame(3), captured_ns=11)
        assert sender.end(3, 7, CaptureCounts(sampled=4, sent=3))
        messages = [inbox.receive(PATIENCE_S) for _ in range(4)]
    for received, index, seq in zip(messages, (0, 1, 3), (0, 1, 3), strict=False):
        assert received is not None
        header, pixels = received
        assert isinstance(header, FrameHeader)
        assert pixels is not None
        assert header.seq == seq
        expected = frame(index)
        arrived = frame_of(header, pixels)
        assert np.array_equal(arrived.pixels, expected.pixels)
        assert (arrived.index, arrived.source_frame, arrived.time_ns, arrived.origin_ns) == (
            index, index * 3, index * 100_000_000, 7,
        )  # fmt: skip
    assert messages[3] is not None
    assert isinstance(messages[3][0], End)


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_largest_frame_arrives_and_others_are_refused(encrypted: bool, tmp_path: Path) -> None:
    """A frame that libzmq would not let through is never counted as sent."""
    endpoint = free_endpoint()
    if encrypted:
        make_keys(tmp_path)
    keys = load_keys(tmp_path) if encrypted else None
    with (
        closing(FrameReceiver(endpoint, keys)) as inbox,
        closing(FrameSender(endpoint, "cage", "0123456789abcdef", keys)) as sender,
    ):
        connected(sender, inbox)
        for height, width in ((3073, 4096), (3072, 4097), (20, 8193), (15, 64)):
            with pytest.raises(MbrError, match=f"{width} x {height} px"):
                sender.send(Frame("cage", 0, 0, 0, 0, np.zeros((height, width, 3), np.uint8)), captured_ns=0)
        largest = np.zeros((3072, 4096, 3), np.uint8)
        largest[-1, -1] = 1, 2, 3
        assert sender.send(Frame("cage", 0, 0, 0, 0, largest), captured_ns=0)
        while isinstance(received := inbox.receive(PATIENCE_S), tuple) and isinstance(received[0], Heartbeat):
            pass
        assert received is not None and isinstance(received[0], FrameHeader) and received[1] is not None
        assert np.array_equal(frame_of(received[0], received[1]).pixels, largest)


def test_without_a_receiver_nothing_is_queued() -> None:
    with closing(FrameSender(free_endpoint(), "cage", "0123456789abcdef")) as sender:
        assert not sender.send(frame(0), captured_ns=0)


def test_a_receiver_that_does_not_read_costs_a_bounded_queue(receiver: tuple[str, FrameReceiver]) -> None:
    endpoint, inbox = receiver
    big = Frame("cage", 0, 0, 0, 0, np.zeros((1080, 1920, 3), np.uint8))
    with closing(FrameSender(endpoint, "cage", "0123456789abcdef")) as sender:
        connected(sender, inbox)
        sent = sum(sender.send(big, captured_ns=0) for _ in range(4 * QUEUE_FRAMES))
        # Both ends may fill their queues (parts count one by one), and the kernel's buffers hold one or two more.
        assert 1 <= sent <= 2 * QUEUE_FRAMES + 4
        while inbox.receive(0.2):
            pass


def test_an_address_in_use_is_explained(receiver: tuple[str, FrameReceiver]) -> None:
    with pytest.raises(MbrError, match="another mbr-live"):
        FrameReceiver(receiver[0])


def test_status_goes_to_who_listens() -> None:
    endpoint = free_endpoint()
    status = SystemStatus(out="o", bundle="b", engine="e", behaviours=["grooming"], uptime_s=1.0, cameras=[])
    with closing(StatusPublisher(endpoint)) as publisher, closing(StatusSubscriber(endpoint)) as subscriber:
        heard: list[bytes] = []

        def came() -> bool:
            publisher.publish(status)
            heard.extend(subscriber.messages(0.05))
            return bool(heard)

        wait_for(came, "a message")
    assert parse_status(heard[0]) == status


PIXELS = memoryview(bytes(48 * 64 * 3))


def header_bytes(**changes: object) -> memoryview:
    return memoryview(json.dumps({**json.loads(GOOD.model_dump_json()), **changes}).encode())


def test_a_good_message_is_good() -> None:
    assert parse([header_bytes(), PIXELS]) == (GOOD, PIXELS)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [header_bytes()],
        [header_bytes(), PIXELS[:-1]],
        [header_bytes(), PIXELS, PIXELS],
        [header_bytes(v=2), PIXELS],
        [header_bytes(extra=1), PIXELS],
        [header_bytes(index=-1), PIXELS],
        [header_bytes(index=2**63), PIXELS],
        [header_bytes(index="0"), PIXELS],
        [header_bytes(height=1_000_000), PIXELS],
        [header_bytes(kind="order"), PIXELS],
        [header_bytes(camera=""), PIXELS],
        [memoryview(b"\xff\xfe"), PIXELS],
        [memoryview(b"[" * 4000), PIXELS],
        [memoryview(b" " * 5000), PIXELS],
        [
            memoryview(Heartbeat(camera="c", session="01234567", counts=CaptureCounts()).model_dump_json().encode()),
            PIXELS,
        ],
    ],
)
def test_a_message_that_is_not_ours_is_refused(parts: list[memoryview]) -> None:
    with pytest.raises(BadMessage):
        parse(parts)


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_random_bytes_are_refused_or_understood(parts: list[bytes]) -> None:
    try:
        parse([memoryview(part) for part in parts])
    except BadMessage:
        return


def rss_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def garbage(random_: random.Random) -> list[bytes]:
    """One message that is wrong in some way: noise, a spoilt header, a wrong size, many parts."""
    kind = random_.randrange(6)
    good = GOOD.model_dump_json().encode()
    if kind == 0:
        return [random_.randbytes(random_.randrange(2000)) for _ in range(random_.randrange(1, 4))]
    if kind == 1:
        spoilt = bytearray(good)
        spoilt[random_.randrange(len(spoilt))] = random_.randrange(256)
        return [bytes(spoilt), bytes(PIXELS)]
    if kind == 2:
        return [good, random_.randbytes(random_.randrange(100))]
    if kind == 3:
        return [good, *[b""] * random_.randrange(50)]
    if kind == 4:
        key = random_.choice(list(FrameHeader.model_fields))
        value = random_.choice([-1, 2**64, 1e308, None, "x" * 200, [], {}, True])
        return [bytes(header_bytes(**{key: value})), bytes(PIXELS)]
    return [b"{" * random_.randrange(5000)]


@pytest.fixture
def bombarded(tmp_path: Path) -> Config:
    return system_config(tmp_path / "live", simulated("cage"))


def test_a_hundred_thousand_bad_messages_change_nothing(bombarded: Config) -> None:
    """Against the real process, while it labels a camera: it lives, its memory does not grow, no frame is lost."""
    random_ = random.Random(7)
    with System(bombarded) as system, zmq.Context() as context, context.socket(zmq.PUSH) as attacker:
        attacker.setsockopt(zmq.LINGER, 0)
        attacker.connect(bombarded.wire.frames)
        pid = system.inference.pid
        assert pid is not None
        wait_for(lambda: labelled(bombarded.out, "cage", "ok") > 10, "labels", system)
        bombard(attacker, random_, 10_000)
        before_kib = rss_kib(pid)
        bombard(attacker, random_, 90_000)
        oversized(bombarded.wire.frames)
        before = labelled(bombarded.out, "cage")
        wait_for(lambda: labelled(bombarded.out, "cage") > before + 20, "labels to go on", system)
        after_kib = rss_kib(pid)
        assert system.inference.pid == pid
        os.kill(pid, 0)
    assert after_kib - before_kib < 8 * 1024, f"{before_kib} KiB before, {after_kib} KiB after"
    assert "refused message" in (bombarded.out / "logs" / "inference.log").read_text()


def bombard(attacker: zmq.Socket[bytes], random_: random.Random, count: int) -> None:
    for _ in range(count):
        attacker.send_multipart(garbage(random_))


def oversized(endpoint: str) -> None:
    """Announce parts larger than a frame can be: libzmq hangs up instead of making room."""
    with zmq.Context() as context:
        for _ in range(3):
            with context.socket(zmq.PUSH) as socket:
                socket.setsockopt(zmq.LINGER, 0)
                socket.connect(endpoint)
                socket.send_multipart([GOOD.model_dump_json().encode(), bytes(64 * 1024 * 1024)])
                time.sleep(0.3)


FILLS_THE_QUEUE = """
import sys, time
import numpy as np
from mbr_live.types import Frame
from mbr_live.wire.frames import FrameSender

sender, sent, refused_s = FrameSender(sys.argv[1], "a", "a session"), 0, 0.0
while sent < 20 or refused_s < 1.0:  # until nothing is taken any more for a second
    if sender.send(Frame("a", sent, sent, sent, 0, np.zeros((480, 640, 3), np.uint8)), 0):
        sent, refused_s = sent + 1, 0.0
    else:
        time.sleep(0.01)
        refused_s += 0.01
print(sent, flush=True)
time.sleep(60)
"""

IS_BUSY_MEANWHILE = """
import subprocess, sys, time
from mbr_live.wire.frames import FrameReceiver
from mbr_live.wire.sockets import free_endpoints

(endpoint,), received = free_endpoints(1), 0
receiver = FrameReceiver(endpoint)
sender = subprocess.Popen([sys.executable, sys.argv[1], endpoint], stdout=subprocess.PIPE)
sent = int(sender.stdout.readline())
sender.kill()
time.sleep(2.5)  # longer than what libzmq would wait before it speaks to the dead
while receiver.receive(2.0) is not None:
    received += 1
print(sent, received)
"""


def test_a_capture_that_dies_while_inference_is_behind(tmp_path: Path) -> None:
    """What was queued is received; with the heartbeats of ZeroMQ the process aborts (libzmq issue 4364)."""
    sender, receiver = tmp_path / "sender.py", tmp_path / "receiver.py"
    sender.write_text(FILLS_THE_QUEUE)
    receiver.write_text(IS_BUSY_MEANWHILE)
    done = subprocess.run(
        [sys.executable, receiver, sender], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    sent, received = map(int, done.stdout.split())
    assert QUEUE_FRAMES <= received <= sent
