"""Cameras on a network that fails, and a broker that goes away."""

from __future__ import annotations

import getpass
import json
import random
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from cameras import Cable, MjpegServer, RtspServer, free_port, why_no_rtsp, write_pictures

from chaos_scenarios.counting import Outcome, outages_of
from chaos_scenarios.rig import WARM_S, Watching, running, simulated
from mbr_live.config import Camera, MjpegCamera, RtspCamera
from mbr_live.trigger_config import MqttOutput

CUTS = 9
LISTENS_WITHIN_S = 10.0
BROKER = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")


def cuts(folder: Path, seed: int, watching: Watching) -> Outcome:
    """A camera server dies, stands still, or its cable is cut (half-open), in turn, for 2.5 to 8 s."""
    outcome, random_ = Outcome("cuts", seed), random.Random(seed)
    pictures = folder / "pictures"
    pictures.mkdir()
    write_pictures(pictures, frames=300)
    why = why_no_rtsp()
    if why:
        outcome.notes.append(f"without RTSP: {why}")
    with (
        closing(MjpegServer(pictures, fps=30).start()) as mjpeg,
        closing(Cable(mjpeg.port)) as cable,
        closing(RtspServer(pictures)) as rtsp,
    ):
        cameras = [Camera(name="mjpeg", source=MjpegCamera(kind="mjpeg", url=f"http://127.0.0.1:{cable.port}/video"))]
        harms = [(cable.cut, cable.mend), (mjpeg.close, mjpeg.start)]
        if not why:
            rtsp.start()
            cameras.append(Camera(name="rtsp", source=RtspCamera(kind="rtsp", url=rtsp.url)))
            harms += [(rtsp.stall, rtsp.go_on), (rtsp.close, rtsp.start)]
        with running(folder / "out", outcome, watching, cameras) as rig:
            rig.go(WARM_S)
            for number in range(CUTS):
                begin, end = harms[number % len(harms)]
                begin()
                rig.go(random_.uniform(2.5, 8.0))
                end()
                rig.go(random_.uniform(3.0, 6.0))
            rig.go(WARM_S)
            outcome.expect(all(child.restarts == 0 for child in rig.children), "a process died")
    causes = Counter(cause for camera in cameras for cause in outages_of(rig.config, camera.name))
    outcome.expect(causes.total() >= CUTS, f"{CUTS} cuts, {causes.total()} outages in the camera logs")
    outcome.harm = f"{CUTS} cuts; causes in the logs: {', '.join(f'{c} {n}' for c, n in sorted(causes.items()))}"
    return outcome


class Broker:
    """mosquitto, which keeps on the disk what subscribers have not got yet."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        # As whoever runs this: a user of its own may not get into a temporary folder, and then it keeps nothing.
        self._config.write_text(
            f"user {getpass.getuser()}\nlistener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {folder}/\nmax_queued_messages 0\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens: a port that another program took meanwhile is no loss of ours."""
        self._process = subprocess.Popen(
            [str(BROKER), "-c", self._config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(round(LISTENS_WITHIN_S / 0.1)):
            if self._process.poll() is not None:
                raise SystemExit(f"mosquitto ended at once ({self._process.returncode}): is port {self.port} taken?")
            with closing(socket.socket()) as knock:
                if knock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise SystemExit(f"mosquitto does not listen at port {self.port} after {LISTENS_WITHIN_S:.0f} s")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@contextmanager
def subscriber(port: int) -> Iterator[Counter[str]]:
    """The ids of all messages, heard by a client whose session outlives the broker's absence."""
    ids: Counter[str] = Counter()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="chaos", clean_session=False)

    def take(_client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        if message.topic != "mbr-live/status":
            ids[json.loads(message.payload)["id"]] += 1

    client.on_message = take
    client.on_connect = lambda *_: client.subscribe("mbr-live/#", qos=1)
    client.reconnect_delay_set(1, 1)
    client.connect_async("127.0.0.1", port)
    client.loop_start()
    try:
        yield ids
    finally:
        client.loop_stop()


def broker_down(folder: Path, seed: int, watching: Watching) -> Outcome:
    """The MQTT broker is stopped and started again while triggers fire; the output process is killed meanwhile, too."""
    outcome, random_ = Outcome("broker", seed), random.Random(seed)
    if BROKER is None:
        outcome.skipped = "no mosquitto (Debian: apt-get install mosquitto)"
        return outcome
    with closing_broker(folder / "broker") as broker, subscriber(broker.port) as ids:
        more = [MqttOutput(kind="mqtt", name="broker", host="127.0.0.1", port=broker.port)]
        cameras = (simulated("a", seed=1), simulated("b", seed=2))
        with running(folder / "out", outcome, watching, cameras, more=more, ids=[ids]) as rig:
            rig.go(WARM_S)
            for number in range(4):
                broker.stop()
                rig.go(random_.uniform(4.0, 15.0))
                if number in (1, 3):
                    rig.harm(rig.system.outputs[0])
                    rig.go(random_.uniform(3.0, 8.0))
                broker.start()
                rig.go(random_.uniform(5.0, 10.0))
            rig.go(10.0)
    outcome.harm = "broker away 4 times; output process killed twice meanwhile"
    outcome.notes.append(f"{len(ids)} of the edges heard through the broker")
    return outcome


@contextmanager
def closing_broker(folder: Path) -> Iterator[Broker]:
    """A broker that runs, unless a scenario stops it."""
    folder.mkdir()
    broker = Broker(folder)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
