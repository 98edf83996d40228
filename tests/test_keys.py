"""Sockets beyond this machine: only who is authorized comes in, and nothing without keys."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from live import PATIENCE_S, free_endpoint, labelled, mbr_live, simulated, system_config, wait_for

from mbr_live.config import Config
from mbr_live.keys import AUTHORIZED, INFERENCE, OWN, SECRET, Keys, load_keys, make_keys
from mbr_live.live.run import System
from mbr_live.types import Frame, MbrError
from mbr_live.wire.frames import FrameReceiver, FrameSender
from mbr_live.wire.status import StatusSubscriber

PIXELS = np.zeros((48, 64, 3), np.uint8)


def keys_in(folder: Path) -> Keys:
    keys = load_keys(folder)
    assert keys is not None
    return keys


@pytest.fixture
def here(tmp_path: Path) -> Path:
    make_keys(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path, here: Path) -> Path:
    """Another machine, which knows this one, but is not known yet."""
    make_keys(tmp_path / "there", here / OWN)
    return tmp_path / "there"


def sends(endpoint: str, receiver: FrameReceiver, keys: Keys | None, within_s: float = PATIENCE_S) -> bool:
    """Whether a frame that is sent with these keys arrives."""
    with closing(FrameSender(endpoint, "cage", "0123456789abcdef", keys)) as sender:
        until_s = time.monotonic() + within_s
        while time.monotonic() < until_s:
            if sender.send(Frame("cage", 0, 0, 0, 0, PIXELS), captured_ns=0):
                return receiver.receive(within_s) is not None
            time.sleep(0.02)
    return False


def test_only_who_is_authorized_sends_frames(here: Path, there: Path) -> None:
    endpoint = free_endpoint()
    with closing(FrameReceiver(endpoint, keys_in(here))) as receiver:
        assert sends(endpoint, receiver, keys_in(here))
        assert not sends(endpoint, receiver, None, 1.5)
        assert not sends(endpoint, receiver, keys_in(there), 1.5)
    (here / AUTHORIZED / "there.key").write_bytes((there / OWN).read_bytes())
    with closing(FrameReceiver(endpoint, keys_in(here))) as receiver:
        assert sends(endpoint, receiver, keys_in(there))


def test_an_impostor_gets_no_frames(here: Path, there: Path) -> None:
    """A sender insists on the key of the inference that it was told of."""
    endpoint = free_endpoint()
    (there / AUTHORIZED / "here.key").write_bytes((here / OWN).read_bytes())
    with closing(FrameReceiver(endpoint, keys_in(there))) as impostor:
        assert not sends(endpoint, impostor, keys_in(here), 1.5)


def test_a_system_on_all_interfaces_talks_to_its_own_only(here: Path, there: Path, tmp_path: Path) -> None:
    local = system_config(tmp_path / "live", simulated("cage"))
    addresses = {name: getattr(local.wire, name).replace("127.0.0.1", "0.0.0.0") for name in ("frames", "status")}
    config = Config.model_validate({**local.model_dump(), "wire": {**addresses, "keys": here}})
    with System(config) as system:
        with (
            closing(StatusSubscriber(local.wire.status, keys_in(here))) as known,
            closing(StatusSubscriber(local.wire.status, keys_in(there))) as stranger,
            closing(StatusSubscriber(local.wire.status)) as nobody,
        ):
            assert any(b'"kind":"label"' in message for message in known.messages(PATIENCE_S))
            assert not list(stranger.messages(1.0))
            assert not list(nobody.messages(1.0))
        wait_for(lambda: labelled(config.out, "cage") > 20, "labels", system)
    secret = keys_in(here).secret
    written = [path for path in config.out.rglob("*") if path.is_file()]
    assert written
    assert not any(secret in path.read_bytes() for path in written)


def test_keys_are_made_once_and_for_their_owner_alone(here: Path, tmp_path: Path) -> None:
    assert (here / SECRET).stat().st_mode & 0o777 == 0o600
    assert here.stat().st_mode & 0o777 == 0o700
    assert keys_in(here).secret.decode() not in repr(keys_in(here))
    before = (here / SECRET).read_bytes()
    done = mbr_live("keys", here)
    assert done.returncode == 2 and "holds keys" in done.stderr
    assert (here / SECRET).read_bytes() == before
    done = mbr_live("keys", tmp_path / "new", "--inference", tmp_path / "nothing.key")
    assert done.returncode == 2 and "nothing.key" in done.stderr
    assert not (tmp_path / "new").exists()


def test_mbr_live_keys_says_what_to_do_with_them(here: Path, tmp_path: Path) -> None:
    done = mbr_live("keys", tmp_path / "new", "--inference", here / OWN)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "new" / OWN) in done.stdout and AUTHORIZED in done.stdout
    assert keys_in(tmp_path / "new").inference == keys_in(here).public


def test_keys_that_others_can_read_or_that_are_damaged_are_refused(here: Path) -> None:
    (here / SECRET).chmod(0o644)
    with pytest.raises(MbrError, match=r"other users.*chmod 600"):
        load_keys(here)
    (here / SECRET).chmod(0o600)
    (here / INFERENCE).write_text('curve\n    public-key = "short"\n')
    with pytest.raises(MbrError, match=r"inference\.key.*damaged"):
        load_keys(here)
    (here / INFERENCE).unlink()
    with pytest.raises(MbrError, match=r"inference\.key.*cannot be read"):
        load_keys(here)
