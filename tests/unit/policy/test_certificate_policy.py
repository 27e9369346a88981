"""What is said of certificates, by dates, names, keys and lists, and with a clock that cannot be trusted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.model import Severity
from appliance.policy.certificates import DAY, Check, Facts, Held, List, Wanted, covers, examine, typed

NOW = 1_800_000_000_000_000_000
GOOD = Facts("CN=box", "CN=ca", "1", "ab" * 32, NOW - 300 * DAY, NOW + 90 * DAY, ("dns:box.example.org", "ip:10.0.0.7"))
CA = Facts("CN=ca", "CN=ca", "2", "cd" * 32, NOW - 300 * DAY, NOW + 900 * DAY, is_authority=True)
LIST = List("CN=ca", NOW - DAY, NOW + 7 * DAY)
HELD = Held("box", (GOOD,), (CA,), (LIST,))


BOTH = Wanted(trust=True)


def checks(held: Held, wanted: Wanted = BOTH, now: int = NOW, trusted: bool = True) -> list[tuple[Check, Severity]]:
    return [(f.check, f.severity) for f in examine(held, wanted, now, trusted)]


def test_nothing_is_said_of_a_good_certificate() -> None:
    assert checks(HELD, Wanted(("box.example.org", "10.0.0.7"), trust=True)) == []


@pytest.mark.parametrize(("left", "expected"), [
    (30 * DAY + 1, []),
    (30 * DAY, [(Check.EXPIRES, Severity.NOTICE)]),
    (14 * DAY, [(Check.EXPIRES, Severity.WARNING)]),
    (7 * DAY, [(Check.EXPIRES, Severity.CRITICAL)]),
    (DAY + 1, [(Check.EXPIRES, Severity.CRITICAL)]),
    (DAY, [(Check.EXPIRES, Severity.CRITICAL), (Check.LAST_DAY, Severity.CRITICAL)]),
    (0, [(Check.EXPIRED, Severity.CRITICAL)]),
])
def test_an_expiry_is_said_at_30_14_7_and_1_days(left: int, expected: list[tuple[Check, Severity]]) -> None:
    assert checks(replace(HELD, chain=(replace(GOOD, not_after=NOW + left),))) == expected


HOUR = DAY // 24


@pytest.mark.parametrize(("life", "wanted", "said"), [
    (30 * DAY, Wanted(), ["10 days", "5 days", "3 days", "8 hours"]),
    (3 * DAY, Wanted(), ["1 day", "12 hours", "6 hours", "48 minutes"]),
    (90 * DAY, Wanted(renewed=True), ["15 days", "7 days", "4 days", "12 hours"]),
    (3 * DAY, Wanted(renewed=True), ["12 hours", "6 hours", "3 hours", "24 minutes"]),
    (398 * DAY, Wanted(renewed=True), ["30 days", "14 days", "7 days", "1 day"]),
    (398 * DAY, Wanted(renewed=True, renew_days=20), ["10 days", "5 days", "3 days", "8 hours"]),
])
def test_what_lives_shortly_is_said_later_and_what_is_renewed_when_that_is_late(life: int, wanted: Wanted, said: list[str]
                                                                                ) -> None:
    leaf = replace(GOOD, not_before=NOW, not_after=NOW + life)
    held = replace(HELD, chain=(leaf,), lists=())
    heard = []
    for at in range(NOW, NOW + life, life // 5000):
        for finding in examine(held, wanted, at, True):
            text = finding.text.partition("expires within ")[2].partition(",")[0]
            if text not in heard:
                heard.append(text)
    assert heard == said
    assert examine(held, wanted, NOW, True) == [], "a new one is never an alarm"


def test_a_key_that_others_can_read_is_said() -> None:
    [finding] = examine(replace(HELD, open="/x/key.pem"), Wanted(), NOW, True)
    assert (finding.check, finding.severity) == (Check.OPEN_KEY, Severity.CRITICAL)
    assert "/x/key.pem" in finding.text


def test_an_intermediate_that_expires_first_counts_and_is_named() -> None:
    above = replace(CA, subject="CN=between", issuer="CN=root", not_after=NOW + 5 * DAY)
    [finding] = examine(replace(HELD, chain=(GOOD, above)), Wanted(), NOW, True)
    assert finding.check is Check.EXPIRES
    assert "CN=between" in finding.text


def test_an_intermediate_is_said_though_a_leaf_that_is_renewed_ends_before_it() -> None:
    leaf = replace(GOOD, not_before=NOW, not_after=NOW + 3 * DAY)
    above = replace(CA, subject="CN=between", issuer="CN=root", not_after=NOW + 5 * DAY)
    [finding] = examine(replace(HELD, chain=(leaf, above), lists=()), Wanted(renewed=True), NOW, True)
    assert (finding.check, finding.severity) == (Check.EXPIRES, Severity.CRITICAL)
    assert "CN=between" in finding.text and "7 days" in finding.text


def test_the_text_of_an_expiry_stays_the_same_until_the_next_threshold() -> None:
    """A text that changed each minute would be a new row of the ledger each minute."""
    held = replace(HELD, chain=(replace(GOOD, not_after=NOW + 13 * DAY),), lists=())
    assert examine(held, Wanted(), NOW, True) == examine(held, Wanted(), NOW + DAY, True)


def test_a_certificate_is_not_valid_yet() -> None:
    assert checks(replace(HELD, chain=(replace(GOOD, not_before=NOW + 1),))) == [(Check.NOT_YET_VALID, Severity.CRITICAL)]


@pytest.mark.requirement("I7")
@pytest.mark.parametrize("now", [0, NOW, NOW + 4000 * DAY])
def test_a_clock_that_is_not_trusted_is_no_bad_certificate(now: int) -> None:
    [finding] = examine(HELD, Wanted(trust=True), now, False)
    assert finding.check is Check.TIME_NOT_TRUSTED
    assert "clock" in finding.text
    assert checks(HELD) == [], "and it goes by itself"


def test_what_has_no_date_is_said_whatever_the_clock() -> None:
    held = replace(HELD, chain=(replace(GOOD, revoked=True),))
    assert [check for check, _ in checks(held, Wanted(("other.example.org",)), 0, False)] == [
        Check.REVOKED, Check.WRONG_NAME, Check.TIME_NOT_TRUSTED]


@pytest.mark.parametrize("change", [{"key": "rsa", "bits": 1024}, {"key": "ec", "bits": 192}, {"key": "dsa", "bits": 3072},
                                    {"signature": "sha1"}, {"signature": "md5"}])
def test_weak_keys_and_broken_signatures(change: dict[str, object]) -> None:
    assert checks(replace(HELD, chain=(replace(GOOD, **change),))) == [(Check.WEAK_KEY, Severity.WARNING)]   # type: ignore[arg-type]


def test_a_root_signed_with_sha1_is_trusted_for_itself_and_not_for_its_signature() -> None:
    assert checks(replace(HELD, trust=(replace(CA, signature="sha1"),))) == []


def test_wrong_names_are_named() -> None:
    [finding] = examine(HELD, Wanted(("box.example.org", "pacs.example.org")), NOW, True)
    assert finding.check is Check.WRONG_NAME
    assert "pacs.example.org" in finding.text
    assert "box.example.org" in finding.text


@pytest.mark.parametrize(("name", "kind"), [("Box.Example.org.", "dns:box.example.org"), ("10.0.0.7", "ip:10.0.0.7"),
                                            ("2001:db8:0::1", "ip:2001:db8::1"), ("urn:oid:1.2", "uri:urn:oid:1.2"),
                                            ("a@b.org", "email:a@b.org")])
def test_the_kind_of_a_name(name: str, kind: str) -> None:
    assert typed(name) == kind


def test_a_wildcard_stands_for_one_label() -> None:
    assert covers(["dns:*.example.org"], "dns:a.example.org")
    assert not covers(["dns:*.example.org"], "dns:a.b.example.org")
    assert not covers(["dns:*.example.org"], "dns:example.org")


def test_missing_and_unreadable() -> None:
    assert checks(Held("box")) == [(Check.MISSING, Severity.CRITICAL), (Check.NO_TRUST, Severity.CRITICAL)]
    assert checks(Held("box"), Wanted(pair=False)) == []
    assert checks(Held("box", problem="key.pem is no key")) == [(Check.UNREADABLE, Severity.CRITICAL)]


@pytest.mark.parametrize(("entry", "expected"), [
    (List("CN=ca", NOW - 10 * DAY, NOW - 1), [(Check.CRL_OLD, Severity.WARNING)]),
    (List("CN=ca", NOW - 10 * DAY, 0), [(Check.CRL_OLD, Severity.WARNING)]),
    (List("CN=ca", NOW - 6 * DAY, NOW + 2 * DAY), [(Check.CRL_EXPIRES, Severity.NOTICE)]),
    (List("CN=ca", NOW - 6 * DAY, NOW + 3 * DAY), []),
])
def test_revocation_lists_grow_old(entry: List, expected: list[tuple[Check, Severity]]) -> None:
    assert checks(replace(HELD, lists=(LIST, entry))) == expected


def test_one_trust_anchor_of_two_may_expire() -> None:
    gone = replace(CA, not_after=NOW - 1)
    assert checks(replace(HELD, trust=(gone, CA))) == [(Check.TRUST_EXPIRED, Severity.WARNING)]
    assert checks(replace(HELD, trust=(gone,))) == [(Check.TRUST_EXPIRED, Severity.CRITICAL)]
    assert checks(replace(HELD, trust=(replace(CA, not_after=NOW + 10 * DAY),))) == [(Check.TRUST_EXPIRES, Severity.WARNING)]
