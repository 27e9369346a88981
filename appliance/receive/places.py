"""Places: how many associations there are, for each listener and each address on it."""

from __future__ import annotations

import threading
from collections import Counter

from appliance.config.settings import Listener


class Places:
    """Counts; silent connections are not among them. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listener: Counter[str] = Counter()
        self._address: Counter[tuple[str, str]] = Counter()

    def take(self, listener: Listener, address: str) -> str:
        """Take a place; empty if taken, else which limit is full, in words."""
        key = (listener.id, address)
        with self._lock:
            if self._listener[listener.id] >= listener.max_associations:
                return f"[[listener]] {listener.id} has {listener.max_associations} associations (max_associations)"
            if self._address[key] >= listener.max_per_address:
                return f"{address} has {listener.max_per_address} associations on {listener.id} (max_per_address)"
            self._listener[listener.id] += 1
            self._address[key] += 1
        return ""

    def give_back(self, listener: str, address: str) -> None:
        key = (listener, address)
        with self._lock:
            self._listener[listener] -= 1
            self._address[key] -= 1
            if self._address[key] <= 0:
                del self._address[key]

    def taken(self) -> int:
        """Associations there are now."""
        with self._lock:
            return sum(self._listener.values())
