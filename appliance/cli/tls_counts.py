"""What `status` and `peers` show of TLS: listeners, handshakes that failed in both directions, who needs the old profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from appliance.cli.text import plural, safe, when
from appliance.config.settings import LEGACY as LEGACY_PROFILE
from appliance.policy.handshakes import LEGACY, REFUSED, read

if TYPE_CHECKING:
    from appliance.config.settings import Config, Listener
    from appliance.spool.rows import Knock


def refused(knocks: Iterable[Knock], kind: str, entry: str) -> dict[str, int]:
    """Handshakes that failed at a listener (REFUSED) or with a destination (REFUSED_THERE): how many by the check that did."""
    counts: Counter[str] = Counter()
    for knock in knocks:
        found = read(knock.verdict, knock.called)
        if found is not None and (found.kind, found.entry) == (kind, entry):
            counts[found.check] += knock.count
    return dict(counts)


def callers(knocks: Iterable[Knock]) -> list[dict[str, Any]]:
    """Who came by the retired profile, with what was negotiated, and whether it needed it; those that do first."""
    told = []
    for knock in knocks:
        found = read(knock.verdict, knock.called)
        if found is not None and found.kind == LEGACY:
            told.append({"listener": found.entry, "title": knock.title, "address": knock.address, "version": found.version,
                         "suite": found.suite, "needed": found.needed, "associations": knock.count, "first": knock.first_wall,
                         "last": knock.last_wall})
    return sorted(told, key=lambda caller: not caller["needed"])


def listeners(config: Config, knocks: Sequence[Knock]) -> list[dict[str, Any]]:
    """For `status`."""
    return [_listener(listener, knocks) for listener in config.listeners]


def _listener(listener: Listener, knocks: Sequence[Knock]) -> dict[str, Any]:
    told: dict[str, Any] = {"listener": listener.id, "address": listener.address, "ports": list(listener.ports),
                            "tls": listener.tls}
    if listener.tls != "off":
        told |= {"certificate": listener.certificate, "client_certificates": listener.client_certificates,
                 "refused": refused(knocks, REFUSED, listener.id)}
    if listener.tls == LEGACY_PROFILE:
        from appliance.net.tls import PROFILES, cannot
        mine = [caller for caller in callers(knocks) if caller["listener"] == listener.id]
        told |= {"legacy": {"associations": sum(c["associations"] for c in mine),
                            "needed": sum(c["associations"] for c in mine if c["needed"]), "callers": mine},
                 "cannot": cannot(PROFILES[LEGACY_PROFILE])}
    return told


def line(told: dict[str, Any]) -> str:
    """One listener of `status`; empty where it speaks no TLS."""
    if told["tls"] == "off":
        return ""
    ports = ", ".join(map(str, told["ports"]))
    text = f"listener {told['listener']}  port {ports}, TLS by {told['tls']}"
    if told["tls"] == LEGACY_PROFILE:
        text += " (retired: old protocols and suites)"
    text += f", client certificates {told['client_certificates']}"
    if told["refused"]:
        text += f"; {plural(sum(told['refused'].values()), 'handshake')} refused"
    if (legacy := told.get("legacy")) is not None:
        needing = {(caller["title"], caller["address"]) for caller in legacy["callers"] if caller["needed"]}
        text += f"; {plural(legacy['needed'], 'association')} of {plural(len(needing), 'scanner')} needed it"
        if legacy["associations"]:
            text += f", {legacy['associations'] - legacy['needed']} did not"
    if told.get("cannot"):
        text += f"; this machine's OpenSSL cannot do {', '.join(told['cannot'])}"
    return text


def legacy_rows(knocks: Iterable[Knock]) -> list[list[str]]:
    """The table of `peers`."""
    return [[f'"{safe(c["title"])}"', c["address"], c["listener"], c["version"], c["suite"], "yes" if c["needed"] else "no",
             str(c["associations"]), when(c["last"])] for c in callers(knocks)]
