"""TTL events of the Open Ephys GUI, through its Network Events plugin: one ASCII question, one answer."""

from __future__ import annotations

from mbr_live.triggers.outputs.protocol import DeliveryError, unusable
from mbr_live.wire.requests import NoAnswer, Requester

ANSWER_WITHIN_S = 0.5


class OpenEphysLine:
    """One TTL line. The plugin has no watchdog; this line is low again because its worker says so."""

    def __init__(self, name: str, host: str, port: int, line: int) -> None:
        self._name, self._line, self._where = name, line, f"tcp://{host}:{port}"
        self._requester: Requester | None = None
        self._high: bool | None = None  # None: not known

    def open(self) -> None:
        if self._requester is not None:
            return
        self._requester = Requester(self._where)
        try:
            self._set(False)
        except DeliveryError as error:
            self.close()
            raise unusable(
                self._name, f"Open Ephys does not answer at {self._where}:", str(error),
                "Start the GUI with the Network Events plugin in its signal chain, and check host and port.",
            ) from error  # fmt: skip

    def hold(self, on_s: float, *, confirm: bool) -> bool:
        if self._high == (on_s > 0) and not confirm:
            return False  # renewed: it stays as it is
        self._set(on_s > 0)
        # The plugin handles events also while nothing is acquired, and drops them.
        if confirm and on_s > 0 and self._ask("IsAcquiring").strip() == "0":
            raise DeliveryError("Open Ephys is not acquiring, so it dropped the event")
        return confirm

    def close(self) -> None:
        requester, self._requester, self._high = self._requester, None, None
        if requester is not None:
            requester.close()

    def _set(self, high: bool) -> None:
        self._high = None
        answer = self._ask(f"TTL Line={self._line} State={int(high)}")
        if not answer.startswith("TTLHandled"):
            raise DeliveryError(f"it answered {answer[:80]!r} instead of TTLHandled")
        self._high = high

    def _ask(self, question: str) -> str:
        if self._requester is None:
            raise DeliveryError("not connected")
        try:
            return self._requester.ask(question, ANSWER_WITHIN_S)
        except NoAnswer as error:
            raise DeliveryError(str(error)) from error
