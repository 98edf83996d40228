"""Work that runs ahead of whoever needs it, in a thread of its own, and never further than agreed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _End:
    """The items have ended: with an error, or because there are no more."""

    error: BaseException | None


class Ahead(Generic[T]):
    """Takes items from an iterable in a thread, at most `ahead` (and one) ahead of whoever iterates this.

    An error of the iterable is raised where this is iterated, after the items before it.
    """

    def __init__(self, items: Iterable[T], ahead: int) -> None:
        self._items = items
        self._ready: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one True per item that may be taken; False: stop
        for _ in range(ahead):
            self._room.put(True)
        self._thread = threading.Thread(target=self._fill, name="ahead", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for item in self._items:
                if not self._room.get():
                    return
                self._ready.put(item)
            self._ready.put(_End(None))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that iterates, which raises it
            self._ready.put(_End(error))

    def __iter__(self) -> Iterator[T]:
        for group in self.groups(1):
            yield from group

    def groups(self, most: int) -> Iterator[list[T]]:
        """The items in order, as many together as are ready, but at least one and at most `most`."""
        while True:
            group: list[T] = []
            while len(group) < most and not (group and self._ready.empty()):
                item = self._ready.get()
                if isinstance(item, _End):
                    if group:
                        yield group
                    if item.error is not None:
                        raise item.error
                    return
                group.append(item)
                self._room.put(True)
            yield group

    def close(self) -> None:
        """End the thread, also when its items were not all taken."""
        self._room.put(False)
        self._thread.join()
