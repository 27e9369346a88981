"""Waiting for what a box comes to by itself: bounded, and what was waited for is named where it does not come."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds_until(condition: Callable[[], object], seconds: float, every: float = 1.0) -> float | None:
    """How long it took; None where it did not come within so many seconds. Looks every so many seconds, at least once."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + seconds:
            return None
        time.sleep(every)
    return time.monotonic() - began


def wait_until(condition: Callable[[], object], seconds: float, what: Callable[[], object] | str,
               every: float = 1.0) -> float:
    """The seconds it took. AssertionError with `what` (or what it says then) where it does not come in time."""
    took = seconds_until(condition, seconds, every)
    if took is None:
        raise AssertionError(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}")
    return took
