"""What is no label, where the output process expects labels: it must live, and nothing may fire."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import zmq

from chaos_scenarios.counting import Outcome
from chaos_scenarios.receivers import Receiver, count_pulses, with_triggers
from chaos_scenarios.rig import Memory, Watching, simulated, system_config
from mbr_live.config import Config
from mbr_live.live.run import SYSTEM_FILE
from mbr_live.processes import Child
from mbr_live.status import LabelMessage, read_output_status
from mbr_live.triggers.log import TRIGGERS_SUFFIX, read_receipts
from mbr_live.triggers.outputs.simulated_box import SimulatedBox
from mbr_live.wire.messages import own_clock

CAMERA = "cage"
_VALUES = (-1, 2**64, 1e308, None, "", "x" * 5000, [], {}, True, [1, 0, 1], [[1]], "ok", "\u0000")
_SCRIPT = (0, 0, 1, 1, 1, 0, 0)  # of grooming, honest: one trial of its onset, one of its offset


def forged(folder: Path, seed: int, watching: Watching, messages: int = 100_000) -> Outcome:
    """Fuzzed messages in the place of labels to the output process; then honest labels, which must fire once."""
    outcome, random_ = Outcome("forged", seed), random.Random(seed)
    with SimulatedBox() as box, Receiver() as receiver, zmq.Context() as context, context.socket(zmq.PUB) as publisher:
        config = with_triggers(system_config(folder / "out", simulated(CAMERA)), box, receiver.url)
        config.out.mkdir(parents=True)
        (config.out / SYSTEM_FILE).write_text(config.model_dump_json())
        publisher.setsockopt(zmq.XPUB_NODROP, 1)  # waits instead of dropping: all of them are to arrive
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.bind(config.wire.status)
        child = Child("output", ("output", str(config.out / SYSTEM_FILE)), config.out / "logs" / "output.log")
        child.start()
        try:
            _until_ready(config, child)
            time.sleep(1.0)  # subscribed
            with Memory(child, outcome) as memory:
                for number in range(messages):
                    publisher.send(fuzzed(random_))
                    if number % 1000 == 0:
                        memory.sample()
                        watching.say(f"{number} messages")
                before = len(_decided(config))
                for index, grooming in enumerate(_SCRIPT, 2**40):  # beyond what fuzzed messages may have numbered
                    publisher.send(_label(index, grooming, own_clock()).model_dump_json().encode())
                    time.sleep(0.1)
                time.sleep(2.0)
                memory.sample()
            outcome.expect(child.exit_code is None, f"the output process ended: {child.last_words()[-300:]}")
        finally:
            child.ask_to_stop()
            child.wait(15)
        decided = _decided(config)
        count_pulses(outcome, config, box)
        outcome.triggers = len(decided)
        outcome.triggers_false += before
        outcome.triggers_lost += max(0, 4 - len(decided)) + (len(decided) - len(receiver.ids))
        outcome.expect(len(decided) == 4, f"{len(decided)} edges after honest labels, expected 4")
    outcome.harm = f"{messages} fuzzed messages in the place of labels"
    return outcome


def fuzzed(random_: random.Random) -> bytes:
    """One message that must not fire: none says that its label was made by the clock of this machine."""
    good = _label(random_.randrange(1000), random_.choice((0, 1)), "of another machine").model_dump_json().encode()
    match random_.randrange(5):
        case 0:
            return random_.randbytes(random_.randrange(3000))
        case 1:
            spoilt = bytearray(good)
            for _ in range(random_.randrange(1, 4)):
                spoilt[random_.randrange(len(spoilt))] = random_.randrange(256)
            return bytes(spoilt)
        case 2:
            table = json.loads(good)
            table[random_.choice([*table, "more"])] = random_.choice(_VALUES)
            return json.dumps(table).encode()
        case 3:
            return good[: random_.randrange(len(good))]
        case _:
            return random_.choice((b"{", b"[", b'{"a":', b"\xff")) * random_.randrange(1, 6000)


def _label(index: int, grooming: int, clock: str) -> LabelMessage:
    now_ns = time.monotonic_ns()
    return LabelMessage(
        camera=CAMERA, index=index, status="ok", labels=[grooming, 0], time_ns=index, clock=clock, captured_ns=now_ns,
        received_ns=now_ns, labelled_ns=now_ns,
    )  # fmt: skip


def _decided(config: Config) -> list[dict[str, str]]:
    return [row for row in read_receipts(config.out / f"{CAMERA}{TRIGGERS_SUFFIX}") if row["what"] == "decided"]


def _until_ready(config: Config, child: Child) -> None:
    for _ in range(600):
        status = read_output_status(config.out)
        if status is not None and status.pid == child.pid:
            return
        time.sleep(0.1)
    raise RuntimeError(f"the output process was not ready: {child.last_words()}")
