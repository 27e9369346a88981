"""`dcmgate cert request|install|enroll|show|check|pin`: keys are made here, and what others send is checked before it counts.

Done by whoever asks, on the files of the store: root, or the user of the
service. The stages take up what is new at their next connection.
"""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import cert_enroll, exits
from appliance.cli.context import Site
from appliance.cli.text import safe
from appliance.config.findings import did_you_mean
from appliance.errors import CertificateError, UsageError

if TYPE_CHECKING:
    from appliance.config.settings import Certificate, Config
    from appliance.model import Alarm
    from appliance.net.certificates import Bundle
    from appliance.net.certstore import Writer
    from appliance.policy.certificates import Facts, Finding, Held


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    cert = commands.add_parser("cert", help="keys, certificates, trust anchors and revocation lists", parents=[common])
    verbs = cert.add_subparsers(metavar="VERB", required=True, dest="verb")
    one = verbs.add_parser("request", help="make a key and the request to have it signed", parents=[common])
    one.add_argument("id", metavar="ID", help="id of a [[certificate]]")
    one.add_argument("--new", action="store_true", help="a new key, though a request waits for its certificate")
    one.set_defaults(run=request)
    two = verbs.add_parser("install", help="put in force what the authority has sent", parents=[common])
    two.add_argument("id", metavar="ID", help="id of a [[certificate]]")
    two.add_argument("files", metavar="FILE", nargs="+", help="certificates, revocation lists, keys: PEM, DER or PKCS#12")
    two.add_argument("--trust", action="store_true", help="the authorities in these files are the trust anchors from now on")
    two.add_argument("--add", action="store_true", help="with --trust: besides those that there are")
    two.add_argument("--password-file", metavar="FILE", default="", help="first line is the password of encrypted files")
    two.set_defaults(run=install)
    cert_enroll.add(verbs, common)
    three = verbs.add_parser("show", help="what the store holds, with dates, names and fingerprints", parents=[common])
    three.add_argument("id", metavar="ID", nargs="?", default="", help="one [[certificate]] only")
    three.set_defaults(run=show)
    four = verbs.add_parser("check", help="name everything that is wrong, or soon will be", parents=[common])
    four.set_defaults(run=check)
    five = verbs.add_parser("pin", help="the fingerprint that a destination shows now", parents=[common])
    five.add_argument("destination", metavar="DESTINATION", help="id of a [[destination]] with TLS")
    five.set_defaults(run=pin)


def _config(site: Site) -> Config:
    """What the file says: a certificate is asked for before there is a spool, or a generation in force."""
    from appliance.config import load
    from appliance.manage.generations import tag_problem
    return load.load(site.config_path, tag_problem=tag_problem)


def _entry(config: Config, id: str) -> Certificate:
    entry = config.certificate(id)
    if entry is None:
        known = [c.id for c in config.certificates]
        raise UsageError(f'there is no [[certificate]] "{id}"',
                         mend=did_you_mean(id, known) if known else f'write a [[certificate]] with id = "{id}"')
    return entry


def _now() -> tuple[int, bool]:
    from appliance.clock import SystemClock
    clock = SystemClock()
    return clock.wall_ns(), clock.trusted()


def _held(writer: Writer, id: str) -> Held:
    """What is there. CertificateError where this user may not look."""
    import os

    from appliance.net import certificates
    for folder in (writer.store.folder, writer.store.folder / id):
        if folder.exists() and not os.access(folder, os.R_OK | os.X_OK):
            raise CertificateError(f"{folder} cannot be read", mend="Run it as root, or as the user that Dcmgate runs as.")
    return certificates.held(writer.store.material(id))


# --- request ------------------------------------------------------------------------------------------------------------

def request(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.net import certificates
    from appliance.net.certstore import NEXT_KEY, REQUEST, Writer
    config = _config(site)
    entry = _entry(config, arguments.id)
    writer = Writer(config.spool.state)
    text = writer.read(entry.id, REQUEST)
    waits = bool(text) and not arguments.new and certificates.is_for(text, entry, writer.read(entry.id, NEXT_KEY))
    if not waits:
        key = certificates.new_key(entry.key_type)
        text = certificates.request_for(entry, key)
        writer.put(entry.id, next_key=certificates.key_pem(key), request=text)
    path = writer.store.folder / entry.id / REQUEST
    site.emit({"id": entry.id, "new": not waits, "key_type": entry.key_type, "names": list(entry.names), "file": str(path),
               "request": text.decode()})
    site.say(text.decode().rstrip("\n"))
    if not site.as_json:
        site.note(f"{path}: {'the request that waits already; --new makes another' if waits else 'a new key, and its request'}")
        if not entry.names:
            site.note("it asks for no names: good for a client only; write `names` in the [[certificate]] for a listener")
        site.note(f"have it signed, then: dcmgate cert install {entry.id} FILE…")
    return exits.OK


# --- install ------------------------------------------------------------------------------------------------------------

def install(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.net.certstore import Writer
    from appliance.policy.certificates import Check, Wanted, examine
    if arguments.add and not arguments.trust:
        raise UsageError("--add goes with --trust", mend="a certificate of ours always replaces the one before")
    config = _config(site)
    entry = _entry(config, arguments.id)
    writer = Writer(config.spool.state)
    bundle = _files(site, arguments)
    done = _take(writer, entry, bundle, arguments.trust, arguments.add)
    now, trusted = _now()
    held = _held(writer, entry.id)
    found = examine(held, Wanted(entry.names, pair=False), now, trusted)
    site.emit({"id": entry.id, "installed": done, "findings": [_finding(f) for f in found]})
    for line in done:
        site.say(f"{entry.id}: {line}")
    if bundle.keys and not site.as_json:
        site.note("the key came in a file: delete that file, whoever has it can pass for this box")
    _tell(site, found)
    return exits.FINDING if any(f.check is not Check.TIME_NOT_TRUSTED for f in found) else exits.OK


def _files(site: Site, arguments: argparse.Namespace) -> Bundle:
    from appliance.net.certificates import Bundle, PasswordNeeded, read
    password = None
    if arguments.password_file:
        password = Path(arguments.password_file).read_bytes().split(b"\n")[0].rstrip(b"\r")
    bundle = Bundle()
    for name in arguments.files:
        try:
            read(Path(name), bundle, password)
        except PasswordNeeded:
            if password is not None or not sys.stdin.isatty():
                raise
            read(Path(name), bundle, getpass.getpass(f"password of {name}: ").encode())
    return bundle


def _take(writer: Writer, entry: Certificate, bundle: Bundle, trust: bool, add: bool) -> list[str]:
    """Check everything first, then write; what was done, in words. CertificateError: nothing was changed."""
    from appliance.net import certificates, revocation
    from appliance.net.certstore import NEXT_KEY, TRUST
    id = entry.id
    current = writer.store.material(id)
    keys = certificates.Bundle()
    waiting = writer.read(id, NEXT_KEY)
    for data in (waiting, current.key.read_bytes() if current.key else b""):
        if data:
            certificates.parse(data, f"the key of {id}", keys)
    ours = {certificates.public(key.public_key()): key for key in [*bundle.keys, *keys.keys]}
    leaves = [c for c in bundle.certificates if certificates.public(c.public_key()) in ours]
    others = [c for c in bundle.certificates if c not in leaves]
    if not (bundle.certificates or bundle.lists or bundle.keys):
        raise CertificateError("there is nothing to install in these files", mend="Give what the authority has sent.")
    leaf = max(leaves, key=lambda c: c.not_valid_before_utc, default=None)
    done, write = [], {}
    if leaf is None and bundle.certificates and not trust:
        raise CertificateError(
            f"none of these certificates belongs to a key of {id}",
            mend=f"Make the request here (`dcmgate cert request {id}`), or give the key too; authorities to trust: --trust.")
    if leaf is None and bundle.keys:
        raise CertificateError(f"a key for {id}, and no certificate that goes with it", mend="Give its certificate too.")
    if leaf is not None:
        _in_time(leaf)
    anchors = certificates.Bundle()
    certificates_there = writer.read(id, TRUST)
    if certificates_there:
        certificates.parse(certificates_there, f"the trust anchors of {id}", anchors)
    if trust:
        named = others if leaf is None else [c for c in others if certificates.is_self_signed(c)]
        if not named:
            raise CertificateError("there is no authority in these files that could be a trust anchor",
                                   mend="Give the root certificate of the authority.")
        anchors.certificates = [*(anchors.certificates if add else []), *named]
        anchors.certificates = list(dict.fromkeys(anchors.certificates))
        write["trust"] = certificates.pem(anchors.certificates)
        done.append("trusted from now on: " + ", ".join(c.subject.rfc4514_string() for c in anchors.certificates))
    above = certificates.Bundle()
    if current.chain is not None:
        certificates.read(current.chain, above)
    if bundle.lists:
        taken = revocation.take(writer, id, bundle.lists, known=[*anchors.certificates, *others])
        done.append(taken or "revocation lists that are in the store already")
    if leaf is not None:
        own = certificates.public(leaf.public_key())
        chain = certificates.pem(certificates.chain_of(leaf, [*others, *above.certificates, *anchors.certificates]))
        is_asked_for = bool(waiting) and own == certificates.public(keys.keys[0].public_key())
        writer.install(id, waiting if is_asked_for else certificates.key_pem(ours[own]), chain)
        done.insert(0, f"certificate {leaf.subject.rfc4514_string()}, in force for the next connection")
    if write:
        writer.put(id, **write)
    return done


def _in_time(leaf: Any) -> None:
    """One that is out of date would stop what works. Where the clock is wrong that is not known, and it is taken."""
    from appliance.net.certificates import facts
    from appliance.policy.certificates import date
    now, trusted = _now()
    known = facts(leaf)
    if trusted and known.not_after <= now:
        raise CertificateError(f"the certificate {known.subject} has expired, at {date(known.not_after)}",
                               mend="Give one that is valid; the one in force stays.")
    if trusted and known.not_before > now:
        raise CertificateError(f"the certificate {known.subject} is not valid before {date(known.not_before)}, and this box's "
                               f"clock says {date(now)}", mend="Compare the clock; if it is right, install it then.")


# --- looking ------------------------------------------------------------------------------------------------------------

def show(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.net import tries
    from appliance.net.certstore import NEXT_KEY, Writer
    from appliance.policy.certificates import date
    config = _config(site)
    entries = [_entry(config, arguments.id)] if arguments.id else list(config.certificates)
    writer = Writer(config.spool.state)
    shown = []
    for nth, entry in enumerate(entries):
        held = _held(writer, entry.id)
        waits = bool(writer.read(entry.id, NEXT_KEY))
        fetched = {url: kept.tries for url, kept in tries.lists(writer.store, entry.id).items()}
        shown.append({**asdict(held), "request_waits": waits, "renewal": cert_enroll.renewal(entry, held, writer),
                      "fetched": {url: asdict(one) for url, one in fetched.items()}})
        if nth:
            site.say()
        site.say(site.bold(entry.id) + (": a request waits for its certificate" if waits else ""))
        if held.problem:
            site.say(f"  {site.bad(safe(held.problem))}")
        for place, facts in enumerate(held.chain):
            _say(site, "certificate" if place == 0 else "above it", facts)
        for facts in held.trust:
            _say(site, "trusts", facts)
        for entry_ in held.lists:
            site.say(f"  revocation list of {safe(entry_.issuer)}: {entry_.entries} revoked, "
                     f"{date(entry_.this_update)} to {date(entry_.next_update) if entry_.next_update else '?'}")
        if not (held.chain or held.trust or held.lists or held.problem or waits):
            site.say("  nothing yet")
        cert_enroll.say_renewal(site, entry, held, writer)
        for url, one in fetched.items():
            site.say(f"  revocation list at {safe(url)}: " + cert_enroll.how(site, one, "fetched"))
    site.emit({"certificates": shown})
    if not entries:
        site.say("the configuration has no [[certificate]]")
    return exits.OK


def _say(site: Site, what: str, facts: Facts) -> None:
    from appliance.policy.certificates import date
    site.say(f"  {what}: {safe(facts.subject)}, {facts.key.upper()} {facts.bits}")
    site.say(f"    from {date(facts.not_before)} to {date(facts.not_after)}, by {safe(facts.issuer)}, serial {facts.serial}")
    if facts.names:
        site.say(f"    names {safe(', '.join(facts.names))}")
    site.say(f"    sha256:{facts.fingerprint}")


def check(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.net.certificates import wanted
    from appliance.net.certstore import Writer
    from appliance.policy.certificates import examine
    config = _config(site)
    writer = Writer(config.spool.state)
    now, trusted = _now()
    found = [finding for id, wants in wanted(config).items() for finding in examine(_held(writer, id), wants, now, trusted)]
    failing = cert_enroll.failing(config)
    site.emit({"good": not (found or failing), "time_trusted": trusted, "findings": [
        *map(_finding, found), *({"id": a.key.partition(":")[2], "check": a.key.partition(":")[0].removeprefix("certificate-"),
                                  "severity": str(a.severity), "text": a.text, "mend": a.mend} for a in failing)]})
    _tell(site, [*found, *failing])
    if not (found or failing):
        site.say(f"{len(config.certificates)} of [[certificate]]: {site.good('good')}" if config.certificates
                 else "the configuration has no [[certificate]]")
    return exits.FINDING if found or failing else exits.OK


def _finding(finding: Finding) -> dict[str, str]:
    return {"id": finding.id, "check": str(finding.check), "severity": str(finding.severity), "text": finding.text,
            "mend": finding.mend}


def _tell(site: Site, found: Sequence[Finding | Alarm]) -> None:
    for finding in found:
        style = site.bad if finding.severity == "critical" else site.warn
        site.say(f"{style(str(finding.severity))}: {safe(finding.text)} — {finding.mend}")


# --- pin ----------------------------------------------------------------------------------------------------------------

def pin(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.config.secure import fingerprint
    from appliance.net.certificates import shown_by
    from appliance.net.certstore import Store
    from appliance.policy.certificates import date
    config = _config(site)
    destination = config.destination(arguments.destination)
    if destination is None:
        raise UsageError(f'there is no [[destination]] "{arguments.destination}"',
                         mend=did_you_mean(arguments.destination, [d.id for d in config.destinations]))
    if destination.tls == "off":
        raise UsageError(f"destination {destination.id} does not speak TLS", mend='write tls = "bcp195" in its entry')
    if destination.proxy:
        raise UsageError(f"destination {destination.id} is reached through a proxy, where this command does not go",
                         mend="ask its administrator for the SHA-256 fingerprint")
    facts = shown_by(destination, Store(config.spool.state), time.monotonic() + destination.connect_seconds)
    known = [fingerprint(text) for text in destination.pins]
    pinned = facts.fingerprint in known
    setting = f'pins = ["{facts.fingerprint}"]'
    site.emit({"destination": destination.id, **asdict(facts), "pinned": pinned, "pins": known, "setting": setting})
    _say(site, f"{destination.address}:{destination.port} shows", facts)
    if pinned:
        site.say(site.good("it is one of the pins"))
        return exits.OK
    if known:
        site.say(site.bad(f"it is none of the pins of {destination.id}") + f": replaced (valid from {date(facts.not_before)}), "
                 "or somebody is in between. Ask its administrator before you change anything.")
        return exits.FINDING
    site.say("This was not verified. Compare the fingerprint with what its administrator says, on the telephone; then write")
    site.say(f"  {setting}")
    return exits.OK
