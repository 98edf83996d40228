"""Why a camera delivers nothing."""

from __future__ import annotations

from typing import Literal

from mbr_live.types import MbrError

Cause = Literal["not there", "refused", "denied", "silent", "stalled", "hung", "ended", "unreadable", "size", "process"]
"""Why frames stopped coming.

not there: no such device, file, host or path; refused: nothing listens at the address; denied: the login is wrong;
silent: no answer, or no first frame; stalled: frames stopped coming on an open connection; hung: the same, and the
library's call did not return; ended: the camera closed the connection; unreadable: what comes is no video; size:
pictures of another size than before; process: the capture process itself was not running.
"""


class CameraLost(MbrError):
    """A camera that does not deliver: worth trying again."""

    def __init__(self, cause: Cause, text: str) -> None:
        super().__init__(text)
        self.cause: Cause = cause
