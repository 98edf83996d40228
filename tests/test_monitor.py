"""Metrics and alarms: what inference says, for machines and for people who are asleep."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import PATIENCE_S, labelled, mbr_live, simulated, system_config, wait_for
from prometheus_client.parser import text_string_to_metric_families
from trigger_rig import rig_config, trigger

from mbr_live.config import Config, Monitor
from mbr_live.live.run import System
from mbr_live.monitoring.alarms import SILENT_AFTER_S, Watch, hear, look, raised
from mbr_live.monitoring.watch import Dashboard, plain_lines
from mbr_live.status import CameraStatus, OutputStatus, SystemStatus, passed_on
from mbr_live.trigger_config import SerialOutput
from mbr_live.triggers.outputs.simulated_box import SimulatedBox
from mbr_live.wire.status import StatusPublisher

GRAFANA = Path(__file__).resolve().parent.parent / "docs" / "grafana"


def camera(state: str = "live", ok: int = 10, blind: int = 0, dropped: int = 0) -> CameraStatus:
    return CameraStatus.model_validate(
        {"name": "a", "state": state, "fps": 10.0, "last_index": ok, "latency": {"p50_ms": 4.0},
         "rows": {"ok": ok, "blind": blind}, "drops": {"dropped_queue_full": dropped} if dropped else {}}
    )  # fmt: skip


def system(*cameras: CameraStatus) -> SystemStatus:
    return SystemStatus(
        out="out", bundle="demo", engine="cpu", behaviours=["grooming"], uptime_s=1.0, cameras=list(cameras)
    )


def told(statuses: list[CameraStatus | None], after_s: float = 3.0) -> list[tuple[int, str, bool]]:
    """(second, kind, raised) of all that is told when inference says these once a second; None: it is silent."""
    watch, found = Watch(0.0), []
    for second, status in enumerate(statuses, 1):
        if status is not None:
            watch = hear(system(status), float(second), watch)
        alarms, watch = look(float(second), after_s, watch)
        found += [(second, alarm.kind, alarm.raised) for alarm in alarms]
    return found


def test_a_quiet_system_is_quiet() -> None:
    assert told([camera(ok=10 * second) for second in range(50)]) == []


def test_labels_that_wait_for_room_are_told_and_shown() -> None:
    """And not as a camera that sends nothing: frames come, but their labels are not out."""
    waiting = camera(state="stale").model_copy(update={"unwritten": 40})
    assert told([camera(), *[waiting] * 6, *[camera()] * 6]) == [
        (5, "labels_waiting", True), (10, "labels_waiting", False),
    ]  # fmt: skip
    dashboard = Dashboard()
    dashboard.take(system(waiting), 0.0)
    assert "40 rows wait for room on the disk" in "\n".join(plain_lines(dashboard, 0.0))


def test_a_camera_whose_pictures_are_wrong_is_told() -> None:
    wrong = camera().model_copy(update={"alarms": {"moved": "the picture is off the reference by 4.0% of its width"}})
    assert told([camera(), *[wrong] * 6, *[camera()] * 6]) == [(5, "camera_unwell", True), (10, "camera_unwell", False)]


def test_a_lost_camera_is_shown_with_its_cause() -> None:
    lost = camera("stale").model_copy(
        update={"lost": "refused", "lost_for_s": 12.3, "alarms": {"blurred": "the picture has 20% of its sharpness"}}
    )
    dashboard = Dashboard()
    dashboard.take(system(lost), 0.0)
    (line,) = plain_lines(dashboard, 0.0)
    assert "lost · refused · 12 s" in line
    assert "blurred: the picture has 20% of its sharpness" in line


def test_a_silent_camera_is_told_once_and_told_to_be_over() -> None:
    statuses = [camera(), *[camera("stale")] * 20, *[camera()] * 20]
    assert told(statuses) == [(5, "camera_silent", True), (24, "camera_silent", False)]


def test_a_hiccup_is_not_worth_a_word_but_a_camera_that_comes_and_goes_is() -> None:
    assert told([camera(), camera("stale"), *[camera()] * 9]) == []
    assert (5, "camera_silent", True) in told([camera("stale"), camera()] * 6)


def test_alive_but_blind() -> None:
    statuses = [camera(ok=10, blind=10 * second) for second in range(9)]
    assert told(statuses) == [(5, "nothing_classified", True)]


def test_frames_that_are_dropped() -> None:
    statuses = [camera(ok=10 * second, dropped=min(second, 8)) for second in range(20)]
    assert told(statuses) == [(5, "frames_dropped", True), (12, "frames_dropped", False)]


def test_while_inference_is_silent_nothing_is_known_of_cameras() -> None:
    statuses = [*[camera("stale")] * 6, *[None] * 20, *[camera()] * 9]
    silent_from = 6 + SILENT_AFTER_S + 1
    assert told(statuses) == [
        (4, "camera_silent", True),
        (silent_from + 3, "inference_silent", True),
        (29, "camera_silent", False),
        (29, "inference_silent", False),
    ]


STATUSES = st.one_of(
    st.none(), st.builds(camera, st.sampled_from(["live", "stale", "ended"]), st.integers(0, 99), st.integers(0, 99))
)


@given(st.lists(STATUSES, max_size=80), st.floats(1.0, 8.0))
def test_every_alarm_is_raised_before_it_is_over_and_never_twice(
    statuses: list[CameraStatus | None], after_s: float
) -> None:
    open_: set[str] = set()
    for _, kind, is_raised in told(statuses, after_s):
        assert is_raised == (kind not in open_)
        open_ ^= {kind}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scraped(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as page:
        families = text_string_to_metric_families(page.read().decode())
        return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def shows(port: int, *metric: str) -> float | None:
    """What is served at a port of a metric; None where nothing is served, or not of that."""
    try:
        return scraped(port).get(metric)
    except OSError:
        return None


def test_metrics_and_status_of_a_real_system(tmp_path: Path) -> None:
    port = free_port()
    plain = system_config(tmp_path / "live", simulated("cage"))
    config = plain.model_copy(update={"monitor": Monitor(metrics_port=port)})
    with System(config) as running:
        wait_for(lambda: shows(port, "mbr_label_rows_total", "cage", "warmup"), "labels", running)
        found = scraped(port)
        done = mbr_live("status", running.config_path, "--json")
        words = mbr_live("status", running.config_path)
    assert found["mbr_inference_up",] == 1.0 and found["mbr_camera_up", "cage"] == 1.0
    assert 0.0 < found["mbr_capture_to_label_seconds", "cage", "p50"] < 10.0
    said = SystemStatus.model_validate_json(done.stdout)
    assert done.returncode == 0 and said.cameras[0].name == "cage"
    assert words.returncode == 0 and words.stdout.startswith("cage ")
    done = mbr_live("status", running.config_path)
    assert done.returncode == 2 and "nothing was heard" in done.stderr


def test_log_lines_of_every_process_can_be_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBR_LIVE_LOG", "json")
    config = system_config(tmp_path / "live", simulated("cage"))
    with System(config) as running:
        wait_for(lambda: labelled(config.out, "cage"), "labels", running)
    logs = (config.out / "logs").glob("*.log")
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    assert all({"time", "level", "module", "pid", "text"} <= set(line) for line in lines)
    assert any("sampled" in line["text"] for line in lines)


def test_the_alarm_command_hears_that_a_camera_fell_silent_and_that_it_is_back(tmp_path: Path) -> None:
    heard, script = tmp_path / "heard.jsonl", tmp_path / "tell; rm -rf x.py"  # a name that a shell would stumble over
    script.write_text(f"import sys; open({str(heard)!r}, 'a').write(sys.stdin.read())")
    config = system_config(tmp_path / "live", simulated("a"))
    settings = Monitor(alarm_command=(sys.executable, str(script)), alarm_after_s=1.0)
    process, publisher = monitored(config.model_copy(update={"monitor": settings}), tmp_path)
    with process, closing(publisher):
        for lines, state in ((1, "stale"), (2, "live")):
            say(publisher, system(camera(state)), lambda lines=lines: len(lines_of(heard)) == lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    raised_, over = map(json.loads, lines_of(heard))
    assert (raised_["kind"], raised_["subject"], raised_["raised"]) == ("camera_silent", "a", True)
    assert (over["kind"], over["raised"]) == ("camera_silent", False) and over["at"] > raised_["at"]


def test_a_monitor_that_is_killed_tells_nothing_twice_and_everything_to_the_end(tmp_path: Path) -> None:
    """Who is told that a camera fell silent is told that it is back, whatever became of the monitor meanwhile."""
    heard, script = tmp_path / "heard.jsonl", tmp_path / "tell.py"
    script.write_text(f"import sys; open({str(heard)!r}, 'a').write(sys.stdin.read())")
    config = system_config(tmp_path / "live", simulated("a"))
    config.out.mkdir()
    config = config.model_copy(
        update={"monitor": Monitor(alarm_command=(sys.executable, str(script)), alarm_after_s=1)}
    )

    def told(state: str, number: int) -> None:
        """So many alarms have been told when inference has said this for a while, and the monitor is killed."""
        process, publisher = monitored(config, tmp_path)
        with process, closing(publisher):
            for second in range(100):
                publisher.publish(system(camera(state)))
                time.sleep(0.5)
                if second >= 8 and len(heard.read_text().splitlines()) >= number:
                    break
            process.kill()

    for state, number in (("live", 0), ("stale", 1), ("stale", 1), ("live", 2), ("live", 2)):
        heard.touch()
        told(state, number)
    alarms = [json.loads(line) for line in heard.read_text().splitlines()]
    assert [(each["kind"], each["raised"]) for each in alarms] == [("camera_silent", True), ("camera_silent", False)]
    assert alarms[1]["lasted_s"] > alarms[0]["lasted_s"] + 4
    (config.out / "alarms.json").write_text("{")
    told("live", 2)
    assert "alarms.json: cannot be read" in (tmp_path / "monitor.log").read_text()


def test_an_alarm_command_that_cannot_be_run_does_not_end_the_monitor(tmp_path: Path) -> None:
    config = system_config(tmp_path / "live", simulated("a"))
    settings = Monitor(alarm_command=(str(tmp_path / "nothing"),), alarm_after_s=1.0)
    process, publisher = monitored(config.model_copy(update={"monitor": settings}), tmp_path)
    with process, closing(publisher):
        log = tmp_path / "monitor.log"
        say(publisher, system(camera("stale")), lambda: "cannot be run" in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def monitored(config: Config, folder: Path) -> tuple[subprocess.Popen[bytes], StatusPublisher]:
    """A monitor process, and the voice of inference that it hears."""
    path, publisher = folder / "system.json", StatusPublisher(config.wire.status)
    path.write_text(config.model_dump_json())
    with (folder / "monitor.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "mbr_live", "monitor", str(path)], stderr=log)
    return process, publisher


def say(publisher: StatusPublisher, status: SystemStatus, until: Callable[[], bool]) -> None:
    """As inference does, again and again."""

    def said() -> bool:
        publisher.publish(status)
        time.sleep(0.2)
        return until()

    wait_for(said, "the monitor")


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_a_port_in_use_and_nothing_to_do_are_explained(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        config = system_config(tmp_path / "live", simulated("a"))
        path = tmp_path / "system.json"
        path.write_text(config.model_copy(update={"monitor": Monitor(metrics_port=port)}).model_dump_json())
        done = mbr_live("monitor", path)
    assert done.returncode == 2 and str(port) in done.stderr and "metrics_port" in done.stderr
    path.write_text(config.model_dump_json())
    done = mbr_live("monitor", path)
    assert done.returncode == 2 and "[monitor]" in done.stderr
    with pytest.raises(ValueError, match="nothing would be monitored"):
        Monitor()


def test_what_is_raised_is_what_the_metrics_say() -> None:
    watch = Watch(0.0)
    for second in range(1, 8):
        watch = hear(system(camera("stale")), float(second), watch)
        _, watch = look(float(second), 3.0, watch)
    assert raised(watch) == {("camera_silent", "a")}


def outputs(**keys: object) -> SystemStatus:
    status = OutputStatus.model_validate({"pid": 1, "said_ns": 10**9, **keys})
    return system(camera()).model_copy(update={"output": passed_on(status, 2 * 10**9)})


def test_an_output_process_that_is_silent_or_fails_is_told() -> None:
    laser = {"name": "laser", "waiting": 0}
    for status, expected in (
        (outputs(outputs=[laser]), set()),
        (outputs(outputs=[laser | {"error": "no such port"}]), {("output_unusable", "laser")}),
        (outputs(outputs=[laser | {"failing": True}]), {("trigger_failed", "laser")}),
        (outputs(said_ns=-2 * 10**9, outputs=[laser | {"failing": True}]), {("output_silent", "output")}),
        (system(camera()).model_copy(update={"output": passed_on(None, 5)}), {("output_silent", "output")}),
    ):
        watch = Watch(0.0)
        for second in range(1, 8):
            watch = hear(status, float(second), watch)
            _, watch = look(float(second), 3.0, watch)
        assert raised(watch) == expected


def test_triggers_are_seen_wherever_people_look(tmp_path: Path) -> None:
    """On the metrics, in the status and on the dashboard; and that the output process hangs."""
    port = free_port()
    with SimulatedBox() as box:
        laser = SerialOutput(kind="serial", name="laser", port=box.port, line=1)
        plain = rig_config(tmp_path / "live", [trigger([laser])], [laser])
        config = plain.model_copy(update={"monitor": Monitor(metrics_port=port)})
        with System(config) as running:
            wait_for(lambda: shows(port, "mbr_output_up") == 1.0, "the output process to be seen", running)
            found, families = scraped(port), served(port)
            well, words = mbr_live("status", running.config_path, "--json"), mbr_live("status", running.config_path)
            os.kill(running.outputs[0].pid or 0, signal.SIGSTOP)
            wait_for(lambda: shows(port, "mbr_output_up") == 0.0, "it to be missed")
            ill = mbr_live("status", running.config_path)
            os.kill(running.outputs[0].pid or 0, signal.SIGCONT)
    assert found["mbr_output_usable", "laser"] == 1.0 and found["mbr_output_waiting", "laser"] == 0.0
    assert found["mbr_trials_total", "real", "cage/stim"] == found["mbr_trigger_on", "cage/stim"] == 0.0
    said = SystemStatus.model_validate_json(well.stdout).output
    assert said is not None and said.up and said.triggers[0].name == "cage/stim"
    assert (well.returncode, words.returncode, ill.returncode) == (0, 0, 1)
    assert "triggers: cage/stim (0 trials)" in words.stdout
    assert "no trigger can fire" in ill.stdout
    for file in ("mbr-live.json", "alerts.yml"):
        shown = set(re.findall(r"\bmbr_\w+", (GRAFANA / file).read_text()))
        assert shown and shown <= families, f"{file}: {shown - families}"


def served(port: int) -> set[str]:
    """The names of all metrics, also of those that have no value yet."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as page:
        return {line.split()[2] for line in page.read().decode().splitlines() if line.startswith("# TYPE")}
