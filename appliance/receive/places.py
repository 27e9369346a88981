"""Places: how many associations there are, for each listener and each address on it.

The last places of a listener are kept for the addresses that a `[[peer]]` names,
so that nobody else on the network can keep the scanners out, however many
addresses he has. Among those, one that holds places already leaves one for each
peer that holds none, and no address takes more of them than it leaves free.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from appliance.config.settings import Listener, Peer
from appliance.policy.admission import inside, network

LEAST_KEPT = 4
"""Places kept for known addresses are a quarter of all, at least so many, and never more than half."""

REMEMBERED = 4096
"""Addresses of which is known whose they are."""


def kept(limit: int) -> int:
    """Of `limit` places those that only known addresses may take."""
    return min(max(LEAST_KEPT, limit // 4), limit // 2)


class _Known:
    """Who is known to one listener by his address."""

    def __init__(self, listener: str, peers: Sequence[Peer]) -> None:
        self.peers = [peer for peer in peers if peer.addresses and peer.action != "refuse"
                      and (not peer.listeners or listener in peer.listeners)]
        nets = [net for peer in self.peers for text in peer.addresses if (net := network(text)) is not None]
        self.alone = len(nets) == 1 and nets[0].num_addresses == 1
        self._found: dict[str, frozenset[str]] = {}

    def of(self, address: str) -> frozenset[str]:
        """The peers that this address may be."""
        found = self._found.get(address)
        if found is None:
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            found = self._found[address] = frozenset(peer.id for peer in self.peers if inside(address, peer.addresses))
        return found


class Places:
    """Counts; silent connections are not among them. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listener: Counter[str] = Counter()
        self._address: Counter[tuple[str, str]] = Counter()
        self._of_peer: Counter[tuple[str, str]] = Counter()
        self._peers: Sequence[Peer] = ()
        self._known: dict[str, _Known] = {}

    def configure(self, peers: Sequence[Peer]) -> None:
        """Keep places for these from now on; who is in stays in."""
        with self._lock:
            self._peers = peers
            self._known.clear()
            self._of_peer.clear()
            for (listener, address), count in self._address.items():
                self._count(listener, address, count)

    def take(self, listener: Listener, address: str) -> str:
        """Take a place; empty if taken, else which limit is full, in words."""
        key = (listener.id, address)
        with self._lock:
            free = listener.max_associations - self._listener[listener.id]
            if free <= 0:
                return f"[[listener]] {listener.id} has {listener.max_associations} associations (max_associations)"
            if self._address[key] >= listener.max_per_address:
                return f"{address} has {listener.max_per_address} associations on {listener.id} (max_per_address)"
            if not self._may(listener, address, free):
                return (f"[[listener]] {listener.id} has {listener.max_associations - free} associations (max_associations); "
                        f"the last are kept for other addresses that a [[peer]] names, not for {address}")
            self._listener[listener.id] += 1
            self._address[key] += 1
            self._count(listener.id, address, 1)
        return ""

    def give_back(self, listener: str, address: str) -> None:
        key = (listener, address)
        with self._lock:
            self._listener[listener] -= 1
            self._address[key] -= 1
            if self._address[key] <= 0:
                del self._address[key]
            self._count(listener, address, -1)

    def taken(self) -> int:
        """Associations there are now."""
        with self._lock:
            return sum(self._listener.values())

    # Under the lock

    def _of(self, listener: str) -> _Known:
        known = self._known.get(listener)
        if known is None:
            known = self._known[listener] = _Known(listener, self._peers)
        return known

    def _count(self, listener: str, address: str, count: int) -> None:
        for peer in self._of(listener).of(address):
            self._of_peer[listener, peer] += count

    def _may(self, listener: Listener, address: str, free: int) -> bool:
        """Whether this address may have one of the `free` places."""
        known = self._of(listener.id)
        if not known.peers or free > kept(listener.max_associations):
            return True
        whose = known.of(address)
        if not whose:
            return False
        if not any(self._of_peer[listener.id, peer] for peer in whose):
            return True
        absent = sum(not self._of_peer[listener.id, peer.id] for peer in known.peers)
        return known.alone or (free > absent and self._address[listener.id, address] < free)
