"""Services of systemd: the units are valid and closed, and the processes tell systemd how they are."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from live import PATIENCE_S, mbr_live, simulated, system_config

from mbr_live.config import Config, Labels, Monitor, NetworkCamera, Recording, Store
from mbr_live.keys import make_keys
from mbr_live.live.service import plan
from mbr_live.trigger_config import OscOutput, Trigger, WebhookOutput
from mbr_live.types import MbrError

EXPOSURE = 3.0  # most that `systemd-analyze security` may say of a service


@pytest.fixture
def config(tmp_path: Path) -> Config:
    plain = system_config(tmp_path / "live", simulated("cage-1"), simulated("cage_2"))
    output = OscOutput(kind="osc", name="osc", port=9000)
    trigger = Trigger(name="stim", camera="cage-1", when="onset", all=("grooming",), on_s=0.1, outputs=("osc",))
    update = {
        "monitor": Monitor(metrics_port=9464), "trigger": (trigger,), "output": (output,),
        "store": Store(url=f"sqlite:///{tmp_path / 'store' / 'mbr.sqlite'}"),
        "recording": Recording(clips=("grooming",)), "labels": Labels(rotate="hour", parquet=True),
    }  # fmt: skip
    return plain.model_copy(update=update)


@pytest.fixture
def config_file(config: Config, tmp_path: Path) -> Path:
    path = tmp_path / "system.json"
    path.write_text(config.model_dump_json())
    return path


@pytest.fixture
def installed(config_file: Path, tmp_path: Path) -> Path:
    """Units in a file system of their own."""
    if shutil.which("systemctl") is None or shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here (Debian: apt-get install systemd)")
    root = tmp_path / "root"
    done = mbr_live("service", config_file, "--root", root, "--user", "root", "--install")
    assert done.returncode == 0, done.stderr
    return root / "etc" / "systemd" / "system"


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_the_units_are_valid_and_the_target_wants_every_process(installed: Path) -> None:
    done = analyze("verify", "--man=no", *installed.glob("*.service"), installed / "mbr.target")
    assert done.returncode == 0, done.stderr
    ours = [line for line in done.stderr.splitlines() if "mbr" in line]
    assert not ours
    wanted = (installed / "mbr.target").read_text()
    aside = ("mbr-monitor", "mbr-store", "mbr-clips", "mbr-parquet")
    for name in ("mbr-infer", "mbr-capture@cage-1", "mbr-capture@cage_2", "mbr-output", *aside):
        assert f"{name}.service" in wanted
    assert (installed / "multi-user.target.wants" / "mbr.target").is_symlink()


def test_the_units_leave_little_open(installed: Path) -> None:
    for unit in sorted(installed.glob("*.service")):
        done = analyze("security", "--offline=yes", f"--threshold={EXPOSURE * 10:.0f}", "--no-pager", unit)
        assert done.returncode == 0, done.stdout[-400:] + done.stderr


def test_it_shows_what_it_would_do_and_does_nothing(config_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    done = mbr_live("service", config_file, "--root", root)
    assert done.returncode == 0, done.stderr
    assert "mbr-infer.service" in done.stdout and "nothing was changed" in done.stdout
    assert not root.exists()


def test_networks_open_with_keys_alone_and_homes_where_they_are_used(config: Config, tmp_path: Path) -> None:
    units = Path("/etc/systemd/system")
    program = Path("/opt/mbr-live/bin/mbr-live")
    closed = config.model_copy(
        update={"out": Path("/srv/mbr"), "bundle": Path("/opt/bundle"), "calibration": Path("/srv/cal"), "store": None}
    )
    infer = plan(Path("/etc/mbr-live/system.toml"), closed, "mbr", program).files[units / "mbr-infer.service"]
    assert "IPAddressDeny=any" in infer and "ProtectHome=yes" in infer and "ReadWritePaths=/srv/mbr\n" in infer
    make_keys(tmp_path / "keys")
    wire = config.wire.model_copy(update={"keys": tmp_path / "keys"})
    opened = closed.model_copy(update={"wire": wire, "out": Path("/home/lab/mbr")})
    infer = plan(Path("/etc/mbr-live/system.toml"), opened, "mbr", program).files[units / "mbr-infer.service"]
    assert "IPAddressDeny" not in infer and "ProtectHome=read-only" in infer
    with pytest.raises(MbrError, match="plain path"):
        plan(Path("/etc/my lab/system.toml"), closed, "mbr", program)


def test_services_see_and_write_what_the_configuration_names(config: Config) -> None:
    """Each path alone, while all else lies outside of the homes."""
    home, units = Path("/home/lab/x"), Path("/etc/systemd/system")
    plain = config.model_copy(
        update={"out": Path("/srv/mbr"), "bundle": Path("/opt/bundle"), "calibration": Path("/srv/cal"), "store": None}
    )
    login = NetworkCamera.model_validate({"url": "rtsp://x/y", "user": "lab", "password_file": home})
    hook = WebhookOutput(kind="webhook", name="hook", url="https://x.lab/y", token_file=home)
    for update in (
        {},
        {"calibration": home},
        {"wire": plain.wire.model_copy(update={"keys": home})},
        {"camera": (plain.camera[0].model_copy(update={"source": login}),)},
        {"output": (hook,)},
        {"monitor": Monitor(alarm_command=(str(home), "--urgent"))},
        {"store": Store(url=f"sqlite:///{home / 'mbr.sqlite'}")},
    ):
        used = plain.model_copy(update=update)
        files = plan(Path("/etc/mbr-live/system.toml"), used, "mbr", Path("/opt/mbr-live/bin/mbr-live")).files
        seen = f"ProtectHome={'read-only' if update else 'yes'}\n"
        assert all(seen in text for path, text in files.items() if path.suffix == ".service"), update
        if used.store:
            assert f"ReadWritePaths=/srv/mbr -{home}\n" in files[units / "mbr-store.service"]


def test_a_store_without_a_whole_path_is_refused(config: Config) -> None:
    relative = config.model_copy(update={"store": Store(url="sqlite:///mbr.sqlite")})
    with pytest.raises(MbrError, match="the whole path"):
        plan(Path("/etc/mbr-live/system.toml"), relative, "mbr", Path("/opt/mbr-live/bin/mbr-live"))


def test_the_processes_tell_systemd_that_they_are_ready_and_alive(config: Config, config_file: Path) -> None:
    """What systemd would hear of inference, a camera and the monitor, on a real socket."""
    address = config.out.with_name("notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        for arguments in (["infer"], ["monitor"], ["capture", "cage-1"]):
            command = [sys.executable, "-m", "mbr_live", arguments[0], str(config_file), *arguments[1:]]
            heard = says(systemd, command, {**os.environ, "NOTIFY_SOCKET": str(address)})
            assert heard.index("READY=1") <= heard.index("WATCHDOG=1"), arguments


def says(systemd: socket.socket, command: Sequence[str], environment: dict[str, str]) -> list[str]:
    heard: list[str] = []
    systemd.settimeout(1.0)
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        until_s = time.monotonic() + PATIENCE_S
        while "WATCHDOG=1" not in heard and time.monotonic() < until_s:
            try:
                heard.append(systemd.recv(100).decode())
            except TimeoutError:
                continue
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    systemd.setblocking(False)
    while True:
        try:
            systemd.recv(100)
        except BlockingIOError:
            return heard
