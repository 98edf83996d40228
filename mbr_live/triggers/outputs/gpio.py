"""A pin of this machine, through gpiozero. Nothing holds the pin low when the whole process is killed."""

from __future__ import annotations

import gpiozero

from mbr_live.triggers.outputs.protocol import DeliveryError, unusable


class GpioLine:
    """One pin; the worker that owns it ends every hold."""

    def __init__(self, name: str, pin: int | str, *, active_high: bool) -> None:
        self._name, self._pin, self._active_high = name, pin, active_high
        self._device: gpiozero.DigitalOutputDevice | None = None

    def open(self) -> None:
        if self._device is not None:
            return
        try:
            self._device = gpiozero.DigitalOutputDevice(self._pin, active_high=self._active_high, initial_value=False)
        except (gpiozero.GPIOZeroError, OSError, ImportError) as error:
            raise unusable(
                self._name, f"pin {self._pin} cannot be used", f"({error})",
                "Check the pin, that no other program uses it, and that a pin library is there (pip install lgpio).",
            ) from error  # fmt: skip

    def hold(self, on_s: float, *, confirm: bool) -> bool:
        if self._device is None:
            raise DeliveryError("the pin is closed")
        self._device.value = on_s > 0
        return confirm  # the pin is set when the call returns

    def close(self) -> None:
        if self._device is not None:
            self._device.off()
            self._device.close()
            self._device = None
