"""Runs in the device: a stage of the gateway whose clock goes faster than the world's: `hurried.py TIMES STAGE…`.

Its clock counts on from the moment it begins, so that it never goes back. What the kernel times (sockets) is as ever.
"""

from __future__ import annotations

import sys
import threading
import time

from appliance import clock
from appliance.cli.main import main

TIMES = int(sys.argv.pop(1))
BEGAN = time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_ns(self: clock.SystemClock) -> int:
    return BEGAN + TIMES * (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - BEGAN)


def wait(self: clock.SystemClock, event: threading.Event, seconds: float) -> bool:
    return event.wait(seconds / TIMES)


clock.SystemClock.boot_ns = boot_ns  # type: ignore[method-assign]
clock.SystemClock.wait = wait  # type: ignore[method-assign]
sys.exit(main())
