"""Admission: whether an association request is taken, and if not, what a person has to change (PS3.8 9.3.4).

The commonest commissioning fault is a title that differs in case or by a
space. So every refusal names the near miss: what came, what was expected, where it is written.
A title is not authentication: address *and* title must belong to one `[[peer]]`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from appliance.config.secure import bound_to
from appliance.config.settings import Listener, Peer
from appliance.model import escape

Admitted = Collection[tuple[str, str]]
"""(calling title, address) pairs that a named person has admitted (`dcmgate admit`)."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Verdict(StrEnum):
    ACCEPT = "accept"
    HOLD = "hold"          # accepted, but everything it sends waits for a person
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to an association request. `result`, `source`, `reason` are those of the A-ASSOCIATE-RJ, 0 if taken.

    `peer_id` is the `[[peer]]` that decided, empty for an unknown one. `text`
    says why, with the near miss; it is empty where a known peer simply comes in.
    """

    verdict: Verdict
    peer_id: str = ""
    text: str = ""
    result: int = 0
    source: int = 0
    reason: int = 0


CALLING_NOT_RECOGNISED = (1, 1, 3)
CALLED_NOT_RECOGNISED = (1, 1, 7)
"""Rejected permanent, by the service user, calling or called AE title not recognised (PS3.8 9.3.4)."""


@lru_cache(maxsize=4096)
def network(text: str) -> Network | None:
    """A subnet or a single address, v4 or v6; None if it is neither."""
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def address_of(text: str) -> Address | None:
    """An address as sockets show it: a v4 peer on a v6 socket is the v4 peer, a zone (`%eth0`) does not matter."""
    try:
        parsed = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def inside(address: str, subnets: Iterable[str]) -> bool:
    """Whether the address lies in one of the subnets; what cannot be parsed lies in none."""
    parsed = address_of(address)
    if parsed is None:
        return False
    for text in subnets:
        net = network(text)
        if net is not None and net.version == parsed.version and parsed in net:
            return True
    return False


def admit(listener: Listener, peers: Sequence[Peer], admitted: Admitted, calling: str, called: str, address: str,
          proven: frozenset[str] = frozenset()) -> Admission:
    """Decide on one association request.

    `proven` is what the caller's certificate says of it (`sha256:…`, `dns:…`, `uri:…`, `email:…`); empty without one. A
    title that a `[[peer]]` binds to a certificate is nobody else's, unless another `[[peer]]` or a person names it too.

    `calling` and `called` are AE titles as text; leading and trailing spaces do
    not count (PS3.5 6.2, AE), case does. The first `[[peer]]` in the order of the
    file that names listener, address and title decides.
    """
    calling, called = calling.strip(" \0"), called.strip(" \0")
    peer = _find(listener, peers, calling, address, proven)
    if not (peer is not None and peer.titles):
        bound = _bound(peers, calling, proven)
        if bound is not None:
            named = _find(listener, [each for each in peers if each.titles], calling, address, proven)
            if named is None and not _by_person(admitted, calling, address):
                return _reject(CALLING_NOT_RECOGNISED, "", _not_proven(bound, calling, address, proven))
            peer = named or peer
    if peer is not None and peer.action == "refuse":
        text = f"{_who(calling, address)} is refused by [[peer]] {peer.id} (action = \"refuse\")."
        return _reject(CALLING_NOT_RECOGNISED, peer.id, text)
    if listener.titles and called not in [title.strip() for title in listener.titles]:
        return _reject(CALLED_NOT_RECOGNISED, peer.id if peer else "", _wrong_called(listener, calling, called, address))
    if peer is not None:
        if peer.action == "hold":
            return Admission(Verdict.HOLD, peer.id, f"[[peer]] {peer.id} is accepted and held (action = \"hold\").")
        return Admission(Verdict.ACCEPT, peer.id)
    if _by_person(admitted, calling, address):
        return Admission(Verdict.ACCEPT, "", f"{_who(calling, address)} was admitted by a person.")
    text = _unknown(listener, peers, calling, address)
    if listener.unknown == "admit":
        return Admission(Verdict.ACCEPT, "", text)
    if listener.unknown == "hold":
        return Admission(Verdict.HOLD, "", text)
    return _reject(CALLING_NOT_RECOGNISED, "", text)


def _reject(code: tuple[int, int, int], peer_id: str, text: str) -> Admission:
    return Admission(Verdict.REJECT, peer_id, text, *code)


def _find(listener: Listener, peers: Sequence[Peer], calling: str, address: str, proven: frozenset[str]) -> Peer | None:
    for peer in peers:
        if (_serves(peer, listener) and (not peer.titles or calling in [title.strip() for title in peer.titles])
                and (not peer.addresses or inside(address, peer.addresses)) and _has_proven(peer, proven)):
            return peer
    return None


def _has_proven(peer: Peer, proven: frozenset[str]) -> bool:
    return not peer.certificates or not proven.isdisjoint(_wanted(peer.certificates))


@lru_cache(maxsize=1024)
def _wanted(certificates: tuple[str, ...]) -> frozenset[str]:
    """What a peer may prove, as a certificate says it."""
    return frozenset(f"{found[0]}:{found[1]}" for found in map(bound_to, certificates) if found is not None)


def _bound(peers: Sequence[Peer], calling: str, proven: frozenset[str]) -> Peer | None:
    """The peer whose title this is by certificate, where the caller has not proven to be it."""
    return next((peer for peer in peers if peer.certificates and calling in [title.strip() for title in peer.titles]
                 and not _has_proven(peer, proven)), None)


def _not_proven(peer: Peer, calling: str, address: str, proven: frozenset[str]) -> str:
    text = f"{_who(calling, address)} is not let in: the title is bound to the certificate of [[peer]] {peer.id}"
    if not proven:
        return f"{text}, and this one shows none — have the scanner use TLS with its certificate."
    shown = ", ".join(escape(one)[:100] for one in sorted(proven)[:4])
    return f"{text}, and this one shows another ({shown}) — add it to `certificates` if it is the new one."


def _serves(peer: Peer, listener: Listener) -> bool:
    return not peer.listeners or listener.id in peer.listeners


def _by_person(admitted: Admitted, calling: str, address: str) -> bool:
    parsed = address_of(address)
    return any(title.strip() == calling and (where == address or (parsed is not None and address_of(where) == parsed))
               for title, where in admitted)


def _quoted(title: str) -> str:
    return f'"{escape(title)}"' if title else "a blank title"


def _who(calling: str, address: str) -> str:
    return f"{_quoted(calling)} at {escape(address)}"


def difference(came: str, expected: str) -> str:
    """How two titles that are nearly the same differ, in words; empty where they are simply different."""
    if came == expected or not came or not expected:
        return ""
    if came.casefold() == expected.casefold():
        return "upper and lower case"
    bare_came, bare_expected = _bare(came), _bare(expected)
    if not bare_came or not bare_expected:
        return ""
    if bare_came == bare_expected:
        spaces = came.replace(" ", "") == expected.replace(" ", "")
        return "a space" if spaces else "a space or punctuation"
    if bare_came.casefold() == bare_expected.casefold():
        return "upper and lower case, and a space or punctuation"
    if min(len(came), len(expected)) >= 3 and _one_apart(came.casefold(), expected.casefold()):
        return "one character"
    return ""


def _bare(title: str) -> str:
    return "".join(c for c in title if c not in " _-.\0")


def _one_apart(one: str, other: str) -> bool:
    """Whether one insertion, deletion, replacement or swap of neighbours turns one into the other."""
    if len(one) > len(other):
        one, other = other, one
    if len(other) - len(one) > 1:
        return False
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    if len(one) < len(other):
        return one[at:] == other[at + 1:]
    if one[at + 1:] == other[at + 1:]:
        return True
    return one[at:at + 2] == other[at:at + 2][::-1] and one[at + 2:] == other[at + 2:]


def _wrong_called(listener: Listener, calling: str, called: str, address: str) -> str:
    ours = ", ".join(_quoted(title) for title in listener.titles)
    text = f"{_who(calling, address)} calls {_quoted(called)}, but [[listener]] {listener.id} answers to {ours}"
    for title in listener.titles:
        how = difference(called, title.strip())
        if how:
            return f"{text}: it differs from {_quoted(title)} in {how} — correct it in the scanner, or add it to titles."
    return f"{text} — correct the called title in the scanner, or add it to titles."


def _unknown(listener: Listener, peers: Sequence[Peer], calling: str, address: str) -> str:
    """Why nobody is this sender, nearest miss first."""
    text = f"{_who(calling, address)} is no known peer"
    serving = [peer for peer in peers if _serves(peer, listener)]
    for peer in peers:
        if (peer not in serving and (not peer.titles or calling in peer.titles)
                and (not peer.addresses or inside(address, peer.addresses))):
            return f"{text} of [[listener]] {listener.id}: [[peer]] {peer.id} may only use {', '.join(peer.listeners)}."
    for peer in serving:
        if peer.addresses and not inside(address, peer.addresses):
            continue
        for title in peer.titles:
            how = difference(calling, title.strip())
            if how:
                return f"{text}: it differs from the title {_quoted(title)} of [[peer]] {peer.id} in {how}."
    for peer in serving:
        if calling and calling in [title.strip() for title in peer.titles]:
            where = ", ".join(peer.addresses)
            return f"{text}: {_quoted(calling)} is [[peer]] {peer.id}, but at {where}; this one calls from {escape(address)}."
    for peer in serving:
        if peer.addresses and inside(address, peer.addresses):
            titles = ", ".join(_quoted(title) for title in peer.titles)
            return f"{text}: {escape(address)} is [[peer]] {peer.id}, but its title is {titles}; this one calls itself " \
                   f"{_quoted(calling)}."
    for peer in serving:
        for title in peer.titles:
            how = difference(calling, title.strip())
            if how:
                return (f"{text}: it differs from the title {_quoted(title)} of [[peer]] {peer.id} in {how}, "
                        f"and calls from another address ({', '.join(peer.addresses)} was expected).")
    return f"{text} — add a [[peer]] for it, or admit it with `dcmgate admit`."
