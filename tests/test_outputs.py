"""Every medium against the real thing: a broker, a pseudo-terminal, an HTTP, an OSC and a REP server, an LSL inlet."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpiozero
import paho.mqtt.client as mqtt
import pylsl
import pytest
import serial
import zmq
from gpiozero.pins.mock import MockFactory
from live import PATIENCE_S, free_endpoint, wait_for
from paho.mqtt.enums import CallbackAPIVersion
from pythonosc.dispatcher import Dispatcher
from pythonosc.osc_server import ThreadingOSCUDPServer
from receipts import BusyMachine

from mbr_live.clock_offset import offset_ns
from mbr_live.trigger_config import (
    AnyOutput,
    GpioOutput,
    LslOutput,
    MqttOutput,
    OpenEphysOutput,
    OscOutput,
    SerialOutput,
    WebhookOutput,
    ZeromqOutput,
    check_names,
)
from mbr_live.triggers.outputs import make_outlets, serial_ttl, simulated_box
from mbr_live.triggers.outputs.lsl import LslMarkers
from mbr_live.triggers.outputs.pool import Pool
from mbr_live.triggers.outputs.protocol import DeliveryError, TriggerMessage
from mbr_live.triggers.outputs.simulated_box import SimulatedBox
from mbr_live.triggers.outputs.workers import Delivery, LineWorker
from mbr_live.types import MbrError
from mbr_live.wire.status import StatusSubscriber


def message(number: int = 1, edge: Any = "on", *, trigger: str = "stim") -> TriggerMessage:
    return TriggerMessage(
        id=f"s/cage/{trigger}/{number}/{edge}/7", session="s", camera="cage", trigger=trigger, trial=number, edge=edge,
        sham=False, frame=7, time_ns=1_800_000_000_123_456_789, decided_ns=time.time_ns(), why="onset", on_s=0.5,
    )  # fmt: skip


def in_ms(ms: float) -> int:
    return time.monotonic_ns() + int(ms * 1e6)


@contextmanager
def pool_of(*outputs: AnyOutput, strict: bool = True) -> Iterator[tuple[Pool, list[Delivery]]]:
    """A running pool, and what came of the edges so far (filled by `gather`)."""
    pool = Pool(outputs)
    try:
        pool.start(strict=strict)
        yield pool, []
    finally:
        pool.stop(2.0)


def gather(pool: Pool, found: list[Delivery], count: int) -> list[Delivery]:
    def enough() -> bool:
        found.extend(pool.deliveries())
        return len(found) >= count

    wait_for(enough, f"{count} deliveries")
    return found


def free_port() -> int:
    return int(free_endpoint().rpartition(":")[2])


# Serial


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The box is a thread, and may have to wait for the machine."""
    monkeypatch.setattr(serial_ttl, "CONFIRM_WITHIN_S", 20.0)


def test_serial_lines_of_one_box(tmp_path: Path) -> None:
    with SimulatedBox() as box:
        lines = [SerialOutput(kind="serial", name=f"line{n}", port=box.port, line=n) for n in (1, 2)]
        with pool_of(*lines) as (pool, found):
            pool.edge(message(), ["line1", "line2"], in_ms(5000))
            assert {delivery.outcome for delivery in gather(pool, found, 2)} == {"confirmed"}
            until_ns = in_ms(8000)  # a lease is prolonged by one, and not by the other
            pool.renew("cage", "stim", ["line2"], until_ns)
            wait_for(lambda: box.highs(2)[-1][1] > box.highs(1)[-1][1] + 1e9, "the lease to be prolonged")
            pool.edge(message(2), ["line1"], time.monotonic_ns() - 1)
            assert gather(pool, found, 3)[2].outcome == "failed"  # late is never
        assert len(box.highs(1)) == len(box.highs(2)) == 1
        assert [hold.ms for hold in box.holds if hold.line == 1 and hold.ms] == [pytest.approx(5000, abs=1000)]


def lines_of(box: SimulatedBox, *numbers: int) -> list[SerialOutput]:
    return [SerialOutput(kind="serial", name=f"line{n}", port=box.port, line=n) for n in numbers]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ports that were opened, a name for each time."""
    ports: list[str] = []

    class Port(serial.Serial):
        def __init__(self, port: str, *arguments: Any, **more: Any) -> None:
            ports.append(port)
            super().__init__(port, *arguments, **more)

    monkeypatch.setattr(serial_ttl.serial, "Serial", Port)
    return ports


def test_the_port_of_several_lines_is_opened_once_and_closed_with_the_last(opened: list[str]) -> None:
    with SimulatedBox() as box:
        for times in (1, 2):
            with pool_of(*lines_of(box, 1, 2)) as (pool, found):
                pool.edge(message(), ["line1", "line2"], in_ms(60_000))
                gather(pool, found, 2)
                assert box.is_high(1) and box.is_high(2)
            wait_for(lambda: not box.is_high(1) and not box.is_high(2), "both lines to be told to go low")
            assert opened == [box.port] * times


def test_a_line_that_the_box_lacks_is_an_error_that_leaves_the_port_free(
    opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated_box, "LINES", 2)
    with SimulatedBox() as box:
        pool = Pool(lines_of(box, 5))
        with pytest.raises(MbrError, match="output line5: line 5 was asked for, but the box has 2 lines"):
            pool.start(strict=True)
        with pool_of(*lines_of(box, 1)):
            assert opened == [box.port] * 2


def test_one_box_has_one_baud_rate() -> None:
    lines = [
        SerialOutput(kind="serial", name=f"line{n}", port="/dev/box", line=n, baud=baud)
        for n, baud in ((0, 115200), (1, 9600))
    ]
    with pytest.raises(ValueError, match=r"outputs line0 and line1 are lines of one box .* 115200 and 9600"):
        check_names({}, (), lines)
    check_names({}, (), [lines[0], lines[1].model_copy(update={"port": "/dev/other"})])


def test_two_triggers_on_one_line_hold_it_as_long_as_either() -> None:
    with SimulatedBox() as box, pool_of(SerialOutput(kind="serial", name="l", port=box.port, line=0)) as (pool, found):
        pool.edge(message(trigger="a"), ["l"], in_ms(30_000))
        pool.edge(message(trigger="b"), ["l"], in_ms(60_000))
        pool.edge(message(edge="off", trigger="b"), ["l"], 0)
        gather(pool, found, 3)
        assert box.is_high(0)
        pool.edge(message(edge="off", trigger="a"), ["l"], 0)
        gather(pool, found, 4)
        assert not box.is_high(0)


def test_a_serial_port_that_is_not_there_or_not_a_box_is_an_error_at_start() -> None:
    with pytest.raises(MbrError, match=r"output l: the serial port /dev/nowhere cannot be opened"):
        Pool([SerialOutput(kind="serial", name="l", port="/dev/nowhere", line=0)]).start(strict=True)
    with SimulatedBox(answers=False) as other:
        pool = Pool([SerialOutput(kind="serial", name="l", port=other.port, line=0)])
        with pytest.raises(MbrError, match=r"no TTL box answers at .*mbr_ttl\.ino"):
            pool.start(strict=True)


def test_a_box_that_is_lost_fails_its_edges_and_is_found_again(tmp_path: Path) -> None:
    link = tmp_path / "port"
    with SimulatedBox() as box:
        link.symlink_to(box.port)
        output = SerialOutput(kind="serial", name="l", port=str(link), line=3)
        pool, found = Pool([output]), []
        pool.start(strict=True)
    link.unlink()
    pool.edge(message(1), ["l"], in_ms(5000))
    assert gather(pool, found, 1)[0].outcome == "failed"
    assert "l" in pool.waiting()
    assert pool.error("l")
    with SimulatedBox() as box:
        link.symlink_to(box.port)

        def works() -> bool:
            pool.edge(message(2), ["l"], in_ms(5000))
            return gather(pool, found, len(found) + 1)[-1].outcome == "confirmed"

        wait_for(works, "the box to be used again")
        assert box.highs(3)
        pool.stop(2.0)


class StuckLine:
    """A driver that never returns."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def open(self) -> None:
        pass

    def hold(self, on_s: float, *, confirm: bool) -> bool:
        self.release.wait()
        return confirm

    def close(self) -> None:
        pass


def test_a_driver_that_hangs_holds_up_nobody() -> None:
    stuck, found = StuckLine(), queue.SimpleQueue[Delivery]()
    worker = LineWorker("l", stuck, found.put)
    worker.start(strict=True)
    for number in range(300):
        worker.edge(message(number), in_ms(60_000))
        worker.renew("cage", "stim", in_ms(60_000))
    assert found.qsize() >= 200
    assert found.get().detail == "the output is stuck"
    assert worker.waiting <= 100
    stuck.release.set()
    worker.stop(5.0)


class DeafLine:
    """A line that does not hear every third word, and has nothing that would let it fall."""

    def __init__(self) -> None:
        self.told, self.high = 0, False

    def open(self) -> None:
        pass

    def hold(self, on_s: float, *, confirm: bool) -> bool:
        self.told += 1
        if self.told in (2, 3):
            raise DeliveryError("not heard") if self.told == 2 else OSError("a driver's own error")
        self.high = on_s > 0
        return confirm

    def close(self) -> None:
        pass


def test_a_line_is_told_to_go_low_until_it_hears_it() -> None:
    deaf, found = DeafLine(), queue.SimpleQueue[Delivery]()
    worker = LineWorker("l", deaf, found.put)
    worker.start(strict=True)
    worker.edge(message(), in_ms(1000))
    wait_for(lambda: deaf.told >= 1, "it to be told")
    wait_for(lambda: deaf.told == 4 and not deaf.high, "it to be told again and again")
    wait_for(lambda: not worker.error, "the error to be over")
    worker.stop(5.0)


class HearingLine:
    """A line that keeps what it is told, in ms."""

    def __init__(self) -> None:
        self.holds: list[float] = []

    def open(self) -> None:
        pass

    def hold(self, on_s: float, *, confirm: bool) -> bool:
        self.holds.append(on_s * 1000)
        return confirm

    def close(self) -> None:
        pass


def test_a_renewal_that_prolongs_nothing_is_not_told() -> None:
    """Arriving late, after the end of the hold before it, it would be a pulse of its own."""
    line, found = HearingLine(), queue.SimpleQueue[Delivery]()
    worker = LineWorker("l", line, found.put)
    worker.start(strict=True)
    until_ns = in_ms(30_000)
    worker.edge(message(), until_ns)
    for _ in range(3):
        worker.renew("cage", "stim", until_ns)
    worker.renew("cage", "stim", in_ms(60_000))
    wait_for(lambda: bool(line.holds) and line.holds[-1] > 31_000, "the renewal that prolongs it")
    assert len(line.holds) == 2
    worker.stop(5.0)


# Pins


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockFactory]:
    factory = MockFactory()
    monkeypatch.setattr(gpiozero.Device, "pin_factory", factory)
    yield factory
    factory.reset()


def test_a_pin_is_high_for_its_lease(pins: MockFactory) -> None:
    with pool_of(GpioOutput(kind="gpio", name="led", pin=17)) as (pool, found):
        assert pins.pin(17).state == 0
        pool.edge(message(), ["led"], in_ms(1500))
        assert gather(pool, found, 1)[0].outcome == "confirmed"
        assert pins.pin(17).state == 1
        wait_for(lambda: pins.pin(17).state == 0, "the lease to end without a word")


def test_a_pin_that_is_not_there_is_an_error_at_start(pins: MockFactory) -> None:
    with pytest.raises(MbrError, match="output led: pin GPIO99 cannot be used"):
        Pool([GpioOutput(kind="gpio", name="led", pin="GPIO99")]).start(strict=True)


# Open Ephys


@contextmanager
def open_ephys(port: int, *, acquiring: bool = True) -> Iterator[list[str]]:
    """A REP socket that answers as the Network Events plugin does."""
    heard: list[str] = []
    over = threading.Event()

    def serve() -> None:
        with zmq.Context() as context, context.socket(zmq.REP) as socket:
            socket.bind(f"tcp://127.0.0.1:{port}")
            while not over.is_set():
                if socket.poll(20):
                    text = socket.recv().decode()
                    heard.append(text)
                    answers = {"IsAcquiring": str(int(acquiring))}
                    socket.send(answers.get(text, f"TTLHandled: {text}").encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield heard
    finally:
        over.set()
        thread.join()


def test_open_ephys_hears_every_edge_once() -> None:
    port = free_port()
    with (
        open_ephys(port) as heard,
        pool_of(OpenEphysOutput(kind="open_ephys", name="oe", port=port, line=5)) as (
            pool,
            found,
        ),
    ):
        pool.edge(message(), ["oe"], in_ms(5000))
        pool.renew("cage", "stim", ["oe"], in_ms(5000))
        pool.edge(message(edge="off"), ["oe"], 0)
        assert [delivery.outcome for delivery in gather(pool, found, 2)] == ["confirmed"] * 2
        assert heard == ["TTL Line=5 State=0", "TTL Line=5 State=1", "IsAcquiring", "TTL Line=5 State=0"]


def test_open_ephys_that_is_not_acquiring_or_not_there() -> None:
    port = free_port()
    output = OpenEphysOutput(kind="open_ephys", name="oe", port=port, line=5)
    with pytest.raises(MbrError, match="Open Ephys does not answer"):
        Pool([output]).start(strict=True)
    with open_ephys(port, acquiring=False), pool_of(output) as (pool, found):
        pool.edge(message(), ["oe"], in_ms(5000))
        (delivery,) = gather(pool, found, 1)
        assert (delivery.outcome, "not acquiring" in delivery.detail) == ("failed", True)


# MQTT


def mosquitto() -> str:
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed (Debian: apt-get install mosquitto)")
    return program


@contextmanager
def broker(port: int, folder: Path) -> Iterator[None]:
    """What it was told it knows again when it is started again: who listens, and what they have not heard."""
    kept = f"persistence true\npersistence_location {folder}/\nuser root\n"
    (folder / "conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n{kept}")
    process = subprocess.Popen(
        [mosquitto(), "-c", folder / "conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: listens(port), "mosquitto")
        yield
    finally:
        process.terminate()
        process.wait()


def listens(port: int) -> bool:
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    try:
        client.connect("127.0.0.1", port)
    except OSError:
        return False
    client.disconnect()
    return True


@contextmanager
def mqtt_listener(port: int) -> Iterator[list[tuple[str, str]]]:
    heard: list[tuple[str, str]] = []
    subscribed = threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False)
    client.on_message = lambda _c, _u, m: heard.append((m.topic, m.payload.decode()))
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", port)
    client.subscribe("lab/#", qos=1)
    client.loop_start()
    assert subscribed.wait(PATIENCE_S)
    try:
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


def test_mqtt_confirms_and_a_broker_that_was_down_gets_everything_later(tmp_path: Path) -> None:
    mosquitto()
    port = free_port()
    output = MqttOutput(kind="mqtt", name="broker", host="127.0.0.1", port=port, topic="lab")
    with pytest.raises(MbrError, match=rf"the MQTT broker 127\.0\.0\.1:{port} cannot be used"):
        Pool([output]).start(strict=True)
    pool, found = Pool([output]), list[Delivery]()
    with broker(port, tmp_path):
        pool.start(strict=True)
        with mqtt_listener(port) as heard:
            pool.edge(message(1), ["broker"], 0)
            assert gather(pool, found, 1)[0].outcome == "confirmed"
            wait_for(lambda: ("lab/cage/stim", message(1).model_dump_json()[:20]) in short(heard), "the message")
            wait_for(lambda: status(heard) == "online", "the greeting")
    for number in range(2, 6):
        pool.edge(message(number), ["broker"], 0)
    time.sleep(1.0)
    assert not list(pool.deliveries())
    with broker(port, tmp_path), mqtt_listener(port) as heard:
        assert [d.message.trial for d in gather(pool, found, 5)] == [1, 2, 3, 4, 5]
        wait_for(lambda: {2, 3, 4, 5} <= trials(heard), "what was sent meanwhile")
        wait_for(lambda: status(heard) == "online", "the greeting")
        pool.stop(2.0)
        wait_for(lambda: status(heard) == "offline", "the goodbye")


def status(heard: list[tuple[str, str]]) -> str:
    """What was said last of the process."""
    return ["", *(text for topic, text in heard if topic == "lab/status")][-1]


def short(heard: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(topic, text[:20]) for topic, text in heard]


def trials(heard: list[tuple[str, str]]) -> set[int]:
    return {json.loads(text)["trial"] for topic, text in heard if topic == "lab/cage/stim"}


def test_a_broker_that_wants_a_password_gets_it_from_a_file_or_is_an_error_at_start(tmp_path: Path) -> None:
    program, port = mosquitto(), free_port()
    users = tmp_path / "users"
    maker = shutil.which("mosquitto_passwd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if maker is None:
        pytest.skip("mosquitto_passwd is not installed (Debian: apt-get install mosquitto)")
    subprocess.run([maker, "-b", "-c", users, "lab", "right"], check=True, capture_output=True)
    users.chmod(0o644)
    tmp_path.chmod(0o755)
    (tmp_path / "conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {users}\nuser root\n"
    )
    (tmp_path / "right").write_text("right\n")
    (tmp_path / "wrong").write_text("wrong\n")
    process = subprocess.Popen([program, "-c", tmp_path / "conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: listens(port), "mosquitto")
        plain = MqttOutput(kind="mqtt", name="b", host="127.0.0.1", port=port, topic="lab", username="lab")
        with pytest.raises(MbrError, match=r"output b: the MQTT broker .* cannot be used .*user name and password"):
            Pool([plain.model_copy(update={"password_file": tmp_path / "wrong"})]).start(strict=True)
        with pool_of(plain.model_copy(update={"password_file": tmp_path / "right"})) as (pool, found):
            pool.edge(message(), ["b"], 0)
            assert gather(pool, found, 1)[0].outcome == "confirmed"
        with pytest.raises(MbrError, match=r"output b: the file .*nowhere cannot be read"):
            Pool([plain.model_copy(update={"password_file": tmp_path / "nowhere"})])
    finally:
        process.terminate()
        process.wait()


def test_the_last_will_says_that_a_killed_process_is_gone(tmp_path: Path) -> None:
    mosquitto()
    port = free_port()
    program = (
        "import os, signal, sys\n"
        "from mbr_live.triggers.outputs.mqtt import MqttMessages\n"
        f"m = MqttMessages('b', '127.0.0.1', {port}, 'lab', username=None, password=None, tls=False)\n"
        "m.open(); print('open', flush=True); sys.stdin.read()\n"
    )
    with broker(port, tmp_path), mqtt_listener(port) as heard:
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        wait_for(lambda: status(heard) == "online", "the greeting")
        process.kill()
        process.communicate()
        wait_for(lambda: status(heard) == "offline", "the last will")


# HTTP


class Receiver(BaseHTTPRequestHandler):
    """Takes posts; answers what the server was told to."""

    server: Any

    def do_HEAD(self) -> None:
        self.answer(405)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.headers["Idempotency-Key"], self.headers["Authorization"], json.loads(body)))
        self.answer(self.server.answers.pop(0) if self.server.answers else 204)

    def answer(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def http_server(*answers: int) -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.posts, server.answers = [], list(answers)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_webhook_is_tried_until_it_is_taken_or_refused_for_good(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    with http_server(503, 429, 204, 404, 204) as server:
        output = WebhookOutput(
            kind="webhook", name="hook", url=f"http://127.0.0.1:{server.server_port}/t", token_file=tmp_path / "token"
        )
        with pool_of(output) as (pool, found):
            for number in (1, 2, 3):
                pool.edge(message(number), ["hook"], 0)
            gather(pool, found, 3)
        assert [(d.outcome, d.attempts, d.detail) for d in found] == [
            ("confirmed", 3, ""), ("failed", 1, "HTTP 404"), ("confirmed", 1, ""),
        ]  # fmt: skip
        assert [key for key, *_ in server.posts] == [message(n).id for n in (1, 1, 1, 2, 3)]
        assert {token for _, token, _ in server.posts} == {"Bearer secret"}
        assert server.posts[-1][2]["trial"] == 3


def test_a_webhook_that_is_not_there_is_an_error_at_start_and_awaited_later() -> None:
    port = free_port()
    output = WebhookOutput(kind="webhook", name="hook", url=f"http://127.0.0.1:{port}/")
    with pytest.raises(MbrError, match=rf"output hook: http://127\.0\.0\.1:{port}/ cannot be reached"):
        Pool([output]).start(strict=True)
    with pool_of(output, strict=False) as (pool, _):
        pool.edge(message(), ["hook"], 0)
        wait_for(lambda: pool.error("hook") != "", "an error to be known")
        assert pool.waiting() == {"hook": 1}


# OSC, ZeroMQ, LSL


def test_osc_sends_types_that_bonsai_reads() -> None:
    heard: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    dispatcher = Dispatcher()
    dispatcher.map("/mbr/trigger", lambda _address, *values: heard.put(values))
    with ThreadingOSCUDPServer(("127.0.0.1", 0), dispatcher) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        with pool_of(OscOutput(kind="osc", name="osc", port=server.server_address[1])) as (pool, found):
            pool.edge(message(3), ["osc"], 0)
            assert gather(pool, found, 1)[0].outcome == "sent"
            values = heard.get(timeout=PATIENCE_S)
        server.shutdown()
        thread.join()
    assert values == ("cage", "stim", 3, 1, 0, 7, 1_800_000_000.1234567)
    assert not any(isinstance(value, bool) for value in values)


def test_zeromq_is_heard_by_subscribers() -> None:
    output = ZeromqOutput(kind="zeromq", name="pub", endpoint=free_endpoint())
    with pool_of(output) as (pool, _):
        subscriber = StatusSubscriber(output.endpoint)
        heard: list[TriggerMessage] = []

        def one_comes() -> bool:
            pool.edge(message(len(heard) + 1), ["pub"], 0)
            heard.extend(TriggerMessage.model_validate_json(data) for data in subscriber.messages(0.1))
            return bool(heard)

        wait_for(one_comes, "a message")
        assert heard[0].trigger == "stim"
        subscriber.close()


def test_lsl_markers_have_the_time_of_the_decision() -> None:
    output = LslOutput(kind="lsl", name="lsl", stream=f"mbr-test-{os.getpid()}")
    with pool_of(output) as (pool, found):
        streams = pylsl.resolve_byprop("name", output.stream, timeout=PATIENCE_S)
        assert streams, "the stream is not found"
        inlet = pylsl.StreamInlet(streams[0])
        inlet.open_stream(timeout=PATIENCE_S)
        sent = message()
        time.sleep(0.5)
        pool.edge(sent, ["lsl"], 0)
        assert gather(pool, found, 1)[0].outcome == "sent"
        sample, at_s = inlet.pull_sample(timeout=PATIENCE_S)
        decided_s = (sent.decided_ns + offset_ns(lambda: round(pylsl.local_clock() * 1e9), time.time_ns)) / 1e9
        inlet.close_stream()
    assert TriggerMessage.model_validate_json(sample[0]) == sent
    assert abs(at_s - decided_s) < 0.005  # of the decision, though it was sent half a second later


def test_an_lsl_marker_has_the_time_of_the_decision_also_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, sent_s = BusyMachine(), []
    markers = LslMarkers("lsl", "stream", "session")
    monkeypatch.setattr(markers, "_outlet", SimpleNamespace(push_sample=lambda _, at_s: sent_s.append(at_s)))
    decided_ns = machine.monotonic_ns()
    sent = message().model_copy(update={"decided_ns": machine.EPOCH_NS + decided_ns})
    with monkeypatch.context() as patched:
        patched.setattr(time, "time_ns", machine.time_ns)
        patched.setattr(pylsl, "local_clock", lambda: machine.monotonic_ns() / 1e9)
        markers.send(sent)
    assert sent_s == [pytest.approx(decided_ns / 1e9, abs=1e-6)]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pythonosc", None)
    monkeypatch.delitem(sys.modules, "mbr_live.triggers.outputs.osc", raising=False)
    for name in [name for name in sys.modules if name.startswith("pythonosc.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MbrError, match=r"output o: kind osc needs the package pythonosc.*mbr-live\[outputs\]"):
        make_outlets([OscOutput(kind="osc", name="o", port=9000)], "s")


def test_a_line_that_is_closed_says_so() -> None:
    lines, _ = make_outlets([SerialOutput(kind="serial", name="l", port="/dev/nowhere", line=0)], "s")
    with pytest.raises(DeliveryError, match="closed"):
        lines["l"].hold(0.1, confirm=True)
