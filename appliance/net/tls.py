"""TLS as DICOM profiles it (PS3.15 annex B): profiles by name, contexts made of the certificate store, the sending side.

Contexts are rebuilt when the store has changed, at the next connection: nothing
restarts, and what is up stays up. Revocation is looked up after each handshake,
below every authority of which there is a list, an old one too (`net.crl`): what
it revoked stays refused. An alarm tells of its age (`policy.certificates`), but
no clinic stops for it.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.config.secure import fingerprint
from appliance.config.settings import LEGACY, SYSTEM_TRUST, Destination, Listener, Tunnel
from appliance.net import crl
from appliance.net.certstore import Material, Store
from appliance.net.secure import Context, Identity, Secure
from appliance.net.tlserrors import OURS, THEIRS, TlsError
from appliance.telemetry.log import Log

SYSTEM_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
"""Debian's bundle of certification authorities (package ca-certificates)."""

log = Log("tls")


@dataclass(frozen=True, slots=True)
class Profile:
    """A secure transport connection profile. `suites` are those of TLS 1.2 and below, as OpenSSL names them; those of TLS
    1.3 are always AES-256-GCM, ChaCha20-Poly1305 and AES-128-GCM. `level` is OpenSSL's security level: 2 asks for RSA and
    DH of 2048 bits and elliptic curves of 224 at least (the curves offered have 253 and more)."""

    name: str
    clause: str
    lowest: ssl.TLSVersion
    suites: tuple[str, ...]
    level: int = 2

    @property
    def ciphers(self) -> str:
        return f"{':'.join(self.suites)}:@SECLEVEL={self.level}"


_GCM = ("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256")
_OLD = ("ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA",
        "AES256-GCM-SHA384", "AES128-GCM-SHA256", "AES256-SHA256", "AES128-SHA256", "AES256-SHA", "AES128-SHA")

PROFILES: dict[str, Profile] = {profile.name: profile for profile in (
    Profile("bcp195", "PS3.15 B.12", ssl.TLSVersion.TLSv1_2, _GCM),
    # B.13 shuts DHE out where its length cannot be set, which is so here: what is left is the same list, and no other order.
    Profile("bcp195-modified", "PS3.15 B.13", ssl.TLSVersion.TLSv1_2, _GCM),
    # TLS_RSA_WITH_AES_128_CBC_SHA is AES128-SHA. Its 3DES is not in Debian's OpenSSL any more.
    Profile("legacy", "PS3.15 B.3, retired", ssl.TLSVersion.TLSv1, _GCM + _OLD, 0),
)}


CURRENT_VERSIONS = ("TLSv1.2", "TLSv1.3")
CURRENT_SUITES = frozenset((*_GCM, "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"))
"""What is spoken under a current profile: who speaks anything else needs `legacy`."""


def cannot(profile: Profile) -> list[str]:
    """What this machine's OpenSSL cannot do of a profile: versions and suites, by their names; nearly always nothing."""
    versions = {ssl.TLSVersion.TLSv1: ("TLSv1", ssl.HAS_TLSv1), ssl.TLSVersion.TLSv1_1: ("TLSv1.1", ssl.HAS_TLSv1_1),
                ssl.TLSVersion.TLSv1_2: ("TLSv1.2", ssl.HAS_TLSv1_2), ssl.TLSVersion.TLSv1_3: ("TLSv1.3", ssl.HAS_TLSv1_3)}
    missing = [name for version, (name, there) in versions.items() if version >= profile.lowest and not there]
    try:
        able = {str(cipher["name"]) for cipher in _context(ssl.PROTOCOL_TLS_SERVER, profile).get_ciphers()}
    except TlsError:
        able = set()
    return missing + [suite for suite in profile.suites if suite not in able]


def announce(listener: Listener) -> None:
    """Say at the start what a person has to know of a listener: that it speaks the retired profile, what OpenSSL cannot do."""
    if listener.tls == "off":
        return
    lacking = ", ".join(cannot(PROFILES[listener.tls]))
    if listener.tls == LEGACY:
        log.warning("a listener speaks the retired AES profile: old versions and suites are accepted, but no SSL 3 and no 3DES",
                    listener=listener.id, openssl=ssl.OPENSSL_VERSION, cannot=lacking or "nothing else")
    elif lacking:
        log.error("this machine's OpenSSL cannot do all of a listener's profile", listener=listener.id,
                  openssl=ssl.OPENSSL_VERSION, cannot=lacking)


# --- contexts -----------------------------------------------------------------------------------------------------------

_CLIENTS = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "off": ssl.CERT_NONE}


def server_context(profile: Profile, material: Material, client_certificates: str = "required") -> Context:
    """For a listener. TlsError where the store lacks what it needs, or holds what cannot be used.

    No tickets and so no resumption in TLS 1.3: a session that is taken up again is
    not verified again, and a certificate that was revoked meanwhile would come in.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, profile)
    _show(context, material)
    context.verify_mode = _CLIENTS[client_certificates]
    if client_certificates != "off":
        _trust(context, material.trust, material.id)
        _revocation(context, material)
    context.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    return context


def client_context(profile: Profile, ours: Material | None, trust: Material | None) -> Context:
    """Towards a server. `ours` None: no certificate of ours; `trust` None: what the system trusts. TlsError as above."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, profile)      # verifies, and checks the host name
    if ours is not None:
        _show(context, ours)
    _trust(context, trust.trust if trust is not None else SYSTEM_BUNDLE, trust.id if trust is not None else SYSTEM_TRUST)
    if trust is not None:
        _revocation(context, trust)
    return context


def _context(protocol: int, profile: Profile) -> Context:
    context = Context(protocol)
    try:
        context.minimum_version = profile.lowest
        context.set_ciphers(profile.ciphers)
    except (ssl.SSLError, ValueError) as e:
        raise TlsError("unsupported", f"{ssl.OPENSSL_VERSION} of this machine can do none of the profile {profile.name}: {e}",
                       OURS) from None
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN     # an intermediate or a leaf may itself be the anchor
    return context


def _show(context: ssl.SSLContext, material: Material) -> None:
    if material.key is None or material.chain is None:
        raise TlsError("no_certificate", f"the certificate store has no certificate and key for [[certificate]] {material.id}",
                       OURS)
    try:
        context.load_cert_chain(material.chain, material.key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as e:
        raise TlsError("no_certificate", f"certificate and key of [[certificate]] {material.id} cannot be used: "
                                         f"{getattr(e, 'reason', None) or getattr(e, 'strerror', None) or e}", OURS) from None


def _no_password() -> str:
    raise ValueError("the key is encrypted")         # else OpenSSL asks at the terminal


def _trust(context: ssl.SSLContext, path: Path | None, id: str) -> None:
    try:
        if path is None:
            raise FileNotFoundError("there are none")
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError) as e:
        raise TlsError("no_trust", f"the trust anchors of {id} cannot be used: "
                                   f"{getattr(e, 'reason', None) or getattr(e, 'strerror', None) or e}", OURS) from None


def _revocation(context: Context, material: Material) -> None:
    if material.crl is None:
        return
    try:
        context.lists = crl.load(material.crl)
    except (OSError, ValueError) as e:
        log.error("revocation lists cannot be used", certificate=material.id, error=e)


class _Kept:
    """One context with what it was made of."""

    def __init__(self) -> None:
        self._made_of: tuple[object, ...] = ()
        self._context: Context | None = None
        self._lock = threading.Lock()

    def context(self, made_of: tuple[object, ...], build: Callable[[], Context]) -> Context:
        """The context, made anew where it was made of something else. What cannot be made anew leaves the last good one in
        force."""
        with self._lock:
            if self._context is None or made_of != self._made_of:
                try:
                    self._context = build()
                except TlsError as e:
                    if self._context is None:
                        raise
                    log.error("what is new in the certificate store cannot be used: the last stays in force", why=e.text)
                self._made_of = made_of
            return self._context


class Contexts:
    """The contexts of listeners, for all threads of a process. `state` is the folder of `[spool] state`."""

    def __init__(self, state: str | Path) -> None:
        self._store = Store(state)
        self._kept: dict[str, _Kept] = {}

    def server(self, listener: Listener) -> Context:
        """For the next connection at this listener. TlsError where there is none."""
        material = self._store.material(listener.certificate)
        kept = self._kept.setdefault(listener.id, _Kept())
        key = (listener.tls, listener.certificate, listener.client_certificates, material.generation)
        return kept.context(key, lambda: server_context(PROFILES[listener.tls], material, listener.client_certificates))


class Client:
    """TLS towards one server: `wrap` each new connection. Sessions are resumed while nothing has changed.

    `spoken` is version and suite of the last handshake that was good, `shown` what the server's certificate said in it.
    Not for two threads at once.
    """

    def __init__(self, store: Store, entry: Destination | Tunnel, host: str) -> None:
        """`host` is the name that the certificate must carry where the entry says no other."""
        self._store = store
        self._entry = entry
        self.server_name = (entry.server_name or host).rstrip(".")
        self._pins = frozenset(filter(None, map(fingerprint, entry.pins)))
        self._kept = _Kept()
        self._context: ssl.SSLContext | None = None
        self._session: ssl.SSLSession | None = None
        self.spoken = ("", "")
        self.shown: Identity | None = None

    def wrap(self, sock: socket.socket, deadline: float, whose: str) -> Secure:
        """The connection with TLS, proven by `deadline` (monotonic seconds). TlsError, TimeoutError, OSError; it stays open."""
        context = self.context()
        if context is not self._context:
            self._context, self._session = context, None
        secure = Secure(sock, context, server_name=self.server_name, session=self._session, whose=whose)
        try:
            secure.handshake(deadline)
        except TlsError:
            self._session = None
            raise
        self._pinned(secure, whose)
        self.spoken, self.shown = (secure.version, secure.suite), secure.identity
        return secure

    def keep(self, secure: Secure) -> None:
        """Before it is closed: its session may be resumed."""
        with suppress(ssl.SSLError, ValueError):
            session = secure.session
            if session is not None and session.has_ticket:
                self._session = session

    def context(self) -> Context:
        """Made of the store as it is now. TlsError."""
        entry = self._entry
        ours = self._store.material(entry.certificate) if entry.certificate else None
        anchors = entry.trust or entry.certificate
        trust = None if anchors == SYSTEM_TRUST else self._store.material(anchors)
        key = (ours.generation if ours else 0, trust.generation if trust else 0)
        return self._kept.context(key, lambda: client_context(PROFILES[entry.tls], ours, trust))

    def _pinned(self, secure: Secure, whose: str) -> None:
        if not self._pins:
            return
        shown = secure.identity.fingerprint if secure.identity else ""
        if shown not in self._pins:
            raise TlsError("not_pinned", f"{whose} is refused: its fingerprint sha256:{shown} is not one of the pins", THEIRS)


def profiles() -> Iterable[Profile]:
    """For the conformance page."""
    return PROFILES.values()
