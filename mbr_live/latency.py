"""Percentiles of durations in constant memory: a histogram of logarithmic bins, 1 % wide."""

from __future__ import annotations

import math

_LOWEST_MS = 0.01
_GROWTH = 1.01
_BINS = math.ceil(math.log(1e7) / math.log(_GROWTH))  # up to 100 s


class LatencyHistogram:
    """Counts durations in ms; quantiles are exact to 1 %, the maximum is exact."""

    def __init__(self) -> None:
        self._counts = [0] * (_BINS + 1)
        self.count = 0
        self.max_ms = 0.0

    def add(self, duration_ms: float) -> None:
        """Count one duration; below 0.01 ms and above 100 s the first and the last bin take it."""
        bin_ = int(math.log(max(duration_ms, _LOWEST_MS) / _LOWEST_MS) / math.log(_GROWTH))
        self._counts[min(bin_, _BINS)] += 1
        self.count += 1
        self.max_ms = max(self.max_ms, duration_ms)

    def quantile_ms(self, share: float) -> float:
        """The duration that `share` (0..1) of all durations do not exceed; NaN without any."""
        if not self.count:
            return math.nan
        wanted, seen = share * self.count, 0
        for bin_, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_LOWEST_MS * _GROWTH ** (bin_ + 1), self.max_ms)
        return self.max_ms

    def summary(self) -> dict[str, float]:
        """p50, p95, p99 and max in ms, as they stand in a run manifest; empty without any duration."""
        if not self.count:
            return {}
        return {
            "p50_ms": round(self.quantile_ms(0.50), 3),
            "p95_ms": round(self.quantile_ms(0.95), 3),
            "p99_ms": round(self.quantile_ms(0.99), 3),
            "max_ms": round(self.max_ms, 3),
        }
