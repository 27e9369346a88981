"""What is wrong, or soon will be, with the certificates that this box holds. Pure functions of what was read and of now.

Whether a date has come is known only where the clock is trusted (I7): a box that
woke up in 1970 has no bad certificate, it has no time. Then one finding says so,
and no other speaks of dates; it goes by itself when the clock is set.
Times are nanoseconds since 1970 UTC.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import ip_address

from appliance.model import Severity

SECOND = 1_000_000_000
DAY = 86_400 * SECOND

EXPIRY = ((30, Severity.NOTICE), (14, Severity.WARNING), (7, Severity.CRITICAL))
"""Days left below which an expiry is said, and how loud; the last day is said once more, by a check of its own.

These are for what lives 90 days or longer. What lives shorter is said later, in
proportion: the first at a third of its life. Where certificates are renewed by
themselves, the first is said when half of the time for renewing has passed, and
the others in proportion: before that nothing is late.
"""

FULL = 30 * DAY
"""What is left when the first is said, of what lives long enough."""

WEAKEST = {"rsa": 2048, "ec": 224, "ed25519": 0, "ed448": 0}
"""Bits of a key that every profile but `legacy` takes (OpenSSL's security level 2); other kinds of key are not taken."""

BROKEN_HASHES = ("md5", "sha1")


class Check(StrEnum):
    """What a finding is about; part of an alarm's key, so for good."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    EXPIRES = "expires"
    LAST_DAY = "last-day"
    WRONG_NAME = "wrong-name"
    WEAK_KEY = "weak-key"
    REVOKED = "revoked"
    NO_TRUST = "no-trust"
    TRUST_EXPIRED = "trust-expired"
    TRUST_EXPIRES = "trust-expires"
    CRL_OLD = "crl-old"
    CRL_EXPIRES = "crl-expires"
    TIME_NOT_TRUSTED = "time-not-trusted"
    OPEN_KEY = "open-key"


@dataclass(frozen=True, slots=True)
class Facts:
    """One certificate. `names` are its subject alternative names with their kind: "dns:ct1.example.org", "ip:10.0.0.7"."""

    subject: str
    issuer: str
    serial: str
    fingerprint: str
    not_before: int
    not_after: int
    names: tuple[str, ...] = ()
    key: str = "ec"
    bits: int = 256
    signature: str = "sha256"
    is_authority: bool = False
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class List:
    """One revocation list. `next_update` 0: it does not say."""

    issuer: str
    this_update: int
    next_update: int
    entries: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """What the store holds for one `[[certificate]]`: the chain leaf first. `problem`: why a file there cannot be read;
    `open`: a secret there that others than the service can read."""

    id: str
    chain: tuple[Facts, ...] = ()
    trust: tuple[Facts, ...] = ()
    lists: tuple[List, ...] = ()
    problem: str = ""
    open: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know of the certificate `id`."""

    id: str
    check: Check
    severity: Severity
    text: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the configuration wants of it: names in the certificate, a pair of key and certificate, trust anchors. `renewed`:
    it is renewed by itself; `renew_days` as configured."""

    names: tuple[str, ...] = ()
    pair: bool = True
    trust: bool = False
    renewed: bool = False
    renew_days: float = 0.0


def typed(name: str) -> str:
    """A name as it stands in the configuration, with its kind: "dns:", "ip:", "uri:" or "email:"; DNS names in small
    letters."""
    try:
        return f"ip:{ip_address(name)}"
    except ValueError:
        pass
    if ":" in name:
        return f"uri:{name}"
    return f"email:{name}" if "@" in name else f"dns:{name.rstrip('.').lower()}"


def covers(held: Iterable[str], name: str) -> bool:
    """Whether one of the names (with kind) of a certificate stands for that one; `*.` stands for one label (RFC 6125)."""
    have = {entry.lower() if entry.startswith("dns:") else entry for entry in held}
    if name in have:
        return True
    return name.startswith("dns:") and "." in name and f"dns:*.{name.partition('.')[2]}" in have


def examine(held: Held, wanted: Wanted, now: int, trusted: bool) -> list[Finding]:
    """Everything to say of one certificate, the worst first. `trusted`: whether `now` can be believed."""
    found = list(_findings(held, wanted, now, trusted))
    order = list(Severity)
    return sorted(found, key=lambda finding: -order.index(finding.severity))


def _findings(held: Held, wanted: Wanted, now: int, trusted: bool) -> Iterator[Finding]:
    id = held.id
    if held.problem:
        yield Finding(id, Check.UNREADABLE, Severity.CRITICAL, f"certificate {id}: {held.problem}",
                      f"Install it again: `dcmgate cert install {id}` with the files.")
        return
    if held.open:
        yield Finding(id, Check.OPEN_KEY, Severity.CRITICAL, f"certificate {id}: {held.open} can be read by others than the "
                      "service", f"`chmod o-rwx` it; if strangers were on this box, `dcmgate cert request {id} --new`.")
    if wanted.pair and not held.chain:
        yield Finding(id, Check.MISSING, Severity.CRITICAL, f"certificate {id}: there is no certificate with its key",
                      f"`dcmgate cert request {id}`, have it signed, `dcmgate cert install {id}`.")
    if wanted.trust and not held.trust:
        yield Finding(id, Check.NO_TRUST, Severity.CRITICAL,
                      f"certificate {id}: there are no trust anchors, so nobody's certificate is taken",
                      f"`dcmgate cert install {id} --trust` with the certificates of the authorities.")
    for nth, facts in enumerate(held.chain):
        yield from _key(id, facts, nth == 0)
    if held.chain:
        yield from _leaf(id, held.chain[0], wanted.names)
    dated = [*held.chain, *held.trust, *held.lists]
    if not dated:
        return
    if not trusted:
        yield Finding(id, Check.TIME_NOT_TRUSTED, Severity.NOTICE,
                      f"certificate {id}: whether it is valid is not known: this box's clock is wrong, it says {date(now)}",
                      "Set the time, or let the box reach a time server; the certificate need not be replaced.")
        return
    yield from _dates(id, held.chain, now, wanted)
    yield from _trust_dates(id, held.trust, now)
    yield from _lists(id, held.lists, now)


def _key(id: str, facts: Facts, is_leaf: bool) -> Iterator[Finding]:
    whose = f"certificate {id}" if is_leaf else f"certificate {id}: {facts.subject} above it"
    least = WEAKEST.get(facts.key)
    mend = f'Write another key_type, then `dcmgate cert request {id} --new`.' if is_leaf else "Ask the authority for another."
    if least is None:
        yield Finding(id, Check.WEAK_KEY, Severity.WARNING, f"{whose}: a key of kind {facts.key} is not taken by others", mend)
    elif facts.bits < least:
        yield Finding(id, Check.WEAK_KEY, Severity.WARNING,
                      f"{whose}: its key is weak: {facts.key.upper()} of {facts.bits} bits, {least} are the least", mend)
    elif facts.signature in BROKEN_HASHES and facts.subject != facts.issuer:
        yield Finding(id, Check.WEAK_KEY, Severity.WARNING, f"{whose}: it is signed with {facts.signature.upper()}, "
                      "which is broken", "Ask the authority for one that is signed with SHA-256.")


def _leaf(id: str, leaf: Facts, names: Sequence[str]) -> Iterator[Finding]:
    missing = [name for name in names if not covers(leaf.names, typed(name))]
    if missing:
        yield Finding(id, Check.WRONG_NAME, Severity.WARNING,
                      f"certificate {id}: it does not carry {', '.join(missing)}, which the configuration names; it carries "
                      f"{', '.join(leaf.names) or 'no names'}",
                      f"`dcmgate cert request {id} --new` and have it signed, or correct `names`.")
    if leaf.revoked:
        yield Finding(id, Check.REVOKED, Severity.CRITICAL, f"certificate {id}: its authority has revoked it",
                      f"`dcmgate cert request {id} --new`, have it signed, `dcmgate cert install {id}`.")


def window(life: int, renew_days: float) -> int:
    """So long before its end a certificate is renewed: `renew_days`, or a third of its life; never more than half of it."""
    return min(int(renew_days * DAY), life // 2) if renew_days > 0 else life // 3


def first_said(facts: Facts, wanted: Wanted) -> int:
    """So long before its end the expiry of a certificate is said for the first time."""
    life = max(0, facts.not_after - facts.not_before)
    return min(FULL, window(life, wanted.renew_days) // 2 if wanted.renewed else life // 3)


def _dates(id: str, chain: Sequence[Facts], now: int, wanted: Wanted) -> Iterator[Finding]:
    if not chain:
        return
    mend = f"See why it is not renewed: `dcmgate cert show {id}`, `dcmgate cert enroll {id}`." if wanted.renewed else \
        f"`dcmgate cert request {id}`, have it signed, `dcmgate cert install {id}`."
    late = max(chain, key=lambda facts: facts.not_before)
    if now < late.not_before:
        yield Finding(id, Check.NOT_YET_VALID, Severity.CRITICAL,
                      f"certificate {id}: {_which(chain, late)} is not valid before {date(late.not_before)}",
                      "Compare the clock with another; if it is right, wait, or install one that is valid.")
    first = min(chain, key=lambda facts: facts.not_after)
    if first.not_after <= now:
        yield Finding(id, Check.EXPIRED, Severity.CRITICAL, f"certificate {id}: {_which(chain, first)} has expired, at "
                      f"{date(first.not_after)}", mend)
        return
    first = min(chain, key=lambda facts: (facts.not_after - now) / max(1, first_said(facts, wanted)))
    left, which = first.not_after - now, f"certificate {id}: {_which(chain, first)}"
    scale = first_said(first, wanted) / FULL
    reached = [(days * DAY * scale, severity) for days, severity in EXPIRY if left <= days * DAY * scale]
    if reached:
        span, severity = reached[-1]
        yield Finding(id, Check.EXPIRES, severity, f"{which} expires within {_span(span)}, at {date(first.not_after)}", mend)
    if left <= DAY * scale:
        yield Finding(id, Check.LAST_DAY, Severity.CRITICAL, f"{which} expires within {_span(DAY * scale)}, at "
                      f"{date(first.not_after)}", mend)


def _which(chain: Sequence[Facts], facts: Facts) -> str:
    return "it" if facts is chain[0] else f"{facts.subject} above it"


def _trust_dates(id: str, trust: Sequence[Facts], now: int) -> Iterator[Finding]:
    """One of several that has gone may be a leftover; if none is left, nobody comes in."""
    mend = f"`dcmgate cert install {id} --trust --add` with the authority's new certificate."
    left = [facts for facts in trust if facts.not_after > now]
    gone = [facts for facts in trust if facts.not_after <= now]
    if gone:
        severity = Severity.WARNING if left else Severity.CRITICAL
        yield Finding(id, Check.TRUST_EXPIRED, severity, f"certificate {id}: trust anchor {gone[0].subject} has expired, "
                      f"at {date(gone[0].not_after)}", mend)
    for facts in sorted(left, key=lambda facts: facts.not_after)[:1]:
        reached = [(days, severity) for days, severity in EXPIRY if facts.not_after - now <= days * DAY]
        if reached:
            days, severity = reached[-1]
            yield Finding(id, Check.TRUST_EXPIRES, severity, f"certificate {id}: trust anchor {facts.subject} expires within "
                          f"{days} days, at {date(facts.not_after)}", mend)


def _lists(id: str, lists: Sequence[List], now: int) -> Iterator[Finding]:
    """An old list still refuses what it revoked, and knows nothing newer. It is said when a quarter of its life is left."""
    mend = f"`dcmgate cert install {id}` with the authority's new revocation list."
    for entry in sorted(lists, key=lambda entry: entry.next_update)[:1]:
        left = entry.next_update - now
        if left <= 0:
            since = f", since {date(entry.next_update)}" if entry.next_update else ": it does not say until when it holds"
            yield Finding(id, Check.CRL_OLD, Severity.WARNING, f"certificate {id}: the revocation list of {entry.issuer} is "
                          f"out of date{since}: whom it revoked is still refused, whoever was revoked since comes in", mend)
        elif left <= (entry.next_update - entry.this_update) // 4:
            yield Finding(id, Check.CRL_EXPIRES, Severity.NOTICE, f"certificate {id}: the revocation list of {entry.issuer} "
                          f"runs out at {date(entry.next_update)}", mend)


def _span(time: float) -> str:
    """"30 days", "1 day", "16 hours", "20 minutes": rounded up, so that it is never said to be shorter."""
    unit, name = (DAY, "day") if time >= DAY else (DAY / 24, "hour") if time >= DAY / 12 else (60.0 * SECOND, "minute")
    count = max(1, math.ceil(time / unit - 1e-9))
    return f"{count} {name}" + ("" if count == 1 else "s")


def date(at: int) -> str:
    """A time as people and logs read it, in UTC."""
    try:
        return datetime.fromtimestamp(at / SECOND, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return "?"
