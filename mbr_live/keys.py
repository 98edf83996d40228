"""Keys of sockets that cross a network (CurveZMQ, ZeroMQ RFC 26): encryption, and a list of who may come in.

A folder of keys belongs to one machine:

- `own.key_secret`, `own.key`: who this machine is;
- `inference.key`: the public key of the machine that inference runs on;
- `authorized/*.key`: on that machine, the public keys of all that may send frames or listen to labels.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from zmq.auth import create_certificates, load_certificate

from mbr_live.types import MbrError

OWN, SECRET, INFERENCE, AUTHORIZED = "own.key", "own.key_secret", "inference.key", "authorized"
_KEY_CHARACTERS = 40  # Z85 of 32 bytes


@dataclass(frozen=True, slots=True)
class Keys:
    """What one machine needs to know for encrypted sockets. Keys are Z85 text, as ZeroMQ takes them."""

    public: bytes
    secret: bytes = field(repr=False)
    inference: bytes
    authorized: Path  # folder; read by the machine of the inference process alone


def make_keys(folder: Path, inference: Path | None = None) -> Path:
    """Make the keys of this machine in `folder`; `inference` is the `own.key` of the machine that inference runs on,
    without which it is this machine. Returns the file that other machines may know.

    Raises MbrError, and writes nothing, where there are keys already or `inference` is no public key.
    """
    if (folder / SECRET).exists():
        raise MbrError(
            f"{folder}: holds keys of this machine already ({SECRET}). New ones would lock out all that know the old: "
            "keep them, or delete the folder first."
        )
    if inference is not None:
        _read(inference)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        create_certificates(folder, OWN.removesuffix(".key"))
        shutil.copyfile(inference or folder / OWN, folder / INFERENCE)
        (folder / AUTHORIZED).mkdir(exist_ok=True)
        shutil.copyfile(folder / OWN, folder / AUTHORIZED / "this-machine.key")
    finally:
        os.umask(before)
    return folder / OWN


def load_keys(folder: Path | None) -> Keys | None:
    """Read and check the keys of this machine, if it has any (None: it has not).

    MbrError says what is missing, damaged or open to others.
    """
    if folder is None:
        return None
    secret_file = folder / SECRET
    public, secret = _read(secret_file)
    if secret is None:
        raise MbrError(f"{secret_file}: holds no secret key. Make new keys: mbr-live keys {folder}")
    if os.name == "posix" and secret_file.stat().st_mode & 0o077:
        raise MbrError(
            f"{secret_file}: other users of this machine can read it (mode {secret_file.stat().st_mode & 0o777:o}, "
            f"expected 600). Close it: chmod 600 {secret_file}"
        )
    for guest in sorted((folder / AUTHORIZED).glob("*.key")):
        _read(guest)
    return Keys(public, secret, _read(folder / INFERENCE)[0], folder / AUTHORIZED)


def _read(path: Path) -> tuple[bytes, bytes | None]:
    """Public and, where the file has it, secret key."""
    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        raise MbrError(
            f"{path}: cannot be read as a key ({error}). Expected a file that `mbr-live keys` made, on this machine or "
            "on the one that it is about."
        ) from error
    if any(len(key) != _KEY_CHARACTERS for key in (public, secret) if key is not None):
        raise MbrError(f"{path}: is damaged: a key has {_KEY_CHARACTERS} characters. Copy the file again.")
    return public, secret
