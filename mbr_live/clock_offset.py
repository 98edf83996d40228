"""How far apart two clocks are, on a machine that may be busy with something else between two looks at them."""

from __future__ import annotations

from collections.abc import Callable

_LOOKS = 5


def offset_ns(clock_ns: Callable[[], int], other_ns: Callable[[], int]) -> int:
    """By how much a clock is ahead of another one, by the look that took the shortest time."""

    def look() -> tuple[int, int]:
        before_ns, now_ns, after_ns = other_ns(), clock_ns(), other_ns()
        return after_ns - before_ns, now_ns - (before_ns + after_ns) // 2

    return min(look() for _ in range(_LOOKS))[1]
