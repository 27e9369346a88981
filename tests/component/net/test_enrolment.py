"""EST against a real server with a real authority: first enrolment, renewal, and every way in which that goes wrong."""

from __future__ import annotations

import stat
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from appliance.clock import ManualClock, SystemClock
from appliance.config.settings import Certificate
from appliance.net import certificates, enrolment, tries
from appliance.net.certstore import EST_KEY, Writer
from appliance.net.enrolment import Enrolment
from appliance.net.est import EstError, Server
from appliance.net.web import Answer
from tests.support.est import Est
from tests.support.pki import DAY, Authority, Pair, pem, place
from tests.support.waiting import free_port


@pytest.fixture
def ca() -> Authority:
    return Authority("Hospital CA")


@pytest.fixture
def server(ca: Authority) -> Iterator[Est]:
    with Est(ca) as found:
        found.users["box"] = "secret"
        yield found


class Box:
    """A store with one entry that is enrolled at a server."""

    def __init__(self, folder: Path, server: Est) -> None:
        self.state = folder / "state"
        self.state.mkdir()
        self.writer = Writer(self.state)
        self.entry = Certificate(id="box", names=("box.example.org", "10.0.0.7"), est_url=server.url, est_user="box")
        self.clock: SystemClock | ManualClock = SystemClock()

    def trust(self, *authorities: Pair) -> None:
        place(self.state, "box", trust=authorities)

    def password(self, text: str = "secret") -> None:
        self.writer.note("box", est_password=text.encode() + b"\n")

    def give(self, pair: Pair) -> Pair:
        self.writer.install("box", pair.key_pem(), pair.chain_pem())
        return pair

    def run(self, *, fingerprint: str = "", seconds: float = 20.0) -> str:
        return Enrolment(self.entry, self.writer, self.clock).run(fingerprint=fingerprint, seconds=seconds)

    def fails(self, step: str, words: str, *, seconds: float = 20.0, fingerprint: str = "") -> EstError:
        """It ends at that step with these words, and everything is as it was."""
        before = self.writer.store.material("box")
        with pytest.raises(EstError) as caught:
            self.run(seconds=seconds, fingerprint=fingerprint)
        assert caught.value.step == step, caught.value
        assert words in caught.value.message, caught.value.message
        assert caught.value.mend
        assert self.writer.store.material("box") == before
        return caught.value

    @property
    def leaf(self) -> x509.Certificate:
        found = enrolment.present(self.writer, "box")
        assert found is not None
        return found.certificate


@pytest.fixture
def box(tmp_path: Path, server: Est, ca: Authority) -> Box:
    made = Box(tmp_path, server)
    made.trust(ca)
    return made


@pytest.fixture
def held(box: Box, ca: Authority) -> Box:
    """One that has a certificate."""
    box.give(ca.leaf("box", dns=["box.example.org"], addresses=["10.0.0.7"], start=-80 * DAY, end=10 * DAY))
    return box


# --- what works ---------------------------------------------------------------------------------------------------------


def test_the_first_by_password(box: Box, server: Est) -> None:
    box.password()
    assert "in force" in box.run()
    assert [(one.what, one.shown, one.user) for one in server.asked] == [("cacerts", 0, ""), ("simpleenroll", 0, "box")]
    facts = certificates.facts(box.leaf)
    assert facts.names == ("dns:box.example.org", "ip:10.0.0.7")
    material = box.writer.store.material("box")
    assert material.key is not None
    assert stat.S_IMODE(material.key.stat().st_mode) == 0o600
    left = {path.name for path in material.folder.iterdir()}
    assert left == {"000001", "current", "trust.pem", "est-password", "est.lock"}, "key and request that waited are gone"


def test_renewal_shows_the_present_certificate_and_keeps_its_subject(held: Box, server: Est) -> None:
    """Subject and names as they are, which may be more than was asked for (RFC 7030, 4.2.2); the key is another."""
    before = held.leaf
    held.password()
    held.run()
    assert [(one.what, one.shown) for one in server.asked] == [("cacerts", 0), ("simplereenroll", before.serial_number)]
    assert all(not one.user for one in server.asked), "no password where the certificate proves us"
    after = held.leaf
    assert after.subject == before.subject
    assert after.serial_number != before.serial_number
    assert certificates.public(after.public_key()) != certificates.public(before.public_key())


def test_other_names_in_the_configuration_are_a_new_enrolment_by_the_present_certificate(held: Box, server: Est) -> None:
    held.entry = replace(held.entry, names=("other.example.org",))
    held.run()
    assert [one.what for one in server.asked] == ["cacerts", "simpleenroll"]
    assert server.asked[1].shown
    assert certificates.facts(held.leaf).names == ("dns:other.example.org",)


def test_one_that_has_expired_is_enrolled_anew_by_password(box: Box, server: Est, ca: Authority) -> None:
    """A box that lay in a cupboard for a year."""
    box.give(ca.expired("box", dns=["box.example.org"], addresses=["10.0.0.7"]))
    box.fails("enroll", "nothing to prove ourselves by")
    box.password()
    box.run()
    assert [one.what for one in server.asked][-1] == "simpleenroll"


def test_a_certificate_that_the_server_does_not_take_falls_back_to_the_password(box: Box, server: Est) -> None:
    foreign = Authority("Former CA")
    box.give(foreign.leaf("box", dns=["box.example.org"], addresses=["10.0.0.7"]))
    assert box.fails("tls", "").refused
    box.password()
    box.run()
    assert server.asked[-1].user == "box"


def test_an_intermediate_is_shown_and_the_root_is_not(tmp_path: Path, ca: Authority) -> None:
    between = ca.intermediate()
    with Est(ca, issuer=between, label="tls") as server:
        server.users["box"] = "secret"
        box = Box(tmp_path, server)
        box.entry = replace(box.entry, est_label="tls")
        box.trust(ca)
        box.password()
        box.run()
        material = box.writer.store.material("box")
        assert material.chain is not None
        assert material.chain.read_bytes().count(b"BEGIN") == 2
        box.entry = replace(box.entry, est_label="")
        box.fails("cacerts", "404")


@pytest.mark.parametrize("kind", ["ec-p384", "rsa-3072"])
def test_the_kind_of_the_key(box: Box, kind: str) -> None:
    box.entry = replace(box.entry, key_type=kind)
    box.password()
    box.run()
    assert certificates.key_of(box.leaf.public_key()) == (kind[:2] if kind[0] == "e" else "rsa", int(kind[-4:].strip("-p")))


# --- trust --------------------------------------------------------------------------------------------------------------


def test_nothing_is_trusted_by_itself(tmp_path: Path, server: Est) -> None:
    box = Box(tmp_path, server)
    box.password()
    assert "--fingerprint" in box.fails("trust", "whom to trust").mend
    assert server.asked == []


def test_the_authority_by_its_fingerprint(tmp_path: Path, server: Est, ca: Authority) -> None:
    box = Box(tmp_path, server)
    box.password()
    wrong = box.fails("trust", "no authority there has the fingerprint", fingerprint="ab" * 32)
    assert ca.fingerprint in wrong.message, "so that it can be compared"
    assert all(one.what == "cacerts" for one in server.asked), "and no password was shown"
    box.run(fingerprint=ca.fingerprint)
    assert (box.writer.store.folder / "box" / "trust.pem").read_bytes() == pem(ca.certificate)


def test_a_server_of_another_authority_gets_no_password(box: Box) -> None:
    with Est(Authority("Mallory CA")) as mallory:
        box.entry = replace(box.entry, est_url=mallory.url)
        box.password()
        box.fails("tls", "is refused")
        assert mallory.asked == []


def test_a_server_of_another_name_gets_no_password(box: Box, ca: Authority) -> None:
    with Est(ca, pair=ca.leaf("x", dns=["other.example.org"])) as server:
        box.entry = replace(box.entry, est_url=server.url)
        box.password()
        box.fails("tls", "not valid for 'localhost'")
        assert server.asked == []


def test_a_revoked_server_gets_no_password(box: Box, ca: Authority) -> None:
    pair = ca.leaf("est", dns=["localhost"])
    place(box.state, "box", crl=ca.revoke(pair).crl())
    with Est(ca, pair=pair) as server:
        box.entry = replace(box.entry, est_url=server.url)
        box.password()
        box.fails("tls", "revoked")
        assert server.asked == []


def test_trust_may_be_that_of_another_entry(tmp_path: Path, server: Est, ca: Authority) -> None:
    """Scanners come from one authority, our own certificate from another."""
    box = Box(tmp_path, server)
    scanners = Authority("Scanners' CA")
    box.trust(scanners)
    place(box.state, "pki", trust=[ca])
    box.password()
    box.fails("tls", "not trusted")
    box.entry = replace(box.entry, est_trust="pki")
    box.run()
    assert (box.writer.store.folder / "box" / "trust.pem").read_bytes() == pem(scanners.certificate)


def test_a_new_root_counts_only_where_the_old_one_has_signed_for_it(held: Box, server: Est, ca: Authority) -> None:
    """RFC 7030, 4.1.3: the new root, and the new root signed by the old one."""
    new = Authority(ca.name)
    server.more = [new.certificate]
    held.run()
    trust = held.writer.store.folder / "box" / "trust.pem"
    assert trust.read_bytes() == pem(ca.certificate)
    server.more = [new.certificate, ca.vouch(new)]
    assert "trusted from now on" in held.run()
    assert trust.read_bytes() == pem(ca.certificate, new.certificate)


# --- servers as bad as they get -----------------------------------------------------------------------------------------


ANSWERS = {
    "html": "text/html", "html_disguised": "no certificates", "garbage": "no certificates", "empty": "no certificates",
    "no_http": "no HTTP", "cut": "middle of its answer", "closed": "closed the connection",
    "redirect": "elsewhere", "refusing": "not on the list", "failing": "503",
    "endless": "more than 1048576 bytes", "headers": "no HTTP",
}


@pytest.mark.parametrize("what", ["cacerts", "simplereenroll"])
@pytest.mark.parametrize("mode", ANSWERS)
def test_an_answer_that_is_none(held: Box, server: Est, mode: str, what: str) -> None:
    server.mode, server.only = mode, what
    error = held.fails("cacerts" if what == "cacerts" else "enroll", ANSWERS[mode])
    assert error.again == (1.0 if mode == "failing" else 0.0)
    assert error.refused == (mode == "refusing")


@pytest.mark.parametrize("what", ["cacerts", "simplereenroll"])
@pytest.mark.parametrize("mode", ["silent", "dripping"])
def test_a_server_that_takes_for_ever(held: Box, server: Est, mode: str, what: str) -> None:
    server.mode, server.only = mode, what
    began = time.monotonic()
    held.fails("cacerts" if what == "cacerts" else "enroll", "in time", seconds=1.5)
    assert time.monotonic() - began < 10


def test_a_server_that_is_down(held: Box) -> None:
    held.entry = replace(held.entry, est_url=f"https://localhost:{free_port()}")
    held.fails("connect", "cannot be reached")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("bit", [0x01, 0x20, 0x80])
def test_certificates_with_one_bit_changed_are_certificates_or_an_error_of_ours(ca: Authority, bit: int) -> None:
    """The library raises more kinds of errors than one; each that went through would be tried again every ten seconds."""
    good = pkcs7.serialize_certificates([box_leaf(ca)], Encoding.DER)
    read = 0
    for at in range(len(good)):
        bad = good[:at] + bytes((good[at] ^ bit,)) + good[at + 1:]
        try:
            found = Server("https://localhost")._certificates("enroll", Answer(200, "OK", b64encode(bad)))
        except EstError:
            continue
        for one in found:
            read += 1
            with suppress(*certificates.UNREADABLE):
                certificates.facts(one)
            for look in (certificates.purposes, certificates.alternatives, certificates.list_places):
                with suppress(*certificates.UNREADABLE):
                    look(one)
            same = one.tbs_certificate_bytes == box_leaf(ca).tbs_certificate_bytes
            assert same or not certificates.issued(one, ca.certificate)
    assert read > 20


_leaves: dict[int, x509.Certificate] = {}


def box_leaf(ca: Authority) -> x509.Certificate:
    return _leaves.setdefault(id(ca), ca.leaf("box", dns=["box.example.org"]).certificate)


ISSUED = {"wrong_key": "another key", "other_names": "does not carry box.example.org",
          "wrong_chain": "no authority that is trusted", "expired": "has expired already",
          "tomorrow": "not valid before", "shorter": "ends earlier"}


@pytest.mark.parametrize("mode", ISSUED)
def test_a_certificate_that_is_none_for_us(held: Box, server: Est, mode: str) -> None:
    server.mode, server.only = mode, "simplereenroll"
    held.fails("check", ISSUED[mode])
    first = server.asked[-1].request
    held.fails("check", ISSUED[mode])
    second = server.asked[-1].request
    assert first is not None and second is not None
    assert certificates.public(first.public_key()) != certificates.public(second.public_key()), "the next try has another key"
    server.mode = "good"
    held.run()


def test_an_authority_that_takes_its_time_is_asked_again_with_the_same_request(held: Box, server: Est) -> None:
    """202 (RFC 7030, 4.2.3): a person decides there; the key waits with its request, over a restart too."""
    server.mode, server.only, server.retry_after = "waiting", "simplereenroll", "77"
    assert held.fails("wait", "a person looks at it").again == 77
    key = held.writer.read("box", EST_KEY)
    held.fails("wait", "has not decided")
    assert held.writer.read("box", EST_KEY) == key != b""
    server.mode = "good"
    held.run()
    requests = [one.request for one in server.asked if one.request is not None]
    assert len({certificates.public(one.public_key()) for one in requests}) == 1
    assert certificates.public(held.leaf.public_key()) == certificates.public(requests[0].public_key())


@pytest.mark.requirement("I7")
def test_with_a_wrong_clock_nobody_is_asked(held: Box, server: Est) -> None:
    held.clock = ManualClock(wall_ns=0)
    held.fails("time", "clock")
    assert server.asked == []


def test_only_one_at_a_time(held: Box, server: Est) -> None:
    with held.writer.enrolling("box"):
        held.fails("alone", "already")
    assert server.asked == []


def test_how_it_went_is_kept(held: Box, server: Est) -> None:
    server.mode = "failing"
    for n in range(1, 4):
        with pytest.raises(EstError):
            enrolment.enrol(held.entry, held.writer, held.clock, 0.5)
        kept = tries.enrolment(held.writer.store, "box")
        assert (kept.tries.failures, kept.tries.step, kept.tries.good) == (n, "cacerts", 0)
        assert kept.tries.again > kept.tries.tried
        assert not kept.is_due(held.clock)
    server.mode = "good"
    enrolment.enrol(held.entry, held.writer, held.clock, 0.5)
    kept = tries.enrolment(held.writer.store, "box")
    assert (kept.tries.failures, kept.tries.why) == (0, "")
    assert kept.tries.good == kept.tries.tried > 0
