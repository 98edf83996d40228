"""Garbage on every socket, while frames come: the labels must be those of an undisturbed run, byte for byte."""

from __future__ import annotations

import json
import multiprocessing
import random
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import zmq

from chaos_scenarios.counting import Outcome, count_frames, count_told
from chaos_scenarios.ear import Ear
from chaos_scenarios.hour import rendered
from chaos_scenarios.rig import Memory, Watching, inference_alone, simulated, system_config
from mbr_live.config import Config, Monitor
from mbr_live.processes import Child
from mbr_live.sinks.label_log import LABELS_SUFFIX
from mbr_live.types import RATE_FPS, TICK_NS, Frame
from mbr_live.wire.frames import FrameSender
from mbr_live.wire.messages import CameraReport, CaptureCounts, End, FrameHeader, Heartbeat

CAMERA = "cage"
STRANGER = (
    "stranger"  # whom the fuzzed messages come from: a forged frame of a known camera would be believed, without keys
)
FORK = multiprocessing.get_context("fork")
ATTACKERS = 2
RAW_CONNECTIONS = 1500
_PIXELS = bytes(48 * 64 * 3)
_GOOD = (
    FrameHeader(
        camera=STRANGER, session="0123456789abcdef", seq=0, index=0, source_frame=0, time_ns=0, origin_ns=0,
        captured_ns=0, clock="here", height=48, width=64,
    ),
    Heartbeat(camera=STRANGER, session="0123456789abcdef", counts=CaptureCounts(), report=CameraReport()),
    End(camera=STRANGER, session="0123456789abcdef", last_index=5, origin_ns=0, counts=CaptureCounts()),
)  # fmt: skip
_BEGINNINGS = (b"", b"GET ", b"POST / HTTP/9\r\n", b"\xff" + bytes(8) + b"\x01\x7f\x03")  # the last of ZMTP
_VALUES = (-1, 0, 2**63, 2**64, 1e308, None, "", "x" * 5000, [], {}, True, [[[]]], "\u0000", {"a": {"a": {}}})


def garbage(folder: Path, seed: int, watching: Watching, messages: int = 1_000_000) -> Outcome:
    """Fuzzed messages to the frames socket; random bytes to the sockets of frames, status and metrics."""
    outcome = Outcome("garbage", seed)
    pictures = rendered(240)
    calm = system_config(folder / "calm", simulated(CAMERA))
    with inference_alone(calm):
        _play(calm, pictures, 1200)
    stormy = system_config(folder / "stormy", simulated(CAMERA))
    port = _free_port()
    stormy = stormy.model_copy(update={"monitor": Monitor(metrics_port=port)})
    with inference_alone(stormy) as child, closing(Ear(stormy)) as ear, Memory(child, outcome) as memory:
        monitor = Child("monitor", ("monitor", str(stormy.out / "system.json")), stormy.out / "logs" / "monitor.log")
        monitor.start()
        ports = [urlsplit(stormy.wire.frames).port or 0, urlsplit(stormy.wire.status).port or 0, port]
        attackers = [
            FORK.Process(target=_attack, args=(stormy.wire.frames, f"{seed}/{n}", messages // ATTACKERS), daemon=True)
            for n in range(ATTACKERS)
        ]
        raw = threading.Thread(target=_raw, args=(ports, seed), daemon=True)
        player = threading.Thread(target=_play, args=(stormy, pictures, 1200, 0.05), daemon=True)
        for each in (*attackers, raw, player):
            each.start()
        while any(each.is_alive() for each in (*attackers, raw, player)):
            memory.sample()
            watching.say(f"{_refused(ear)} messages refused")
            time.sleep(0.5)
        time.sleep(3.0)
        outcome.expect(child.exit_code is None and child.restarts == 0, f"inference ended: {child.last_words()[-300:]}")
        outcome.expect(monitor.pid is not None, f"the monitor ended: {monitor.last_words()[-300:]}")
        outcome.expect("mbr_inference_up 1.0" in _metrics(port), "the metrics are not served any more")
        outcome.expect(
            all(attacker.exitcode == 0 for attacker in attackers), "an attacker could not send all of its messages"
        )
        refused = _refused(ear)
        monitor.ask_to_stop()
        monitor.wait(10)
    count_frames(outcome, stormy, {CAMERA: {tick: tick for tick in range(1200)}})
    count_told(outcome, stormy, ear.told)
    same = _labels(calm) == _labels(stormy)
    outcome.expect(same, "the label log is not that of the undisturbed run")
    outcome.expect(refused >= messages, f"{refused} messages were refused, {messages} were sent")
    outcome.harm = f"{messages} fuzzed messages; {RAW_CONNECTIONS} connections with random bytes on each of 3 ports"
    outcome.notes.append(f"{refused} refused; labels of the undisturbed run: {'the same bytes' if same else 'others'}")
    return outcome


def _play(config: Config, pictures: Any, ticks: int, every_s: float = 0.0) -> None:
    """Be the camera: send every frame, waiting where there is no room."""
    sender = FrameSender(config.wire.frames, CAMERA, "a session")
    for tick in range(ticks):
        time.sleep(every_s)
        frame = Frame(CAMERA, tick, tick, tick * TICK_NS, 0, pictures[tick % len(pictures)])
        while not sender.send(frame, time.monotonic_ns()):
            time.sleep(0.002)
    counts = CaptureCounts(source_frames=ticks, sampled=ticks, sent=ticks)
    while not sender.end(ticks - 1, 0, counts):
        time.sleep(0.1)
    sender.close()
    time.sleep(2 / RATE_FPS)


def _attack(endpoint: str, seed: str, count: int) -> None:
    random_ = random.Random(seed)
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket_:
        socket_.setsockopt(zmq.SNDHWM, 1000)
        socket_.connect(endpoint)
        for _ in range(count):
            socket_.send_multipart(fuzzed(random_))


def fuzzed(random_: random.Random) -> list[bytes]:
    """One message that is wrong in some way: never one of a camera that is known."""
    header = random_.choice(_GOOD).model_dump_json().encode()
    match random_.randrange(8):
        case 0:
            return [random_.randbytes(random_.randrange(3000)) for _ in range(random_.randrange(1, 4))]
        case 1:
            spoilt = bytearray(header)
            for _ in range(random_.randrange(1, 4)):
                spoilt[random_.randrange(len(spoilt))] = random_.randrange(256)
            return [bytes(spoilt), _PIXELS]
        case 2:
            return [header, random_.randbytes(random_.randrange(200))]
        case 3:
            return [header, *[b""] * random_.randrange(60)]
        case 4:
            table = json.loads(header)
            table[random_.choice([*table, "more"])] = random_.choice(_VALUES)
            return [json.dumps(table).encode(), _PIXELS]
        case 5:
            return [random_.choice((b"{", b"[", b'{"a":', b"\xff", b"9")) * random_.randrange(1, 6000)]
        case 6:
            return [header[: random_.randrange(len(header))], _PIXELS]
        case _:
            return [header, _PIXELS]  # well-formed, of a camera that nobody configured


def _raw(ports: Sequence[int], seed: int) -> None:
    """Connections that say anything but what is expected, and hang up in the middle of it."""
    random_ = random.Random(seed)
    for _ in range(RAW_CONNECTIONS):
        for port in ports:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                connection.settimeout(0.2)
                start = random_.choice(
                    (b"", b"GET ", b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03", b"POST / HTTP/9\r\n")
                )
                connection.sendall(start + random_.randbytes(random_.randrange(4000)))
                if random_.random() < 0.1:
                    connection.recv(100)


def _metrics(port: int) -> str:
    """What the monitor answers to a decent question."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer.decode(errors="replace")
    return ""


def _refused(ear: Ear) -> int:
    return ear.status.refused.get("messages", 0) if ear.status else 0


def _labels(config: Config) -> bytes:
    return (config.out / f"{CAMERA}{LABELS_SUFFIX}").read_bytes()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
