"""What scenarios share: a system or a part of it, an ear at what it says, its memory, and the processes it leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from chaos_scenarios.counting import Outcome
from mbr_live.config import DEMO_BUNDLE, Camera, Config, Simulated, VideoSource, Wire
from mbr_live.live.run import SYSTEM_FILE, System
from mbr_live.processes import SUPERVISOR_VARIABLE, Child
from mbr_live.status import LabelMessage, SystemStatus, parse_status
from mbr_live.wire import StatusSubscriber, free_endpoint

WARM_S = 16.0  # until labels come: the crop window settles, the network warms up
_STEP_S = 0.05
_READY_WITHIN_S = 90.0


class Watching:
    """Progress of the campaign, on one line."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.say = show


def system_config(out: Path, *cameras: Camera) -> Config:
    """A system with free addresses."""
    wire = Wire(frames=free_endpoint(), status=free_endpoint())
    return Config(out=out, bundle=DEMO_BUNDLE, wire=wire, camera=cameras)


def simulated(name: str, *, seed: int = 1) -> Camera:
    """The simulated animal."""
    return Camera(name=name, source=Simulated(kind="simulated", seed=seed))


def played(name: str, video: Path, *, speed: float = 1.0) -> Camera:
    """A video file as a camera."""
    return Camera(name=name, source=VideoSource(kind="file", path=video.resolve(), speed=speed))


class Ear:
    """Hears all that inference publishes, from a thread."""

    def __init__(self, config: Config) -> None:
        self.told: list[LabelMessage] = []
        self.heard_s: list[float] = []  # of every label; monotonic
        self.status: SystemStatus | None = None
        self._stop = threading.Event()
        self._endpoint = config.wire.status
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with closing(StatusSubscriber(self._endpoint)) as subscriber:
            while not self._stop.is_set():
                for data in subscriber.messages(0.1):
                    message = parse_status(data)
                    if isinstance(message, SystemStatus):
                        self.status = message
                    else:
                        self.told.append(message)
                        self.heard_s.append(time.monotonic())

    def close(self) -> None:
        """Hear no more."""
        self._stop.set()
        self._thread.join()


class Memory:
    """Resident memory of a process on the way; `with` it, its growth is in the outcome at the end."""

    def __init__(self, child: Child, outcome: Outcome, first_tenth_of: float) -> None:
        """`first_tenth_of` so many seconds, by guess, is for caches to fill; the growth is counted from its end."""
        self._child, self._outcome, self._from_s = child, outcome, first_tenth_of / 10
        self._start_s = time.monotonic()
        self._pid = child.pid

    def __enter__(self) -> Memory:
        return self

    def sample(self) -> None:
        """Look once. A process that was started anew begins anew here too."""
        pid = self._child.pid
        if pid is not None:
            now_s = time.monotonic() - self._start_s
            self._outcome.memory_mib.append((now_s, resident_mib(pid)))

    def __exit__(self, *_: object) -> None:
        samples = self._outcome.memory_mib
        if len(samples) > 20:
            start = len(samples) // 10
            self._outcome.growth_mib = samples[-1][1] - samples[start][1]


def resident_mib(pid: int) -> float:
    """Of a process; 0 for one that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


@contextmanager
def inference_alone(config: Config) -> Iterator[Child]:
    """A running inference process, for those who are cameras themselves."""
    config.out.mkdir(parents=True)
    path = config.out / SYSTEM_FILE
    path.write_text(config.model_dump_json(indent=2))
    child = Child("inference", ("infer", str(path)), config.out / "logs" / "inference.log")
    child.start()
    try:
        with closing(StatusSubscriber(config.wire.status)) as subscriber:
            if next(subscriber.messages(_READY_WITHIN_S), None) is None:
                raise RuntimeError(f"inference was not ready: {child.last_words()}")
        yield child
    finally:
        child.ask_to_stop()
        child.wait(30)


def looked_after(system: System, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
    """Supervise for so long, or until something is so; whether it came to be so."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        system.look_after()
        if until():
            return True
        time.sleep(_STEP_S)
    return until()


def kill(child: Child, number: signal.Signals = signal.SIGKILL) -> bool:
    """Send a signal, where there is somebody to get it."""
    if child.pid is None:
        return False
    os.kill(child.pid, number)
    return True


def processes_of(folder: Path) -> list[int]:
    """Processes of a system whose files lie in `folder`, by their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and any(word.startswith(f"{folder}/") for word in words):
            found.append(int(entry.name))
    return found


def without_supervisor() -> dict[str, str]:
    """The environment of a process that nobody supervises."""
    return {name: value for name, value in os.environ.items() if name != SUPERVISOR_VARIABLE}
