"""How enrolling and fetching went, kept in the certificate store: for the next try, for alarms, and for people.

Whoever tries, a command or the keeper, writes it there and goes by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from appliance.clock import Clock
from appliance.net.certstore import CRL_STATE, EST_STATE, Store, Writer
from appliance.policy.renewal import Tries


@dataclass(frozen=True, slots=True)
class Kept:
    """`boot` and `due`: not before so many nanoseconds of that boot; after another boot it is simply due (I7)."""

    tries: Tries = field(default_factory=Tries)
    boot: str = ""
    due: int = 0

    def is_due(self, clock: Clock) -> bool:
        return self.boot != clock.boot_id() or clock.boot_ns() >= self.due


def failed(clock: Clock, before: Kept, step: str, why: str, mend: str, wait: int, *, waits: bool = False) -> Kept:
    """After a try that did not go well; the next one is `wait` nanoseconds from now. `waits`: it is under way."""
    now = clock.wall_ns()
    failures = 0 if waits else before.tries.failures + 1
    return Kept(Tries(failures, step, why, mend, now, before.tries.good, now + wait, waits), clock.boot_id(),
                clock.boot_ns() + wait)


def good(clock: Clock, wait: int = 0) -> Kept:
    """After one that did; with `wait`, it is done again then."""
    now = clock.wall_ns()
    return Kept(Tries(tried=now, good=now, again=now + wait if wait else 0), clock.boot_id(), clock.boot_ns() + wait)


def enrolment(store: Store, id: str) -> Kept:
    """Nothing where nothing was tried, or the file cannot be read."""
    return _kept(_read(store, id, EST_STATE))


def lists(store: Store, id: str) -> dict[str, Kept]:
    """By the place that they are fetched from."""
    return {url: _kept(found) for url, found in _read(store, id, CRL_STATE).items()}


def keep_enrolment(writer: Writer, id: str, kept: Kept) -> None:
    """CertificateError."""
    writer.note(id, est_json=json.dumps(asdict(kept)).encode() + b"\n")


def keep_lists(writer: Writer, id: str, kept: Mapping[str, Kept]) -> None:
    """CertificateError."""
    writer.note(id, crl_json=json.dumps({url: asdict(one) for url, one in kept.items()}).encode() + b"\n")


def _read(store: Store, id: str, name: str) -> dict[str, Any]:
    try:
        found = json.loads((store.folder / id / name).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _kept(found: Any) -> Kept:
    try:
        t = found["tries"]
        tries = Tries(int(t["failures"]), str(t["step"]), str(t["why"]), str(t["mend"]), int(t["tried"]), int(t["good"]),
                      int(t["again"]), bool(t["waits"]))
        return Kept(tries, str(found["boot"]), int(found["due"]))
    except (ValueError, KeyError, TypeError):
        return Kept()
