"""What every output can do, whatever its medium. Two kinds, since a late pulse is wrong and a late message is not.

A *line* is held high for a time that it is told, and falls by itself: what keeps it high is a lease that is renewed
while labels are fresh, never a command that somebody must remember to take back.
A *messenger* passes on that something happened.
"""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from mbr_live.types import MbrError


class TriggerMessage(BaseModel):
    """One edge of one trial, as it is told to the world. `id` is the same whenever the same edge is sent again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    v: Literal[1] = 1
    id: str
    session: str
    camera: str
    trigger: str
    trial: int
    edge: Literal["on", "off"]
    sham: bool
    frame: int  # tick of the label log
    time_ns: int  # capture time of that frame, as in the label log
    decided_ns: int  # since the epoch
    why: str
    on_s: float  # of `on`: it lasts no longer than this


class DeliveryError(Exception):
    """The receiver did not take it. `final`: it never will, so that trying again is of no use."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


class Outlet(Protocol):
    """What lines and messengers have in common."""

    def open(self) -> None:
        """Reach the receiver; a line is low afterwards. Harmless when it is open. MbrError when it cannot be used."""

    def close(self) -> None:
        """Let go of it; a line is low afterwards, as far as it can still be told. Harmless when it is closed."""


class LineOutlet(Outlet, Protocol):
    """Something that is high or low."""

    def hold(self, on_s: float, *, confirm: bool) -> bool:
        """Be high for `on_s` from now, or low if that is 0.

        With `confirm`, True when the receiver said that it did so. DeliveryError when it cannot be told.
        """


class Messenger(Outlet, Protocol):
    """Something that takes messages."""

    durable: bool
    """It confirms what it took, and what it did not take is sent again until it does."""

    def send(self, message: TriggerMessage) -> bool:
        """Send; True when the receiver confirmed it. DeliveryError when it did not go out."""


def unusable(name: str, what: str, found: str, remedy: str) -> MbrError:
    """The error of an output that cannot be opened."""
    return MbrError(f"output {name}: {what} {found}. {remedy}")
