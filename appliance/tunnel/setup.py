"""Setup: the stunnel configuration of one tunnel, as text, with options that stunnel 5.68 (Debian 12) and 5.74 (13) both know.

What it says is what `net.tls` says of destinations and listeners: the profile's
versions and suites, mutual authentication, the name checked, revocation lists
while they are in force, no resumption where TLS ends here. Where stunnel cannot
do the same it is stricter: trust anchors have to be self-signed roots, and a pin
is the certificate itself and not its fingerprint (see `pins`).
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from appliance.config.hosts import host_port, is_address
from appliance.config.secure import fingerprint
from appliance.config.settings import SYSTEM_TRUST, Tunnel
from appliance.errors import TunnelError
from appliance.net.certstore import Material, Store
from appliance.net.proxy import Proxy, ProxyError, authority
from appliance.net.tls import PROFILES, SYSTEM_BUNDLE
from appliance.tunnel import pins

SUITES_13 = ("TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256")
GROUPS = ("X25519", "P-256", "X448", "P-521", "P-384")
"""What OpenSSL offers by itself: the same that destinations and listeners are given."""

CONNECT_SECONDS = 10
HANDSHAKE_SECONDS = 20
"""For the handshake, and for a proxy's answer: who says nothing is let go (hazards: TLS handshake)."""

IDLE_SECONDS = 86400
"""An association may be silent for long; a peer that is gone is noticed by keep-alive, within two minutes."""

CLOSE_SECONDS = 60
"""For an answer to somebody who has ended his own side already, as some senders of HL7 do."""

_VERSIONS = {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}

FOLDER = "tunnels"
ANCHORS = "trust.pem"
"""Beside the configuration: trust anchors together with the pinned certificates, where there are pins."""


LISTENS = "; listens on "


@dataclass(frozen=True, slots=True)
class Setup:
    """`text` is the configuration; `anchors` what has to be in the file ANCHORS beside it, if anything has. `text` differs
    whenever anything that it is made of does. It may have a proxy's password in it."""

    id: str
    listen: str
    text: str
    anchors: bytes = b""

    @property
    def digest(self) -> str:
        """Differs whenever the text does."""
        return blake2b(self.text.encode(), digest_size=16).hexdigest()


class Maker:
    """Makes the setups of a box's tunnels. `state` is the folder of `[spool] state`, `run` that of `[control] run`."""

    def __init__(self, state: str | Path, run: Path) -> None:
        self._state = Path(state)
        self._store = Store(state)
        self._run = run
        self._known: dict[str, tuple[int, _Anchors]] = {}

    def setup(self, tunnel: Tunnel) -> Setup:
        """As the store is now. TunnelError where something is missing, with what mends it."""
        listen, connect = host_port(tunnel.listen), host_port(tunnel.connect)
        if listen is None or connect is None:
            raise TunnelError(f"[[tunnel]] {tunnel.id} does not say where it listens and leads",
                              mend="Run `dcmgate config check`.")
        client = tunnel.side == "client"
        lines = ["foreground = yes", "syslog = no", "pid =", "debug = notice", "", f"[{tunnel.id}]",
                 f"client = {'yes' if client else 'no'}", f"accept = {listen[0]}:{listen[1]}",
                 *(self._way(tunnel, connect) if client else [f"connect = {connect[0]}:{connect[1]}"]),
                 "delay = yes", f"TIMEOUTconnect = {CONNECT_SECONDS}", f"TIMEOUTbusy = {HANDSHAKE_SECONDS}",
                 f"TIMEOUTidle = {IDLE_SECONDS}", f"TIMEOUTclose = {CLOSE_SECONDS}"]
        for end in ("l", "r"):
            lines += [f"socket = {end}:{option}" for option in (
                "TCP_NODELAY=yes", "SO_KEEPALIVE=yes", "TCP_KEEPIDLE=60", "TCP_KEEPINTVL=15", "TCP_KEEPCNT=4")]
        lines += _protocol(tunnel, client)
        ours = self._ours(tunnel)
        if ours is not None:
            lines += [f"cert = {ours.chain}", f"key = {ours.key}"]
        trust, anchors = self._trust(tunnel)
        lines += trust
        if client:
            lines += _name(tunnel, connect[0])
        made_of = " ".join([*(f"{material.generation:x}" for material in (ours, self._anchor_material(tunnel)) if material),
                            *([blake2b(anchors, digest_size=7).hexdigest()] if anchors else [])])
        head = ["; Made by Dcmgate, and made anew whenever the configuration or the certificate store changes.",
                f"; store {made_of}", f"{LISTENS}{tunnel.listen}"]
        for line in lines:
            value = line.partition(" = ")[2]
            if not line.isprintable() or value != value.strip():
                raise TunnelError(f"[[tunnel]] {tunnel.id} cannot be set up: {line.partition(' =')[0]} has a control sign, "
                                  "or a space at one of its ends", mend="Write it without.")
        return Setup(tunnel.id, tunnel.listen, "\n".join([*head, *lines, ""]), anchors)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _way(self, tunnel: Tunnel, connect: tuple[str, int]) -> list[str]:
        if not tunnel.proxy:
            return [f"connect = {connect[0]}:{connect[1]}"]
        proxy = Proxy(tunnel.proxy, self._state)
        lines = [f"connect = {proxy.host}:{proxy.port}", "protocol = connect", f"protocolHost = {authority(*connect)}"]
        try:
            user, _, password = proxy.credentials().decode().partition(":")
        except ProxyError as e:
            raise TunnelError(e.text, mend="Give it anew with `dcmgate proxy password`.") from None
        except UnicodeDecodeError:
            raise TunnelError(f"the password for the proxy {proxy.place} is not UTF-8",
                              mend="Give it anew with `dcmgate proxy password`.") from None
        if user:
            lines += [f"protocolUsername = {user}", f"protocolPassword = {password}"]
        return lines

    def _ours(self, tunnel: Tunnel) -> Material | None:
        if not tunnel.certificate:
            return None
        material = self._store.material(tunnel.certificate)
        if material.chain is None:
            raise TunnelError(f"the certificate store has no certificate and key for [[certificate]] {tunnel.certificate}",
                              mend=f"`dcmgate cert request {tunnel.certificate}`, have it signed, `dcmgate cert install` it.")
        return material

    def _anchor_material(self, tunnel: Tunnel) -> Material | None:
        name = tunnel.trust or tunnel.certificate
        return None if name == SYSTEM_TRUST else self._store.material(name)

    def _trust(self, tunnel: Tunnel) -> tuple[list[str], bytes]:
        material = self._anchor_material(tunnel)
        path = SYSTEM_BUNDLE if material is None else material.trust
        if path is None or not path.exists():
            name = tunnel.trust or tunnel.certificate
            raise TunnelError(f"there are no trust anchors of {name}", mend="Install the package ca-certificates."
                              if material is None else f"`dcmgate cert install --trust {name}` with those of its authority.")
        lines, anchors = ["verifyChain = yes"], b""
        if wanted := [fingerprint(pin) for pin in tunnel.pins]:
            known = pins.of(self._state, wanted)
            if not known:
                raise TunnelError(
                    f"no certificate with one of the pins of [[tunnel]] {tunnel.id} is known yet",
                    mend="It is fetched where the other end is a server that answers; else give it: "
                         f"`dcmgate tunnel {tunnel.id} --pin FILE`.")
            anchors = path.read_bytes().rstrip(b"\n") + b"\n" + b"".join(known)
            path = self._run / FOLDER / tunnel.id / ANCHORS
            lines.append("verifyPeer = yes")
        lines.append(f"CAfile = {path}")
        if material is not None:
            held = self._anchors(material)
            if not held.roots:
                raise TunnelError(f"the trust anchors of {material.id} have no self-signed root, which stunnel asks for",
                                  mend=f"`dcmgate cert install --trust --add {material.id}` with the root of that authority.")
            if held.since <= time.time_ns() < held.until:
                lines.append(f"CRLfile = {material.crl}")
        return lines, anchors

    def _anchors(self, material: Material) -> _Anchors:
        """Looked at anew only where the store has changed. CertificateError where a file cannot be read."""
        known = self._known.get(material.id)
        if known is None or known[0] != material.generation:
            known = self._known[material.id] = (material.generation, _look_at(material))
        return known[1]


@dataclass(frozen=True, slots=True)
class _Anchors:
    """`roots`: whether a self-signed one is among them. `since`, `until`: from when to when every revocation list is in force
    (wall ns); with an old one, or without one, stunnel would refuse everybody."""

    roots: bool
    since: int = 0
    until: int = 0


def _look_at(material: Material) -> _Anchors:
    from appliance.net import certificates  # 18 MB that a box without tunnels does not need
    bundle = certificates.Bundle()
    if material.trust is not None:
        certificates.read(material.trust, bundle)
    roots = any(certificates.is_self_signed(one) for one in bundle.certificates)
    lists = certificates.Bundle()
    if material.crl is not None:
        certificates.read(material.crl, lists)
    facts = [certificates.list_facts(one) for one in lists.lists]
    return _Anchors(roots, max((one.this_update for one in facts), default=0),
                    min((one.next_update for one in facts), default=0))


def _protocol(tunnel: Tunnel, client: bool) -> list[str]:
    profile = PROFILES[tunnel.tls]
    lines = [f"sslVersionMin = {_VERSIONS[profile.lowest]}", f"ciphers = {':'.join(profile.suites)}",
             f"ciphersuites = {':'.join(SUITES_13)}", f"curves = {':'.join(GROUPS)}", f"securityLevel = {profile.level}",
             "renegotiation = no"]
    if not client:               # a session that is taken up again is not verified again
        lines += ["options = CIPHER_SERVER_PREFERENCE", "options = NO_TICKET", "sessionResume = no"]
    return lines


def _name(tunnel: Tunnel, host: str) -> list[str]:
    """The name that is asked for and checked."""
    name = (tunnel.server_name or host).rstrip(".")
    if is_address(name):
        return ["sni =", f"checkIP = {name}"]
    return [f"sni = {name}", f"checkHost = {name}"]


def masked(text: str) -> str:
    """A configuration to be shown: without a password."""
    return "\n".join("protocolPassword = (not shown)" if line.startswith("protocolPassword") else line
                     for line in text.split("\n"))
