"""What a configuration says of TLS: certificates that exist, nothing asked of TLS where it is off, tunnels that lead somewhere.

Everything here adds to the `Findings`; nothing raises. That the files of a
certificate are there and good is not for the configuration: it is valid before
the first certificate has come, and an alarm names what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from appliance.config.findings import Findings, did_you_mean
from appliance.config.hosts import host_port, is_address, is_host
from appliance.config.lines import Path
from appliance.config.settings import LEGACY, PROFILES, SYSTEM_TRUST, Config, Destination, Listener, Tunnel

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_BOUND = re.compile(r"(sha256|dns|uri|email):(.+)")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s]+")
_OFF = "is for TLS, which is off here"
_TURN_ON = 'write tls = "bcp195", or leave it out'


def fingerprint(text: str) -> str:
    """A SHA-256 fingerprint in 64 small hex digits, from what tools print of it; "" where it is none."""
    digits = text.strip().lower().removeprefix("sha256:").removeprefix("sha256 fingerprint=").replace(":", "").replace(" ", "")
    return digits if _FINGERPRINT.fullmatch(digits) else ""


def bound_to(text: str) -> tuple[str, str] | None:
    """An entry of a peer's `certificates` as (kind, value): `("sha256", 64 hex digits)`, `("dns", name)`, `("uri", …)` or
    `("email", …)`; a DNS name in small letters. None where it is none of these."""
    match = _BOUND.fullmatch(text.strip())
    if not match:
        return None
    kind, value = match[1], match[2].strip()
    if kind == "sha256":
        value = fingerprint(value)
    elif kind == "dns":
        value = value.lower() if is_host(value) else ""
    elif kind == "uri":
        value = value if _URI.fullmatch(value) else ""
    elif "@" not in value:
        value = ""
    return (kind, value) if value else None


def check_certificates(findings: Findings, config: Config) -> None:
    """The entries `[[certificate]]`."""
    for nth, certificate in enumerate(config.certificates):
        path: Path = ("certificate", nth)
        if certificate.id == SYSTEM_TRUST:
            findings.wrong((*path, "id"), f'"{SYSTEM_TRUST}" stands for what the system trusts', 'write id = "box"')
        for i, name in enumerate(certificate.names):
            if not (is_host(name.removeprefix("*.")) or "@" in name or _URI.fullmatch(name)):
                findings.wrong((*path, "names", i), f'"{name[:60]}" is no host name, address or URI',
                               'write for example "gateway.example.org"')
        if certificate.est_url and not re.fullmatch(r"https://[^\s/?#@]+/?", certificate.est_url):
            findings.wrong((*path, "est_url"), f'"{certificate.est_url[:60]}" is not the URL of an EST server',
                           'write https:// and the host, without a path: "https://est.example.org:8443"; '
                           "a label stands in est_label")
        if certificate.est_label and not re.fullmatch(r"[A-Za-z0-9_.~-]+", certificate.est_label):
            findings.wrong((*path, "est_label"), f'"{certificate.est_label[:60]}" cannot be part of a URL',
                           "the authority names its labels")
        if not certificate.est_url and not findings.is_wrong((*path, "est_url")):
            for key in ("est_label", "est_user", "est_trust"):
                if getattr(certificate, key):
                    findings.wrong((*path, key), "is for enrolment, and there is no est_url", "give est_url, or leave it out")
        elif certificate.est_trust != SYSTEM_TRUST:
            _reference(findings, (*path, "est_trust"), certificate.est_trust, [c.id for c in config.certificates])
        for i, url in enumerate(certificate.crl_urls):
            if not re.fullmatch(r"https?://[^\s/?#@]+/[^\s#]*", url):
                findings.wrong((*path, "crl_urls", i), f'"{url[:60]}" is no URL of a revocation list',
                               'write for example "http://pki.example.org/root.crl"')
        if certificate.proxy:
            _host_port(findings, (*path, "proxy"), certificate.proxy, "proxy.example.org:3128")


def check_tls(findings: Findings, config: Config) -> None:
    """Whatever refers to TLS: listeners, peers, destinations, tunnels."""
    known = [certificate.id for certificate in config.certificates]
    for nth, listener in enumerate(config.listeners):
        _listener(findings, ("listener", nth), listener, known)
    _peers(findings, config)
    for nth, destination in enumerate(config.destinations):
        _destination(findings, ("destination", nth), destination, known)
    _tunnels(findings, config, known)


def remarks_on_tls(config: Config) -> list[str]:
    """What is allowed and yet perhaps not meant: one sentence each."""
    said = [f'listener "{listener.id}" speaks the retired AES profile: old protocols and ciphers are accepted there'
            for listener in config.listeners if listener.tls == LEGACY]
    said += [f'certificate "{c.id}" has a key of elliptic curves, and listener "{x.id}" speaks the AES profile, whose own '
             'cipher suites need RSA: write key_type = "rsa-3072" for old scanners' for x in config.listeners
             for c in config.certificates if x.tls == LEGACY and c.id == x.certificate and c.key_type.startswith("ec-")]
    said += [f'certificate "{c.id}" has a key of elliptic curves: scanners that speak TLS 1.2 with suites of RSA only, such as '
             f'those built on DCMTK 3.6.7, cannot come in at listener "{x.id}"; with key_type = "rsa-3072" all can'
             for x in config.listeners for c in config.certificates
             if x.tls in PROFILES and c.id == x.certificate and c.key_type.startswith("ec-")]
    said += [f'destination "{d.id}" is a public address without TLS: images leave in clear text'
             for d in config.destinations if d.tls == "off" and is_address(d.address) and ip_address(d.address).is_global]
    callers: tuple[Destination | Tunnel, ...] = (*config.destinations, *config.tunnels)
    used = {x.certificate for x in config.listeners} | {x.certificate for x in callers} | {x.trust for x in callers}
    used |= {c.est_trust for c in config.certificates}
    return said + [f'certificate "{c.id}" is not used: no listener, destination or tunnel names it'
                   for c in config.certificates if c.id not in used]


# --- entries -------------------------------------------------------------------------------------------------------------

def _listener(findings: Findings, path: Path, listener: Listener, known: list[str]) -> None:
    if findings.is_wrong((*path, "tls")):
        return
    if listener.tls == "off":
        if listener.certificate:
            findings.wrong((*path, "certificate"), _OFF, _TURN_ON)
        if listener.client_certificates == "optional":
            findings.wrong((*path, "client_certificates"), _OFF, _TURN_ON)
    else:
        _our_certificate(findings, path, listener.certificate, known, "a TLS listener")


def _our_certificate(findings: Findings, path: Path, name: str, known: list[str], what: str) -> None:
    if findings.is_wrong((*path, "certificate")):
        return
    if not name:
        findings.wrong((*path, "certificate"), f"is missing for {what}", _give(known))
    else:
        _reference(findings, (*path, "certificate"), name, known)


def _give(known: list[str]) -> str:
    if known:
        return f'write certificate = "{known[0]}"'
    return 'add [[certificate]] with an id, and write certificate = "that id"'


def _reference(findings: Findings, path: Path, name: str, known: list[str]) -> None:
    if name and name not in known:
        mend = did_you_mean(name, known) if known else "add [[certificate]] with this id"
        findings.wrong(path, f'there is no certificate "{name[:64]}"', mend)


def _peers(findings: Findings, config: Config) -> None:
    proving = [x.id for x in config.listeners if x.tls != "off" and x.client_certificates != "off"]
    blind = [x.id for x in config.listeners if x.id not in proving]
    for nth, peer in enumerate(config.peers):
        path: Path = ("peer", nth)
        for i, text in enumerate(peer.certificates):
            if bound_to(text) is None:
                findings.wrong((*path, "certificates", i), f'"{text[:80]}" says nothing of a certificate',
                               'write "sha256:" and 64 hex digits, or "dns:ct1.example.org", "uri:…" or "email:…"')
        if not peer.certificates or findings.is_wrong((*path, "certificates")) or findings.is_wrong((*path, "listeners")):
            continue
        without = [name for name in peer.listeners if name in blind]
        if without or (not peer.listeners and not proving):
            which = f'listener "{without[0]}" asks for none' if without else "no listener asks for any"
            findings.wrong((*path, "certificates"), f"this peer would never be known: {which}",
                           'give the listener tls and client_certificates = "required", or leave the certificates out')


def _destination(findings: Findings, path: Path, destination: Destination, known: list[str]) -> None:
    if findings.is_wrong((*path, "tls")) or findings.is_wrong((*path, "type")):
        return
    if destination.type == "folder":
        for key in ("certificate", "trust", "server_name", "pins", "proxy"):
            if getattr(destination, key):
                findings.wrong((*path, key), "is not for a destination of type folder", "leave it out")
        if destination.tls != "off":
            findings.wrong((*path, "tls"), "is not for a destination of type folder", "leave it out")
        return
    if destination.proxy:
        _host_port(findings, (*path, "proxy"), destination.proxy, "proxy.example.org:3128")
    if destination.tls == "off":
        for key in ("certificate", "trust", "server_name", "pins"):
            if getattr(destination, key):
                findings.wrong((*path, key), _OFF, _TURN_ON)
        return
    _reference(findings, (*path, "certificate"), destination.certificate, known)
    _far_end(findings, path, destination, known)


def _far_end(findings: Findings, path: Path, entry: Destination | Tunnel, known: list[str]) -> None:
    """What the other end has to prove: trust, name, pins."""
    if entry.trust != SYSTEM_TRUST:
        _reference(findings, (*path, "trust"), entry.trust, known)
        if not entry.trust and not entry.certificate and not findings.is_wrong((*path, "certificate")):
            findings.wrong((*path, "trust"), "is missing: nothing says whose certificates are trusted",
                           f'write trust = "{known[0] if known else SYSTEM_TRUST}"')
    if entry.server_name and not is_host(entry.server_name):
        findings.wrong((*path, "server_name"), f'"{entry.server_name[:60]}" is no host name and no address',
                       "write the name as it stands in the certificate")
    _pins(findings, (*path, "pins"), entry.pins)


def _pins(findings: Findings, path: Path, pins: Iterable[str]) -> None:
    for nth, pin in enumerate(pins):
        if not fingerprint(pin):
            findings.wrong((*path, nth), f'"{pin[:80]}" is not a SHA-256 fingerprint',
                           "write its 64 hex digits; `dcmgate cert pin` shows it")


def _host_port(findings: Findings, path: Path, text: str, example: str) -> tuple[str, int] | None:
    found = host_port(text)
    if found is None and not findings.is_wrong(path):
        findings.wrong(path, f'"{text[:60]}" is not host:port' if text else "is missing", f'write for example "{example}"')
    return found


# --- tunnels -------------------------------------------------------------------------------------------------------------

def _tunnels(findings: Findings, config: Config, known: list[str]) -> None:
    taken: dict[tuple[str, int], str] = {}
    for listener in config.listeners:
        taken.update(dict.fromkeys([(listener.address, port) for port in listener.ports], f'listener "{listener.id}"'))
    for nth, tunnel in enumerate(config.tunnels):
        path: Path = ("tunnel", nth)
        listen = _host_port(findings, (*path, "listen"), tunnel.listen, "127.0.0.1:11113")
        if listen and not is_address(listen[0]):
            findings.wrong((*path, "listen"), f'"{listen[0][:60]}" is not an address of this box',
                           f'write "127.0.0.1:{listen[1]}"')
        elif listen:
            _port_taken(findings, (*path, "listen"), listen, taken)
            taken[listen] = f'tunnel "{tunnel.id}"'
        connect = _host_port(findings, (*path, "connect"), tunnel.connect, "ris.example.org:2762")
        if connect and connect == listen:
            findings.wrong((*path, "connect"), "leads to where the tunnel itself listens", "name the far end")
        _tunnel(findings, path, tunnel, known)


def _port_taken(findings: Findings, path: Path, listen: tuple[str, int], taken: dict[tuple[str, int], str]) -> None:
    for (address, port), whose in taken.items():
        if port != listen[1] or not is_address(address):
            continue
        if address == listen[0] or ip_address(address).is_unspecified or ip_address(listen[0]).is_unspecified:
            findings.wrong(path, f"port {port} is already that of {whose} on {address}", "give one of them another port")
            return


def _tunnel(findings: Findings, path: Path, tunnel: Tunnel, known: list[str]) -> None:
    if findings.is_wrong((*path, "side")):
        return
    if tunnel.side == "server":
        _our_certificate(findings, path, tunnel.certificate, known, "the TLS side of a tunnel")
        for key in ("server_name", "proxy"):
            if getattr(tunnel, key):
                findings.wrong((*path, key), "is not for a tunnel whose TLS side is here",
                               'leave it out, or write side = "client"')
    else:
        _reference(findings, (*path, "certificate"), tunnel.certificate, known)
        if tunnel.proxy:
            _host_port(findings, (*path, "proxy"), tunnel.proxy, "proxy.example.org:3128")
    if not findings.is_wrong((*path, "server_name")):
        _far_end(findings, path, tunnel, known)
    if tunnel.check == "echo" and not tunnel.called:
        findings.wrong((*path, "called"), "is missing: a C-ECHO calls a title", 'write called = "…", or check = "tcp"')
