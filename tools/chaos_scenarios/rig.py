"""What scenarios share: a system or a part of it, an ear at what it says, its memory, and the processes it leaves."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from chaos_scenarios.counting import Outcome, count_frames, count_told
from chaos_scenarios.ear import Ear
from chaos_scenarios.receivers import Receiver, count_pulses, count_triggers, with_triggers
from mbr_live.config import DEMO_BUNDLE, Camera, Config, Recording, Simulated
from mbr_live.live.run import SYSTEM_FILE, System, free_wire
from mbr_live.processes import Child
from mbr_live.status import read_output_status
from mbr_live.trigger_config import AnyOutput
from mbr_live.triggers.outputs.simulated_box import SimulatedBox
from mbr_live.wire.status import StatusSubscriber

WARM_S = 16.0  # until labels come: the crop window settles, the network warms up
_STEP_S = 0.05
_READY_WITHIN_S = 90.0


class Watching:
    """Progress of the campaign, on one line."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.say = show


def system_config(out: Path, *cameras: Camera) -> Config:
    """A system with free addresses."""
    wire = free_wire()
    return Config(out=out, bundle=DEMO_BUNDLE, wire=wire, camera=cameras)


def simulated(name: str, *, seed: int = 1) -> Camera:
    """The simulated animal."""
    return Camera(name=name, source=Simulated(kind="simulated", seed=seed))


class Memory:
    """Resident memory of a process on the way; `with` it, its growth is in the outcome at the end."""

    def __init__(self, child: Child, outcome: Outcome) -> None:
        self._child, self._outcome = child, outcome
        self._start_s = self._next_s = time.monotonic()
        self._pid = child.pid

    def __enter__(self) -> Memory:
        return self

    def sample(self) -> None:
        """Look, at most once a second."""
        pid, now_s = self._child.pid, time.monotonic()
        if pid is not None and now_s >= self._next_s:
            self._next_s = now_s + 1.0
            self._outcome.memory_mib.append((now_s - self._start_s, resident_mib(pid)))

    def __exit__(self, *_: object) -> None:
        samples = self._outcome.memory_mib
        if len(samples) > 20 and self._child.pid == self._pid:  # a process that was started anew grew anew
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


@dataclass
class Rig:
    """A whole system with triggers, and all that listens to it."""

    config: Config
    system: System
    ear: Ear
    memory: Memory
    watching: Watching
    kills: Counter[str] = field(default_factory=Counter)

    @property
    def children(self) -> list[Child]:
        """All that may be harmed."""
        return [self.system.inference, *self.system.captures, *self.system.outputs]

    def go(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Supervise for so long, or until something is so; whether it came to be so."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.system.look_after()
            self.memory.sample()
            self.watching.say(f"{len(self.ear.told)} labels, {sum(self.kills.values())} times harmed")
            if until():
                return True
            time.sleep(_STEP_S)
        return until()

    def harm(self, child: Child, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, where there is somebody to get it."""
        pid = child.pid
        if pid is None:
            return
        self.kills[child.name] += number != signal.SIGCONT
        os.kill(pid, number)
        if number == signal.SIGKILL:
            child.wait(5)

    @property
    def output_is_ready(self) -> bool:
        """Whether the output process is there and at work."""
        status = read_output_status(self.config.out)
        return status is not None and status.pid == self.system.outputs[0].pid


@contextmanager
def running(
    out: Path,
    outcome: Outcome,
    watching: Watching,
    cameras: Sequence[Camera],
    *,
    more: Sequence[AnyOutput] = (),
    ids: Sequence[Counter[str]] = (),
    recording: Recording | None = None,
) -> Iterator[Rig]:
    """A whole system; when it has ended, everything is counted into `outcome`.

    `more` outputs get every trigger too, and `ids` is what their receivers received.
    """
    with SimulatedBox() as box, Receiver() as receiver:
        config = with_triggers(system_config(out, *cameras), box, receiver.url, more)
        config = config.model_copy(update={"recording": recording} if recording else {})
        with closing(Ear(config)) as ear:
            with System(config, restarts_per_minute=100_000) as system:
                with Memory(system.inference, outcome) as memory:
                    rig = Rig(config, system, ear, memory, watching)
                    yield rig
                    rig.go(60, until=lambda: rig.output_is_ready)  # it accounts for what nobody heard
                restarts = sum(child.restarts for child in rig.children)
            time.sleep(0.5)  # what was published last
        count_frames(outcome, config)
        count_told(outcome, config, ear.told)
        count_triggers(outcome, config, [receiver.ids, *ids])
        count_pulses(outcome, config, box)
    outcome.notes.append(f"{restarts} restarts")


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


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
