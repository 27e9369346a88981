"""Enrolment: a certificate got by EST and put in force, or everything as it was and an `EstError` that says where it ended.

    trust → cacerts → enroll → check → store

Each time a new key is made here; it waits beside its request while the authority
decides (202), and goes when its certificate has come. The present certificate
stays in force until a better one is on the disk: what comes is looked at as if
the server were an enemy, and loaded by OpenSSL before anything is replaced.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from appliance.clock import Clock
from appliance.config.settings import SYSTEM_TRUST, Certificate
from appliance.errors import CertificateError
from appliance.net import certificates, tries
from appliance.net.certificates import UNREADABLE, Bundle, Key
from appliance.net.certstore import EST_KEY, EST_LOGIN, EST_REQUEST, TRUST, Writer
from appliance.net.est import EstError, Server, unproven_context
from appliance.net.proxy import Proxy
from appliance.net.secure import Context
from appliance.net.tls import PROFILES, client_context
from appliance.net.tlserrors import TlsError
from appliance.policy.certificates import BROKEN_HASHES, Facts, covers, date, typed, window
from appliance.policy.renewal import asked_for, life, pause

SECONDS = 60.0
"""For one enrolment, all its requests together."""

_PROFILE = PROFILES["bcp195"]


@dataclass(frozen=True, slots=True)
class Present:
    """The pair in force."""

    certificate: x509.Certificate
    facts: Facts


def present(writer: Writer, id: str) -> Present | None:
    """None where there is none, or it cannot be read: then there is nothing to spare."""
    material = writer.store.material(id)
    if material.chain is None:
        return None
    try:
        certificates.read(material.chain, bundle := Bundle())
        return Present(bundle.certificates[0], certificates.facts(bundle.certificates[0])) if bundle.certificates else None
    except (CertificateError, OSError, *UNREADABLE):
        return None


class Enrolment:
    """For one `[[certificate]]` with `est_url`. Only one at a time works on it, in whatever process."""

    def __init__(self, entry: Certificate, writer: Writer, clock: Clock) -> None:
        self._entry = entry
        self._writer = writer
        self._clock = clock

    def run(self, *, fingerprint: str = "", seconds: float = SECONDS) -> str:
        """What is in force now, in words. `fingerprint` (SHA-256, hex) names the authority where nothing is trusted yet.
        EstError: nothing has changed, but for trust where the fingerprint was right."""
        entry = self._entry
        if not entry.est_url:
            raise EstError("trust", f"certificate {entry.id} has no est_url", mend="Write it, or `dcmgate cert request`.")
        if not self._clock.trusted():
            raise EstError("time", f"this box's clock is wrong, it says {date(self._clock.wall_ns())}: nothing can be proven",
                           mend="Set the time, or let the box reach a time server.")
        try:
            with self._writer.enrolling(entry.id) as alone:
                if not alone:
                    raise EstError("alone", f"certificate {entry.id} is being enrolled already", mend="Wait a minute.")
                return self._enrol(fingerprint, time.monotonic() + seconds)
        except EstError:
            raise
        except CertificateError as e:
            raise EstError("store", e.message, mend=e.mend) from e
        except (OSError, *UNREADABLE) as e:
            raise EstError("store", f"the certificate store cannot be used: {e}", mend="Look at that folder.") from e

    # --- the steps ----------------------------------------------------------------------------------------------------

    def _enrol(self, fingerprint: str, deadline: float) -> str:
        entry = self._entry
        there = present(self._writer, entry.id)
        server = self._server()
        if fingerprint:
            self._trust_by(fingerprint, server, deadline)
        authorities = server.cacerts(self._context(None), deadline)
        now = self._clock.wall_ns()
        ours = there if there is not None and there.facts.not_after > now else None
        same = ours is not None and all(covers(ours.facts.names, typed(name)) for name in entry.names)
        try:
            key, issued = self._ask(server, ours, ours if same else None, deadline)
        except EstError as e:
            if not (e.refused and ours is not None and server.password):
                raise
            key, issued = self._ask(server, None, None, deadline)     # what proved us is not taken: the password may be
        try:
            chain = self._checked(key, issued, authorities, there)
        except (EstError, *UNREADABLE) as e:
            self._writer.forget(entry.id, EST_KEY, EST_REQUEST)       # the next try is one with another key
            raise e if isinstance(e, EstError) else _bad(f"it cannot be read: {e}") from e
        self._writer.install(entry.id, certificates.key_pem(key), certificates.pem(chain), prove=_loads)
        done = f"certificate {chain[0].subject.rfc4514_string()}, in force for the next connection, until " \
            f"{date(certificates.facts(chain[0]).not_after)}"
        return "; ".join(filter(None, (done, self._follow_the_root(authorities))))

    def _server(self) -> Server:
        entry = self._entry
        password = self._writer.read(entry.id, EST_LOGIN).split(b"\n")[0].rstrip(b"\r").decode("utf-8", "replace")
        return Server(entry.est_url, entry.est_label, entry.est_user if password else "", password,
                      Proxy(entry.proxy, self._writer.state) if entry.proxy else None)

    def _anchors(self) -> list[x509.Certificate]:
        """Of the store; none where the system's are meant."""
        entry = self._entry
        bundle = Bundle()
        if entry.est_trust != SYSTEM_TRUST and (text := self._writer.read(entry.est_trust or entry.id, TRUST)):
            certificates.parse(text, f"the trust anchors of {entry.est_trust or entry.id}", bundle)
        return bundle.certificates

    def _context(self, ours: Present | None) -> Context:
        entry, store = self._entry, self._writer.store
        try:
            return client_context(_PROFILE, store.material(entry.id) if ours is not None else None,
                                  None if entry.est_trust == SYSTEM_TRUST else store.material(entry.est_trust or entry.id))
        except TlsError as e:
            if e.check != "no_trust":
                raise EstError("trust", e.text, mend="Look at the certificate store: `dcmgate cert check`.") from None
            raise EstError("trust", f"nothing says whom to trust at {entry.est_url}: {e.text}",
                           mend=f"`dcmgate cert install {entry.est_trust or entry.id} --trust` with the authority's "
                           f"certificate, or `dcmgate cert enroll {entry.id} --fingerprint` with its SHA-256.") from None

    def _trust_by(self, fingerprint: str, server: Server, deadline: float) -> None:
        """The authority with that fingerprint is trusted from now on (4.1.1, out-of-band)."""
        entry = self._entry
        if entry.est_trust not in ("", entry.id):
            raise EstError("trust", f"est_trust says {entry.est_trust}: a fingerprint goes with trust of its own",
                           mend="Leave one of the two out.")
        found = server.cacerts(unproven_context(), deadline)
        named = [one for one in found if certificates.facts(one).fingerprint == fingerprint]
        if not named or not certificates.facts(named[0]).is_authority:
            known = ", ".join(f"{facts.subject} sha256:{facts.fingerprint}" for facts in map(certificates.facts, found[:4]))
            raise EstError("trust", f"no authority there has the fingerprint sha256:{fingerprint}: it shows {known}",
                           mend="Compare with what its administrator says; whoever is in between shows others.")
        anchors = list(dict.fromkeys([*self._anchors(), named[0]]))
        self._writer.put(entry.id, trust=certificates.pem(anchors))

    def _ask(self, server: Server, ours: Present | None, renew: Present | None, deadline: float
             ) -> tuple[Key, list[x509.Certificate]]:
        """Have a key certified: `ours` is shown in TLS, `renew` is what it takes the place of."""
        key, request = self._request(renew.certificate if renew is not None else None)
        if ours is None and not server.user:
            raise EstError("enroll", "there is nothing to prove ourselves by: no certificate that is valid, and no password",
                           mend=f"Write est_user, then `dcmgate cert enroll {self._entry.id} --password-file FILE`; or have a "
                           f"first one signed by hand: `dcmgate cert request {self._entry.id}`.", refused=True)
        return key, server.enroll(self._context(ours), request, deadline, renew=renew is not None)

    def _request(self, like: x509.Certificate | None) -> tuple[Key, x509.CertificateSigningRequest]:
        """The one that waits, if it is still what is wanted; else a new key and a request for it."""
        id = self._entry.id
        text, waiting = self._writer.read(id, EST_REQUEST), self._writer.read(id, EST_KEY)
        if not (text and certificates.is_for(text, self._entry, waiting, like)):
            key = certificates.new_key(self._entry.key_type)
            text, waiting = certificates.request_for(self._entry, key, like), certificates.key_pem(key)
            self._writer.put(id, est_key=waiting, est_request=text)
        certificates.parse(waiting, f"the key of {id}", bundle := Bundle())
        return bundle.keys[0], x509.load_pem_x509_csr(text)

    # --- what has come ------------------------------------------------------------------------------------------------

    def _checked(self, key: Key, issued: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate],
                 there: Present | None) -> list[x509.Certificate]:
        """The chain to show, leaf first, without a root. EstError."""
        own = certificates.public(key.public_key())
        leaf = next((one for one in issued if certificates.public(one.public_key()) == own), None)
        if leaf is None:
            raise _bad("it is for another key than ours")
        facts, now = certificates.facts(leaf), self._clock.wall_ns()
        missing = [name for name in self._entry.names if not covers(facts.names, typed(name))]
        if missing:
            raise _bad(f"it does not carry {', '.join(missing)}; it carries {', '.join(facts.names) or 'no names'}")
        if facts.not_after <= now:
            raise _bad(f"it has expired already, at {date(facts.not_after)}")
        if facts.not_before > now:
            raise _bad(f"it is not valid before {date(facts.not_before)}, and this box's clock says {date(now)}")
        if facts.is_authority:
            raise _bad("it is one of an authority")
        if facts.signature in BROKEN_HASHES:
            raise _bad(f"it is signed with {facts.signature.upper()}, which is broken")
        if there is not None:
            self._no_worse(leaf, facts, there)
        return self._chain(leaf, issued, authorities, now)

    def _no_worse(self, leaf: x509.Certificate, facts: Facts, there: Present) -> None:
        has = certificates.purposes(leaf)
        if has and not certificates.purposes(there.certificate) <= has:
            raise _bad("it is not meant for all that the present one is for (extended key usage)")
        if facts.not_after < there.facts.not_after and not [
                name for name in self._entry.names if not covers(there.facts.names, typed(name))]:
            raise _bad(f"it ends earlier than the present one, at {date(facts.not_after)}")

    def _chain(self, leaf: x509.Certificate, issued: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate],
               now: int) -> list[x509.Certificate]:
        """Up to an authority that we trust, or that the proven server has named as its own."""
        tops = [*self._anchors(), *authorities]
        pool = [*tops, *(one for one in issued if one is not leaf)]
        chain = [leaf]
        while True:
            above = [one for one in pool if one not in chain and one.subject == chain[-1].issuer
                     and certificates.issued(chain[-1], one)]
            good = [one for one in above if (known := certificates.facts(one)).is_authority and known.not_after > now]
            if not good:
                raise _bad(f"it was issued by {chain[-1].issuer.rfc4514_string()}, which is no authority that is trusted here")
            roots = [one for one in good if one in tops and certificates.is_self_signed(one)]
            if roots:
                return chain
            anchor = next((one for one in good if one in tops), None)
            chain.append(anchor or good[0])
            if anchor is not None and not any(one.subject == anchor.issuer for one in pool):
                return chain                   # an authority in the middle that is itself what is trusted

    def _follow_the_root(self, authorities: Sequence[x509.Certificate]) -> str:
        """A new root that a trusted one has signed for (4.1.3) is trusted from now on, besides it. In words."""
        entry = self._entry
        anchors = self._anchors()
        if entry.est_trust == SYSTEM_TRUST or not anchors:
            return ""
        vouched = {certificates.public(one.public_key()) for one in authorities if certificates.facts(one).is_authority
                   and not certificates.is_self_signed(one) and any(
                       one.issuer == anchor.subject == one.subject and certificates.issued(one, anchor) for anchor in anchors)}
        new = [one for one in authorities if one not in anchors and certificates.is_self_signed(one)
               and certificates.public(one.public_key()) in vouched]
        if not new:
            return ""
        self._writer.put(entry.est_trust or entry.id, trust=certificates.pem([*anchors, *new]))
        return "trusted from now on: " + ", ".join(one.subject.rfc4514_string() for one in new)


def _bad(why: str) -> EstError:
    return EstError("check", f"what the authority has issued cannot be used: {why}",
                    mend="Tell the authority; the present certificate stays in force.")


def _loads(made: Path) -> None:
    """Whether OpenSSL takes it. EstError."""
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(_PROFILE.ciphers)
    try:
        context.load_cert_chain(made / "chain.pem", made / "key.pem", password="")
    except (ssl.SSLError, OSError, ValueError) as e:
        raise _bad(f"OpenSSL does not take it ({getattr(e, 'reason', None) or e})") from None


def enrol(entry: Certificate, writer: Writer, clock: Clock, share: float, *, fingerprint: str = "") -> str:
    """Enrol, and keep in the store how it went; `share` in [0, 1) spreads the pause after a failure. EstError."""
    before = tries.enrolment(writer.store, entry.id)
    try:
        done = Enrolment(entry, writer, clock).run(fingerprint=fingerprint)
    except EstError as error:
        if error.step != "alone":
            leaf = present(writer, entry.id)
            room = window(life(leaf.facts), entry.renew_days) if leaf is not None else 0
            waits = error.step == "wait"
            wait = asked_for(error.again) if error.again > 0 else 0
            if not waits or not wait:
                wait = max(wait, pause(before.tries.failures + 1, room, share))
            with suppress(CertificateError):         # a store that cannot be written: then it is tried sooner
                tries.keep_enrolment(writer, entry.id, tries.failed(clock, before, error.step, error.message, error.mend, wait,
                                                                    waits=waits))
        raise
    tries.keep_enrolment(writer, entry.id, tries.good(clock))
    return done
