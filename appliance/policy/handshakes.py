"""Handshakes: what is remembered of TLS among the callers, in the words of `Knock.called`, which has no title to hold there.

    handshake-tls <listener> <check>                        a caller with whom there was no TLS
    handshake-tls-out <destination> <check>                 a destination with which there was none
    handshake-legacy <listener> <version> <suite> <needed>  an association by the retired profile, and whether it needed it

All of them are longer than an AE title: no caller can take the place of one.
"""

from __future__ import annotations

from dataclasses import dataclass

REFUSED = "tls"
REFUSED_THERE = "tls-out"
LEGACY = "legacy"
KINDS = (REFUSED, REFUSED_THERE, LEGACY)
"""Verdicts of a knock that are about TLS and not about a title."""

NEEDED, NOT_NEEDED = "needed", "not-needed"


@dataclass(frozen=True, slots=True)
class Handshake:
    """What `called` says. `entry` is the id of the listener or destination; `check` of a refusal; the others of LEGACY."""

    kind: str
    entry: str
    check: str = ""
    version: str = ""
    suite: str = ""
    needed: bool = False


def refused(kind: str, entry: str, check: str) -> str:
    """For `Knock.called`: `kind` is REFUSED or REFUSED_THERE."""
    return f"handshake-{kind} {entry} {check}"


def by_legacy(listener: str, version: str, suite: str, *, needed: bool) -> str:
    """For `Knock.called` of an association by the retired profile."""
    return f"handshake-{LEGACY} {listener} {version} {suite} {NEEDED if needed else NOT_NEEDED}"


def read(verdict: str, called: str) -> Handshake | None:
    """What a knock says of TLS; None where it is about a title."""
    if verdict not in KINDS:
        return None
    kind, entry, *words = (called.split(" ") + [""] * 5)[:5]
    if kind != f"handshake-{verdict}":
        return None
    if verdict == LEGACY:
        return Handshake(verdict, entry, version=words[0], suite=words[1], needed=words[2] != NOT_NEEDED)
    return Handshake(verdict, entry, check=words[0])
