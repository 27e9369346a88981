"""Revocation lists into the store: fetched (RFC 5280, 4.2.1.13), or put there by somebody; checked before they count.

A list counts if an authority that this store entry knows has signed it, and if
it is newer than the one of that authority that there is. Lists of several places
stand side by side; there is one for each issuer, key and distribution point.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cryptography import x509

from appliance.config.settings import SYSTEM_TRUST, Certificate
from appliance.errors import CertificateError
from appliance.net import certificates
from appliance.net.certificates import UNREADABLE, Bundle
from appliance.net.certstore import CRL, Material, Writer
from appliance.net.proxy import Proxy
from appliance.net.tls import PROFILES, client_context
from appliance.net.tlserrors import TlsError
from appliance.net.web import WebError, ask

LARGEST = 16 << 20
"""Bytes of a list that is fetched: some 400,000 entries."""

SECONDS = 60.0
"""For one list, from the look-up of the name to the last byte."""

_ASK = "See whether this box may reach it; or write another of crl_urls, or `crl_fetch = false`."


def places(entry: Certificate, material: Material) -> list[str]:
    """Where lists are fetched for a store entry: as configured, and where our certificates and those we trust name a place."""
    bundle = Bundle()
    found = list(entry.crl_urls)
    for path in (material.chain, material.trust):
        if path is not None:
            certificates.read(path, bundle)
    for certificate in bundle.certificates:
        try:
            found += certificates.list_places(certificate)
        except UNREADABLE:
            continue
    return list(dict.fromkeys(found))


def fetch(url: str, entry: Certificate, writer: Writer) -> tuple[str, int]:
    """Fetch what is there and take it up: what was done, in words (empty: nothing new), and until when it holds (ns, 0: it
    does not say). CertificateError."""
    deadline = time.monotonic() + SECONDS
    material = writer.store.material(entry.id)
    try:
        context = client_context(PROFILES["bcp195"], None, None if entry.est_trust == SYSTEM_TRUST else material) \
            if url.startswith("https:") else None
        proxy = Proxy(entry.proxy, writer.state) if entry.proxy else None
        answer = ask("GET", url, deadline=deadline, largest=LARGEST, context=context, proxy=proxy)
    except (WebError, TlsError) as e:
        raise CertificateError(f"the revocation list at {url} cannot be fetched: {e.text}", mend=_ASK) from None
    except ValueError as e:
        raise CertificateError(f"the revocation list cannot be fetched: {e}", mend="Correct crl_urls.") from None
    if answer.status != 200:
        raise CertificateError(f"the revocation list at {url} cannot be fetched: the server says {answer.said()}", mend=_ASK)
    bundle = Bundle()
    certificates.parse(answer.body, url, bundle)
    if not bundle.lists:
        raise CertificateError(f"what is at {url} is no revocation list", mend=_ASK)
    done = take(writer, entry.id, bundle.lists, old_is_fine=True)
    ends = [certificates.list_facts(one).next_update for one in bundle.lists]
    return done, min(ends)


def take(writer: Writer, id: str, new: Sequence[x509.CertificateRevocationList], *, old_is_fine: bool = False,
         known: Sequence[x509.Certificate] = ()) -> str:
    """Put lists into the store, besides those that there are; in words what was new. `known`: authorities besides those of
    the store entry. `old_is_fine`: one that is not newer than ours is passed over. CertificateError."""
    material = writer.store.material(id)
    authorities = Bundle(certificates=list(known))
    there = Bundle()
    for path in (material.chain, material.trust):
        if path is not None:
            certificates.read(path, authorities)
    if before := writer.read(id, CRL):
        try:
            certificates.parse(before, f"the revocation lists of {id}", there)
        except CertificateError:
            there = Bundle()                 # damaged: what comes now is all there is
    merged = {_which(one): one for one in there.lists}
    done = []
    for one in new:
        issuer = one.issuer.rfc4514_string()
        _usable(one, issuer)
        if certificates.list_signer(one, authorities.certificates) is None:
            raise CertificateError(f"the revocation list of {issuer} is signed by no authority known for {id}",
                                   mend=f"`dcmgate cert install {id} --trust` with its certificate first.")
        ours = merged.get(_which(one))
        if ours is not None and ours.last_update_utc > one.last_update_utc:
            if old_is_fine:
                continue
            raise CertificateError(f"the revocation list of {issuer} is older than the one there is",
                                   mend="Give the latest one.")
        if ours != one:
            merged[_which(one)] = one
            done.append(f"revocation list of {issuer}, {len(one)} revoked")
    if done:
        text = certificates.pem(merged.values())
        if len(text) > certificates.LARGEST:
            raise CertificateError(f"the revocation lists of {id} are too long: {len(text)} bytes, {certificates.LARGEST} are "
                                   "the most", mend="Ask the authority for one with fewer entries.")
        writer.put(id, crl=text)
    return "; ".join(done)


def _usable(one: x509.CertificateRevocationList, issuer: str) -> None:
    """Deltas and lists of other people's certificates are not what this reads them for. CertificateError."""
    try:
        for extension in one.extensions:
            if isinstance(extension.value, x509.DeltaCRLIndicator):
                raise CertificateError(f"the revocation list of {issuer} has only what changed", mend="Give the whole list.")
            if isinstance(extension.value, x509.IssuingDistributionPoint) and extension.value.indirect_crl:
                raise CertificateError(f"the revocation list of {issuer} speaks for other authorities too (indirect)",
                                       mend="Give a list by the issuer itself.")
    except UNREADABLE as e:
        raise CertificateError(f"the revocation list of {issuer} cannot be read: {e}", mend="Have it made again.") from None


def _which(one: x509.CertificateRevocationList) -> tuple[bytes, bytes, bytes]:
    """Issuer, its key, and the part of its certificates that the list is about."""
    parts = {type(e.value): e.value.public_bytes() for e in one.extensions
             if isinstance(e.value, (x509.AuthorityKeyIdentifier, x509.IssuingDistributionPoint))}
    return (one.issuer.public_bytes(), parts.get(x509.AuthorityKeyIdentifier, b""),
            parts.get(x509.IssuingDistributionPoint, b""))
