"""`dcmgate cert enroll`: a certificate by EST, now; and what `show` and `check` tell of enrolling and fetching by itself."""

from __future__ import annotations

import argparse
import getpass
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.cli.text import safe
from appliance.errors import UsageError

if TYPE_CHECKING:
    from appliance.config.settings import Certificate, Config
    from appliance.model import Alarm
    from appliance.net.certstore import Writer
    from appliance.policy.certificates import Held
    from appliance.policy.renewal import Tries


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    one = verbs.add_parser("enroll", help="have a certificate issued by EST now, or renewed", parents=[common])
    one.add_argument("id", metavar="ID", help="id of a [[certificate]] with est_url")
    one.add_argument("--fingerprint", metavar="SHA256", default="", help="of the authority's certificate, which is trusted "
                     "from then on: where nothing is trusted yet")
    one.add_argument("--password-file", metavar="FILE", default="", help="first line is the password of est_user; it is kept")
    one.set_defaults(run=enroll)


def enroll(site: Site, arguments: argparse.Namespace) -> int:
    from random import random

    from appliance.cli.cert_commands import _config, _entry
    from appliance.clock import SystemClock
    from appliance.config.secure import fingerprint
    from appliance.net import enrolment, kick
    from appliance.net.certstore import Writer
    config = _config(site)
    entry = _entry(config, arguments.id)
    if not entry.est_url:
        raise UsageError(f"certificate {entry.id} has no est_url", mend="write it in its entry, or `dcmgate cert request`")
    wanted = fingerprint(arguments.fingerprint) if arguments.fingerprint else ""
    if arguments.fingerprint and not wanted:
        raise UsageError(f'"{safe(arguments.fingerprint[:80])}" is not a SHA-256 fingerprint',
                         mend="64 hex digits, as the authority's administrator says")
    writer = Writer(config.spool.state)
    _password(entry, writer, arguments.password_file)
    done = enrolment.enrol(entry, writer, SystemClock(), random(), fingerprint=wanted)
    kick.send(Path(config.control.run) / kick.KEEPER)
    site.emit({"id": entry.id, "done": done})
    site.say(f"{entry.id}: {safe(done)}")
    return exits.OK


def _password(entry: Certificate, writer: Writer, file: str) -> None:
    from appliance.net.certstore import EST_LOGIN
    from appliance.net.enrolment import present
    if file:
        if not entry.est_user:
            raise UsageError(f"certificate {entry.id} has no est_user", mend="write it in its entry")
        text = Path(file).read_bytes().split(b"\n")[0].rstrip(b"\r")
    elif entry.est_user and sys.stdin.isatty() and not writer.read(entry.id, EST_LOGIN) \
            and present(writer, entry.id) is None:
        text = getpass.getpass(f"password of {entry.est_user} at {entry.est_url}: ").encode()
    else:
        return
    if not text:
        raise UsageError("the password is empty", mend="it is the first line of the file")
    writer.note(entry.id, est_password=text + b"\n")


# --- what is told -------------------------------------------------------------------------------------------------------

def renewal(entry: Certificate, held: Held, writer: Writer) -> dict[str, Any]:
    """For JSON; times in nanoseconds since 1970, 0: none."""
    from appliance.net import tries
    from appliance.policy.renewal import renewed_from
    return {"automatic": bool(entry.est_url), "from": renewed_from(held.chain[0], entry.renew_days)
            if entry.est_url and held.chain else 0, **asdict(tries.enrolment(writer.store, entry.id).tries)}


def say_renewal(site: Site, entry: Certificate, held: Held, writer: Writer) -> None:
    from appliance.net import tries
    from appliance.policy.certificates import date
    from appliance.policy.renewal import renewed_from
    if not entry.est_url:
        return
    from_ = f", from {date(renewed_from(held.chain[0], entry.renew_days))}" if held.chain else ""
    site.say(f"  renewed by itself at {safe(entry.est_url)}{from_}: "
             + how(site, tries.enrolment(writer.store, entry.id).tries, "enrolled"))


def how(site: Site, tries: Tries, done: str) -> str:
    """What became of trying, for people."""
    from appliance.policy.certificates import date
    if not tries.tried:
        return "not tried yet"
    last = f"{done} {date(tries.good)}" if tries.good else f"never {done}"
    again = f"; next try {date(tries.again)}" if tries.again else ""
    if tries.waits:
        return f"{last}; the authority decides: {safe(tries.why)}{again}"
    if not tries.failures:
        return last + again
    times = "once" if tries.failures == 1 else f"{tries.failures} times"
    return f"{last}; {site.bad(f'failed {times}')}, {date(tries.tried)} at step {tries.step}: {safe(tries.why)}{again}"


def failing(config: Config) -> list[Alarm]:
    """What the keeper raises alarms for."""
    from random import Random

    from appliance.clock import SystemClock
    from appliance.keeper.renewal import Renewals
    return list(Renewals(lambda: config, SystemClock(), Random()).alarms(config))
