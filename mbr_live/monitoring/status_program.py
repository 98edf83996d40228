"""`mbr-live status`: how is the running system, for a script or a glance."""

from __future__ import annotations

from contextlib import closing

from pydantic import ValidationError

from mbr_live.config import Config
from mbr_live.keys import load_keys
from mbr_live.monitoring.watch import Dashboard, plain_lines
from mbr_live.status import SystemStatus, parse_status
from mbr_live.types import MbrError
from mbr_live.wire.status import StatusSubscriber

WITHIN_S = 3.0  # inference speaks once a second


def status_program(config: Config, *, as_json: bool) -> int:
    """Print the next status of inference; 0: all cameras are live or came to their end, and triggers can fire; else 1.

    Raises MbrError where nothing is heard.
    """
    with closing(StatusSubscriber(config.wire.status, load_keys(config.wire.keys))) as subscriber:
        system = _heard(subscriber)
    if system is None:
        raise MbrError(
            f"status: nothing was heard at {config.wire.status} within {WITHIN_S:.0f} s. Is the system running "
            "(mbr-live run), and is this its configuration?"
        )
    if as_json:
        print(system.model_dump_json(indent=2))
    else:
        dashboard = Dashboard()
        dashboard.take(system, 0.0)
        print("\n".join(plain_lines(dashboard, 0.0)))
    well = all(camera.state in ("live", "ended") for camera in system.cameras)
    return int(not well or (system.output is not None and not system.output.up))


def _heard(subscriber: StatusSubscriber) -> SystemStatus | None:
    for message in subscriber.messages(WITHIN_S):
        try:
            status = parse_status(message)
        except ValidationError as error:
            raise MbrError(
                "status: what came is no status that this version understands. Is the system of another version?"
            ) from error
        if isinstance(status, SystemStatus):
            return status
    return None
