"""The keeper renews what is due and keeps revocation lists fresh; a bad server costs an alarm, and nobody waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from appliance.clock import ManualClock
from appliance.config.settings import Certificate, Config, Control, Destination, Listener
from appliance.config.settings import Spool as SpoolSettings
from appliance.keeper import Keeper
from appliance.keeper.renewal import TOLD_AFTER, Renewals
from appliance.model import Alarm, Severity
from appliance.net import certificates, crl, enrolment, revocation, tries
from appliance.net.certstore import Writer
from appliance.policy.certificates import Wanted, examine
from tests.support.est import Est
from tests.support.filled import Filled
from tests.support.pki import DAY, Authority, Pair, distribution, pem
from tests.support.waiting import wait_until

HOUR_SECONDS = 3600.0


class Box:
    """What the keeper does for one `[[certificate]]`, by a clock that is moved by hand."""

    def __init__(self, folder: Path, ca: Authority, **settings: object) -> None:
        self.state = folder / "state"
        self.state.mkdir(exist_ok=True)
        self.ca = ca
        self.writer = Writer(self.state)
        self.clock = ManualClock(wall_ns=time.time_ns())
        self.entry = Certificate(id="box", names=("box.example.org",), **settings)  # type: ignore[arg-type]
        self.writer.put("box", trust=pem(ca.certificate))
        self.renewals = self.anew()

    @property
    def config(self) -> Config:
        return Config(certificates=(self.entry,), listeners=(Listener(id="in", tls="bcp195", certificate="box"),),
                      spool=SpoolSettings(path=str(self.state), state=str(self.state)))

    def anew(self) -> Renewals:
        self.renewals = Renewals(lambda: self.config, self.clock, Random(1))
        return self.renewals

    def leaf(self, start: timedelta, end: timedelta) -> Pair:
        return self.ca.leaf("box", dns=["box.example.org"], start=start, end=end)

    def give(self, pair: Pair) -> None:
        self.writer.install("box", pair.key_pem(), pair.chain_pem())

    def step(self, seconds: float = 0.0) -> list[Alarm]:
        self.clock.advance(seconds)
        self.renewals.step()
        return list(self.renewals.alarms(self.config))

    @property
    def serial(self) -> int:
        found = enrolment.present(self.writer, "box")
        assert found is not None
        return found.certificate.serial_number

    def revoked(self) -> int:
        path = self.writer.store.material("box").crl
        return len(crl.load(path)) if path is not None else -1


@pytest.fixture
def ca() -> Authority:
    return Authority("Hospital CA")


@pytest.fixture
def server(ca: Authority) -> Iterator[Est]:
    with Est(ca) as found:
        yield found


@pytest.fixture
def box(tmp_path: Path, ca: Authority, server: Est) -> Box:
    return Box(tmp_path, ca, est_url=server.url, crl_fetch=False)


# --- enrolment ----------------------------------------------------------------------------------------------------------


def test_it_is_renewed_when_a_third_of_its_life_is_left_and_not_before(box: Box, server: Est) -> None:
    box.give(box.leaf(-59 * DAY, 31 * DAY))
    first = box.serial
    assert box.step() == []
    assert server.asked == []
    assert box.step(1.5 * 86400) == []
    assert [one.what for one in server.asked] == ["cacerts", "simplereenroll"]
    assert box.serial == server.issued[-1].serial_number != first
    assert box.step(60) == []
    assert len(server.asked) == 2


def test_a_first_one_is_enrolled_as_soon_as_there_is_a_password(box: Box, server: Est) -> None:
    server.users["box"] = "secret"
    box.entry = replace(box.entry, est_user="box")
    [alarm] = box.step()
    assert (alarm.key, alarm.severity) == ("certificate-renewal:box", Severity.CRITICAL)
    assert "nothing to prove ourselves by" in alarm.text
    box.writer.note("box", est_password=b"secret")
    assert box.step(HOUR_SECONDS) == []
    assert box.serial == server.issued[0].serial_number


@pytest.mark.requirement("I7")
def test_a_server_that_fails_is_asked_less_and_less_often_and_the_alarm_names_step_and_reason(box: Box, server: Est) -> None:
    box.give(box.leaf(-80 * DAY, 20 * DAY))
    before = box.serial
    server.mode, server.only = "html", "simplereenroll"
    alarms: list[Alarm] = []
    at: list[float] = []
    for n in range(86400 // 30):
        seen = server.count("simplereenroll")
        alarms = box.step(30)
        if server.count("simplereenroll") > seen:
            at.append(n * 30.0)
            assert len(at) <= 16, at
        if n % 500 == 250:
            box.clock.step_wall(-7200 if n % 1000 == 250 else 7200)     # the wall clock steps: nothing is tried for that
    gaps = [b - a for a, b in pairwise(at)]
    assert len(at) >= 6, at
    assert gaps[0] <= 120 and max(gaps) <= 6 * 3600 + 30
    assert gaps[-1] > 10 * gaps[0]
    [alarm] = alarms
    assert alarm.key == "certificate-renewal:box"
    assert "at step enroll" in alarm.text and "text/html" in alarm.text and "stays in force" in alarm.text
    assert alarm.severity is Severity.WARNING
    assert box.serial == before, "the old one stays"
    server.mode = "good"
    assert box.step(7 * HOUR_SECONDS) == []
    assert box.serial != before


@pytest.mark.requirement("I7")
def test_starting_anew_asks_nobody_sooner_and_after_a_reboot_it_is_due(box: Box, server: Est) -> None:
    box.give(box.leaf(-80 * DAY, 10 * DAY))
    server.mode = "failing"
    for _ in range(6):
        box.step(2 * HOUR_SECONDS)
    asked = len(server.asked)
    box.anew().step()
    assert len(server.asked) == asked
    box.clock.reboot()
    box.anew().step()
    assert len(server.asked) == asked + 1


def test_the_pause_that_the_server_names_is_kept(box: Box, server: Est) -> None:
    box.give(box.leaf(-80 * DAY, 10 * DAY))
    server.mode, server.only, server.retry_after = "waiting", "simplereenroll", "1800"
    [alarm] = box.step()
    assert alarm.severity is Severity.NOTICE, "a person decides there: nothing fails"
    box.step(1700)
    assert server.count("simplereenroll") == 1
    box.step(200)
    assert server.count("simplereenroll") == 2
    server.mode = "good"
    assert box.step(1900) == []


def test_what_lives_for_days_is_no_alarm_unless_its_renewal_is_late(box: Box, server: Est) -> None:
    """Three days: a warning at 30 days would always be there. Renewed on the third; said when half of that has passed."""
    wanted = Wanted(renewed=True, trust=True)

    def said() -> list[str]:
        held = certificates.held(box.writer.store.material("box"))
        return [str(finding.check) for finding in examine(held, wanted, box.clock.wall_ns(), True)]

    box.give(box.leaf(-1.9 * DAY, 1.1 * DAY))
    assert (box.step(), said(), len(server.asked)) == ([], [], 0)
    server.mode = "failing"
    alarms = box.step(0.15 * 86400)
    assert ([alarm.key for alarm in alarms], said()) == (["certificate-renewal:box"], [])
    box.step(0.5 * 86400)
    assert said() == ["expires"]
    server.mode, server.start, server.end = "good", -DAY / 24, 3 * DAY
    assert box.step(0.2 * 86400) == []
    assert said() == []


def test_a_server_that_says_nothing_delays_no_round(tmp_path: Path, server: Est, ca: Authority) -> None:
    """The keeper's own rounds go on while the thread beside them waits for an answer."""
    clock = ManualClock(wall_ns=time.time_ns())
    site = Filled(tmp_path, clock, 0)
    box = Box(tmp_path, ca, est_url=server.url)
    box.give(box.leaf(-80 * DAY, 10 * DAY))
    run = tmp_path / "run"
    run.mkdir()
    config = replace(box.config, destinations=(Destination(id="pacs"),), control=Control(run=str(run)), generation=1,
                     spool=SpoolSettings(path=str(site.spool.path), state=str(box.state)))
    server.mode = "silent"
    keeper = Keeper(lambda: config, site.spool, clock, told=lambda raised, ended: None)
    waiting = threading.Thread(target=keeper._renewals.step, daemon=True)
    try:
        waiting.start()
        wait_until(lambda: server.asked, 10, "the server was asked")
        began = time.monotonic()
        for _ in range(5):
            clock.advance(10)
            keeper.round()
        assert time.monotonic() - began < 5
        assert waiting.is_alive(), "it waits all the while"
        server.stopping.set()
        waiting.join(20)
        clock.advance(10)
        keeper.round()
        assert "certificate-renewal:box" in {row.alarm.key for row in site.ledger.alarms()}
    finally:
        keeper.stop()
        site.close()


# --- revocation lists ---------------------------------------------------------------------------------------------------


class Web:
    """A web server with pages; one that is not there is a 404."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                page = web.pages.get(self.path)
                self.send_response(404 if page is None else 200)
                self.end_headers()
                self.wfile.write(page or b"")

            def log_message(self, format: str, *args: object) -> None:
                """Not to standard error."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=lambda: self.http.serve_forever(0.05), daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}{path}"


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def listed(tmp_path: Path, ca: Authority, web: Web) -> Box:
    """A box whose certificate names where its authority's list is, and another of the configuration."""
    made = Box(tmp_path, ca)
    request = x509.load_pem_x509_csr(certificates.request_for(made.entry, key := certificates.new_key("ec-p256")))
    certificate = ca.sign(request, lists=[web.url("/ca.crl"), "ldap:///nowhere"])
    made.writer.install("box", certificates.key_pem(key), pem(certificate))
    return made


def der(text: bytes) -> bytes:
    return x509.load_pem_x509_crl(text).public_bytes(serialization.Encoding.DER)


def test_lists_are_fetched_from_where_certificates_say_and_before_they_run_out(listed: Box, web: Web, ca: Authority) -> None:
    web.pages["/ca.crl"] = der(ca.crl(start=timedelta(0), end=timedelta(hours=8)))
    assert listed.step() == []
    assert (web.asked, listed.revoked()) == (["/ca.crl"], 0)
    web.pages["/ca.crl"] = der(ca.revoke(ca.leaf("gone")).crl(start=timedelta(seconds=1), end=timedelta(hours=30)))
    listed.step(HOUR_SECONDS)
    assert listed.revoked() == 0
    assert listed.step(3 * HOUR_SECONDS) == []
    assert listed.revoked() == 1, "half of what was left of the first has passed"
    for _ in range(24):
        listed.step(HOUR_SECONDS)
    assert 5 <= len(web.asked) <= 9, "every six hours, and a little sooner"


def test_an_older_list_does_not_replace_a_newer_one(listed: Box, web: Web, ca: Authority) -> None:
    """Whoever plays back an old list would let in who was revoked since."""
    old = ca.crl(start=-2 * DAY)
    web.pages["/ca.crl"] = der(ca.revoke(ca.leaf("gone")).crl())
    listed.step()
    web.pages["/ca.crl"] = der(old)
    assert listed.step(7 * HOUR_SECONDS) == []
    assert (len(web.asked), listed.revoked()) == (2, 1)


def test_a_list_of_somebody_else_is_no_list(listed: Box, web: Web, ca: Authority) -> None:
    web.pages["/ca.crl"] = der(Authority(ca.name).crl())        # of that name, and another key
    for _ in range(TOLD_AFTER):
        alarms = listed.step(HOUR_SECONDS)
    assert listed.revoked() == -1
    assert [alarm.key for alarm in alarms] == ["certificate-crl-fetch:box"]
    assert "signed by no authority known" in alarms[0].text


@pytest.mark.parametrize(("page", "words"), [(None, "404"), (b"<html>", "no certificate, key or revocation list"), (b"", "no")])
def test_what_is_no_list_is_told_after_a_while_and_ends_by_itself(listed: Box, web: Web, ca: Authority, page: bytes | None,
                                                                  words: str) -> None:
    web.pages["/ca.crl"] = der(ca.revoke(ca.leaf("gone")).crl())
    listed.step()
    if page is None:
        del web.pages["/ca.crl"]
    else:
        web.pages["/ca.crl"] = page
    heard = [listed.step(7 * HOUR_SECONDS) for _ in range(TOLD_AFTER)]
    assert [len(alarms) for alarms in heard] == [0] * (TOLD_AFTER - 1) + [1]
    assert words in heard[-1][0].text
    assert listed.revoked() == 1, "what was revoked stays so"
    web.pages["/ca.crl"] = der(ca.crl())
    assert listed.step(7 * HOUR_SECONDS) == []


def test_a_list_that_is_too_long_is_not_taken(listed: Box, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "LARGEST", 1000)
    web.pages["/ca.crl"] = b"\x30" * 1001
    listed.step()
    [kept] = tries.lists(listed.writer.store, "box").values()
    assert "more than 1000 bytes" in kept.tries.why


def test_configured_places_and_none_at_all(listed: Box, web: Web, ca: Authority) -> None:
    listed.entry = replace(listed.entry, crl_urls=(web.url("/other.crl"),))
    listed.step()
    assert sorted(web.asked) == ["/ca.crl", "/other.crl"]
    listed.entry = replace(listed.entry, crl_fetch=False)
    assert listed.step(7 * HOUR_SECONDS) == []
    assert len(web.asked) == 2


def test_lists_of_several_authorities_stand_side_by_side(listed: Box, web: Web, ca: Authority) -> None:
    other = Authority("Scanners' CA")
    listed.writer.put("box", trust=pem(ca.certificate, other.certificate))
    listed.entry = replace(listed.entry, crl_urls=(web.url("/other.crl"),))
    web.pages["/ca.crl"] = der(ca.revoke(ca.leaf("a")).crl())
    web.pages["/other.crl"] = other.revoke(other.leaf("b"), other.leaf("c")).crl()      # PEM
    assert listed.step() == []
    assert listed.revoked() == 3


def test_a_list_that_somebody_puts_there_is_taken_up_and_a_wrong_one_is_said(listed: Box, ca: Authority) -> None:
    folder = listed.writer.store.folder / "box"
    listed.entry = replace(listed.entry, crl_fetch=False)
    (folder / "hospital.crl").write_bytes(der(ca.revoke(ca.leaf("gone")).crl()))
    assert listed.step() == []
    assert listed.revoked() == 1
    assert not (folder / "hospital.crl").exists()
    (folder / "wrong.crl").write_bytes(der(Authority("Another CA").crl()))
    [alarm] = listed.step()
    assert alarm.key == "certificate-crl-file:box"
    assert "wrong.crl" in alarm.mend
    (folder / "wrong.crl").unlink()
    assert listed.step() == []


def test_deltas_and_indirect_lists_are_refused(ca: Authority, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from appliance.errors import CertificateError
    box = Box(tmp_path, ca)
    now = datetime.now(UTC)
    base = x509.CertificateRevocationListBuilder().issuer_name(ca.certificate.subject).last_update(now).next_update(now + DAY)
    for extension, words in ((x509.DeltaCRLIndicator(1), "only what changed"), (x509.IssuingDistributionPoint(
            distribution(["http://x/"])[0].full_name, None, False, False, None, True, False), "other authorities")):
        made = base.add_extension(extension, critical=True).sign(ca.key, hashes.SHA256())  # type: ignore[arg-type]
        with pytest.raises(CertificateError, match=words):
            revocation.take(box.writer, "box", [made])
    assert box.revoked() == -1
