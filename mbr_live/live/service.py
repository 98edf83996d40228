"""`mbr-live service`: a live system as systemd services. Shows what it will do; does it when told to."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel

from mbr_live.config import Config, Store
from mbr_live.types import MbrError

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries the units in the package; a checkout has them beside the package.
UNITS = (_PACKAGE if (_PACKAGE / "systemd").is_dir() else _PACKAGE.parent) / "systemd"
_TARGET = "mbr.target"
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))


@dataclass(frozen=True, slots=True)
class Plan:
    """Files to write, by their place, and commands to run afterwards."""

    files: dict[Path, str]
    commands: tuple[tuple[str, ...], ...]


def plan(config_file: Path, config: Config, user: str, program: Path, root: Path = Path("/")) -> Plan:
    """What makes the system of `config_file` services of `user`, in the file system at `root`."""
    words = {
        "PROGRAM": _unit_path(program),
        "CONFIG": _unit_path(config_file),
        "USER": user,
        "OUT": _unit_path(config.out),
        "STORE": " ".join(f"-{_unit_path(folder)}" for folder in _store_folders(config.store)),
        "HOME": _home_protection(program, config_file, *_used(config)),
        "NETWORK": "" if config.wire.keys else "IPAddressDeny=any\nIPAddressAllow=localhost",
        "MEMBERS": " ".join(_members(config)),
    }
    units = root / "etc" / "systemd" / "system"
    kinds = {_file_of(member) for member in _members(config)}
    files = {units / name: _filled(name, words) for name in (_TARGET, *sorted(kinds))}
    files[root / "etc" / "tmpfiles.d" / "mbr-live.conf"] = _filled("mbr-live.conf", words)
    return Plan(files, tuple(_commands(user, root)))


def service_program(config_file: Path, config: Config, *, user: str, root: Path, install: bool) -> None:
    """Print the plan; with `install`, carry it out. MbrError where that is not allowed or a command fails."""
    found = shutil.which("mbr-live", path=str(Path(sys.executable).parent))
    if found is None:
        raise MbrError(
            f"service: there is no program mbr-live beside {sys.executable}, which the services would run. Install "
            "mbr-live into that environment: pip install mbr-live"
        )
    todo = plan(config_file.resolve(), config, user, Path(found), root)
    for path, text in todo.files.items():
        print(f"# write {path}\n{text}")
    for command in todo.commands:
        print(f"# run {shlex.join(command)}")
    if not install:
        print("# nothing was changed; with --install this is done")
        return
    _carry_out(todo)
    print(f"# done; see: systemctl status '{_TARGET}' 'mbr-*'")


def _carry_out(todo: Plan) -> None:
    first = next(iter(todo.files))
    try:
        for path, text in todo.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    except OSError as error:
        raise MbrError(f"service: {first.parent} cannot be written ({error.strerror}). Run it as root.") from error
    for command in todo.commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise MbrError(
                f"service: {command[0]} cannot be run ({error.strerror}). Is this systemd's machine?"
            ) from error
        if done.returncode:
            raise MbrError(f"service: {shlex.join(command)} failed: {done.stderr.strip()}. Mend that and run it again.")


def _commands(user: str, root: Path) -> list[tuple[str, ...]]:
    if root != Path("/"):  # another machine's file system: it finds its units when it starts
        return [("systemctl", f"--root={root}", "enable", _TARGET)]
    commands: list[tuple[str, ...]] = []
    if not _exists(user):
        commands.append(("useradd", "--system", "--no-create-home", "--groups", "video", user))
    return [
        *commands,
        ("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/mbr-live.conf"),
        ("systemctl", "daemon-reload"),
        ("systemctl", "enable", "--now", _TARGET),
    ]


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _members(config: Config) -> list[str]:
    """The services of a system."""
    members = ["mbr-infer.service", *(f"mbr-capture@{camera.name}.service" for camera in config.camera)]
    if config.trigger:
        members.append("mbr-output.service")
    return [*members, *(f"mbr-{name}.service" for name in config.aside)]


def _file_of(member: str) -> str:
    """mbr-capture@cage.service comes from mbr-capture@.service."""
    name, at, _ = member.partition("@")
    return f"{name}@.service" if at else member


def _filled(name: str, words: dict[str, str]) -> str:
    text = (UNITS / name).read_text()
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _unit_path(path: Path) -> str:
    """As units take it; MbrError for what they would read otherwise."""
    text = os.fspath(path)
    if any(character.isspace() or character in "%\"'\\$@" for character in text):
        raise MbrError(f"service: {text!r} has a character that systemd reads otherwise. Choose a plain path.")
    return text


def _used(config: Config) -> Iterator[Path]:
    """Files and folders that the services need."""
    yield from _paths_in(config)
    yield from _store_folders(config.store)
    if config.monitor and config.monitor.alarm_command:
        yield Path(config.monitor.alarm_command[0])


def _paths_in(section: BaseModel) -> Iterator[Path]:
    for _, value in section:
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Path):
                yield each
            elif isinstance(each, BaseModel):
                yield from _paths_in(each)


def _store_folders(store: Store | None) -> list[Path]:
    """Where the store makes files: beside the one of SQLite, nowhere for a database with a server."""
    url = urlsplit(store.url if store else "")
    if not url.scheme.startswith("sqlite"):
        return []
    database = Path(url.path.removeprefix("/"))
    if not database.is_absolute():
        raise MbrError(
            f"service: store.url is {url.geturl()}, which depends on the folder that a program is started in, and "
            "services have none. Give the whole path: sqlite:////folder/mbr.sqlite."
        )
    return [database.parent]


def _home_protection(*used: Path) -> str:
    """Homes are hidden from the services, unless something that they use lies in one."""
    return "read-only" if any(path.resolve().is_relative_to(home) for path in used for home in _HOMES) else "yes"
