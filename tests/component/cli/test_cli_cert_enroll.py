"""`dcmgate cert enroll`, and what `show` and `check` tell of renewal by itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.net.certstore import Store, Writer
from tests.support.est import Est
from tests.support.pki import DAY, Authority, pem
from tests.support.sites import CliSite


@pytest.fixture
def ca() -> Authority:
    return Authority("Hospital CA")


@pytest.fixture
def server(ca: Authority) -> Iterator[Est]:
    with Est(ca) as found:
        found.users["box"] = "tiger-and-mouse"
        yield found


@pytest.fixture
def box(bare: CliSite, server: Est) -> CliSite:
    bare.config.write_text(bare.config.read_text() + f'\n[[certificate]]\nid = "box"\nnames = ["box.example.org"]\n'
                           f'est_url = "{server.url}"\nest_user = "box"\n')
    bare("spool", "init")
    return bare


@pytest.fixture
def password(tmp_path: Path) -> str:
    (tmp_path / "password").write_text("tiger-and-mouse\n")
    return str(tmp_path / "password")


def test_from_nothing_to_a_certificate_in_one_command(box: CliSite, server: Est, ca: Authority, password: str) -> None:
    """What a field engineer has: the configuration, a password, and the fingerprint on a sheet of paper."""
    box("cert", "enroll", "box", "--password-file", password, status=1)
    assert "--fingerprint" in box.err
    colons = ":".join(ca.fingerprint.upper()[n:n + 2] for n in range(0, 64, 2))
    said = box("cert", "enroll", "box", "--fingerprint", colons, "--password-file", password)
    assert "in force" in said
    assert Store(box.folder / "state").material("box").chain is not None
    assert box.json("cert", "check")["good"] is True
    shown = box.json("cert", "show", "box")["certificates"][0]
    leaf = server.issued[0]
    assert shown["chain"][0]["serial"] == f"{leaf.serial_number:x}"
    renewal = shown["renewal"]
    assert (renewal["automatic"], renewal["failures"], renewal["why"]) == (True, 0, "")
    life = shown["chain"][0]["not_after"] - shown["chain"][0]["not_before"]
    assert renewal["from"] == shown["chain"][0]["not_after"] - life // 3
    assert renewal["good"] > 0
    text = box("cert", "show")
    assert "renewed by itself at https://localhost" in text and "enrolled 20" in text
    assert box.json("cert", "enroll", "box")["done"], "and again, by the certificate"
    assert server.asked[-1].what == "simplereenroll"


def test_the_password_is_nowhere_to_be_seen(box: CliSite, server: Est, ca: Authority, password: str) -> None:
    said = box("cert", "enroll", "box", "--fingerprint", ca.fingerprint, "--password-file", password) + box.err
    said += box("cert", "show") + box("--json", "cert", "show") + box.err
    server.mode = "refusing"
    box("cert", "enroll", "box", status=1)
    said += box.err + box("cert", "check", status=0) + box("cert", "show")
    assert "tiger" not in said
    kept = box.folder / "state" / "certificates" / "box" / "est-password"
    assert kept.read_text() == "tiger-and-mouse\n"
    assert kept.stat().st_mode & 0o777 == 0o600


def test_what_fails_is_told_with_step_reason_and_next_try(box: CliSite, server: Est, ca: Authority) -> None:
    writer = Writer(box.folder / "state")
    writer.put("box", trust=pem(ca.certificate))
    old = ca.leaf("box", dns=["box.example.org"], start=-89 * DAY, end=timedelta(hours=20))
    writer.install("box", old.key_pem(), old.chain_pem())
    server.mode, server.only = "garbage", "simplereenroll"
    for _ in range(2):
        box("cert", "enroll", "box", status=1)
        assert "no certificates" in box.err
    renewal = box.json("cert", "show")["certificates"][0]["renewal"]
    assert (renewal["failures"], renewal["step"]) == (2, "enroll")
    assert renewal["again"] > renewal["tried"] > 0
    text = box("cert", "show")
    assert "failed 2 times" in text and "at step enroll" in text and "next try 20" in text
    found = box.json("cert", "check", status=1)["findings"]
    assert {"renewal", "expires"} <= {one["check"] for one in found}
    server.mode = "good"
    box("cert", "enroll", "box")
    assert box.json("cert", "check")["good"] is True


def test_a_list_that_was_fetched_is_shown_with_its_age(box: CliSite, ca: Authority) -> None:
    from appliance.clock import SystemClock
    from appliance.net import tries
    writer = Writer(box.folder / "state")
    writer.put("box", trust=pem(ca.certificate), crl=ca.crl())
    tries.keep_lists(writer, "box", {"http://pki/ca.crl": tries.good(SystemClock(), 3600 * 10**9)})
    text = box("cert", "show")
    assert "revocation list of CN=Hospital CA: 0 revoked" in text
    assert "revocation list at http://pki/ca.crl: fetched 20" in text and "next try 20" in text
    assert box.json("cert", "show")["certificates"][0]["fetched"]["http://pki/ca.crl"]["failures"] == 0


@pytest.mark.parametrize(("arguments", "words"), [
    (("nobody",), "there is no [[certificate]]"),
    (("box", "--fingerprint", "12:34"), "not a SHA-256 fingerprint"),
])
def test_what_cannot_be_is_said(box: CliSite, arguments: tuple[str, ...], words: str) -> None:
    box("cert", "enroll", *arguments, status=2)
    assert words in box.err


def test_without_est_url_the_other_way_is_named(box: CliSite, server: Est) -> None:
    box.config.write_text(box.config.read_text().replace(f'est_url = "{server.url}"\nest_user = "box"\n', ""))
    box("cert", "enroll", "box", status=2)
    assert "dcmgate cert request" in box.err
