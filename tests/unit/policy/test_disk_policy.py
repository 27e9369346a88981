"""Disks: on which ones a spool is made, which of a mirror may start, what is said, what a reset needs."""

from __future__ import annotations

import pytest

from appliance.policy import disks
from appliance.policy.disks import Boot, Disk, Held, Member, Opened, Part, Refused, SpoolDisks

GB = 1 << 30
VAR = Part("/dev/sda6", "v", "dcmgate-var", GB)
SYSTEM = Disk("/dev/sda", "S1", size=64 * GB, system=True, parts=(VAR,))
EMPTY = Disk("/dev/sdb", "S2", size=64 * GB, blank=True)
ONE, TWO = Member("u1", "S1"), Member("u2", "S2")


def test_one_disk_is_one_disk_and_a_blank_one_beside_it_makes_a_mirror() -> None:
    assert disks.new_spool([SYSTEM], known_spool=False) == (SYSTEM,)
    assert disks.new_spool([EMPTY, SYSTEM], known_spool=False) == (SYSTEM, EMPTY)


@pytest.mark.parametrize("other", [
    Disk("/dev/sdb", "S2", size=64 * GB),                                        # something is on it
    Disk("/dev/sdb", "S2", size=64 * GB, blank=True, removable=True),            # a stick
    Disk("/dev/sdb", "S2", size=GB // 4, blank=True)])                           # no disk for images
def test_a_disk_that_is_not_blank_fixed_and_large_is_left_alone(other: Disk) -> None:
    assert disks.new_spool([SYSTEM, other], known_spool=False) == (SYSTEM,)


def test_of_several_blank_disks_the_largest_is_taken_by_serial_where_they_are_alike() -> None:
    small, b, a = (Disk(f"/dev/sd{n}", serial, size=size * GB, blank=True) for n, serial, size in
                   (("b", "A0", 32), ("c", "B", 64), ("d", "A", 64)))
    assert disks.new_spool([small, b, a, SYSTEM], known_spool=False) == (SYSTEM, a)


@pytest.mark.requirement("I1")
def test_no_spool_is_made_where_one_was() -> None:
    there = Disk("/dev/sdb", "S9", size=64 * GB, parts=(Part("/dev/sdb1", "x", "dcmgate-spool", GB),))
    found = disks.new_spool([SYSTEM, there], known_spool=False)
    assert isinstance(found, Refused) and "S9" in found.reason
    assert isinstance(disks.new_spool([SYSTEM, EMPTY], known_spool=True), Refused)
    assert isinstance(disks.new_spool([EMPTY], known_spool=False), Refused)      # the disk of the system is not seen


@pytest.mark.requirement("I1")
def test_a_disk_that_was_left_behind_is_never_started_alone() -> None:
    gone = Member("u1", "S1", present=False)
    assert disks.startable([ONE, TWO], ["u1", "u2"]) == (ONE, TWO)
    assert disks.startable([ONE, TWO], ["u1"]) == (ONE, TWO)
    assert disks.startable([gone, TWO], ["u1", "u2"]) == (TWO,)
    found = disks.startable([gone, TWO], ["u1"])
    assert isinstance(found, Refused) and "S1" in found.reason and "left behind" in found.reason
    assert isinstance(disks.startable([gone, Member("u2", "S2", present=False)], ["u1", "u2"]), Refused)


def test_what_the_initrd_says_is_read_and_rubbish_is_not_taken_for_more() -> None:
    found = disks.boot("secure-boot=yes\nvar=luks2\nopened=tpm2\nsealed=11 7 12\n")
    assert found == Boot("luks2", Opened.TPM, frozenset({7, 11, 12}), True)
    assert disks.boot("") == Boot()
    assert disks.boot("var=luks2\nopened=magic\nsealed=x\nno line\n") == Boot("luks2")


@pytest.mark.parametrize(("found", "covered", "words"), [
    (Boot("luks2", Opened.TPM, frozenset({7, 11, 12}), True), True, "sealed to the TPM and to Secure Boot"),
    (Boot("luks2", Opened.TPM, frozenset({11}), False), False, "Secure Boot was off"),
    (Boot("luks2", Opened.KEY_SLOT), False, "no TPM"),
    (Boot("luks2", Opened.RECOVERY_KEY, frozenset({7, 11, 12})), True, "recovery key"),
    (Boot("plain"), False, "not encrypted")])
def test_theft_is_covered_by_tpm_and_secure_boot_and_otherwise_the_words_say_so(found: Boot, covered: bool, words: str) -> None:
    assert disks.theft_covered(found) is covered
    line = disks.encryption_line(found)
    assert words in line
    assert ("theft is not covered" in line) is not covered


def test_one_disk_is_not_redundant_and_a_mirror_is_while_both_work() -> None:
    single = SpoolDisks(True, True, False, (ONE,))
    assert "not redundant" in disks.redundancy_line(single) and not disks.redundant(single)
    mirror = SpoolDisks(True, True, True, (ONE, TWO))
    assert disks.redundancy_line(mirror) == "two disks, mirrored (S1 and S2)" and disks.redundant(mirror)
    for other in (Member("u2", "S2", present=False), Member("u2", "S2", working=False)):
        broken = SpoolDisks(True, True, True, (ONE, other))
        assert "disk S2 is out of the mirror" in disks.redundancy_line(broken) and not disks.redundant(broken)
        assert [alarm.key for alarm in disks.alarms(Boot("luks2"), broken, recovery_key_unseen=False)] == ["disk:S2"]
    assert not disks.redundant(SpoolDisks(True, True, True, (ONE, TWO), resyncing=True))


def test_alarms_name_what_a_person_has_to_do() -> None:
    fine = SpoolDisks(True, True, False, (ONE,))
    sealed = Boot("luks2", Opened.TPM, frozenset({7, 11, 12}), True)
    assert disks.alarms(sealed, fine, recovery_key_unseen=False) == []
    assert [a.key for a in disks.alarms(sealed, fine, recovery_key_unseen=True)] == ["recovery-key"]
    assert [a.key for a in disks.alarms(Boot("memory"), SpoolDisks(), recovery_key_unseen=False)] == ["disk-locked"]
    closed = SpoolDisks(True, False, False, (ONE,), problem="disk S1 is not there")
    assert "S1" in disks.alarms(sealed, closed, recovery_key_unseen=False)[0].text
    rotten = SpoolDisks(True, True, True, (ONE, TWO), errors=8)
    assert [a.key for a in disks.alarms(sealed, rotten, recovery_key_unseen=False)] == ["disk-rot"]


@pytest.mark.requirement("I4")
def test_a_reset_destroys_nothing_undelivered_unless_somebody_gives_a_reason() -> None:
    assert disks.reset_refusal(Held(), override=False, reason="") == ""
    for held in (Held(undelivered=1), Held(unconfirmed=1), Held(damaged=1), Held(problem="the spool is not open")):
        assert disks.reset_refusal(held, override=False, reason="the box is sold")
        assert disks.reset_refusal(held, override=True, reason=" ")
        assert disks.reset_refusal(held, override=True, reason="the box is sold") == ""
    assert "3 not delivered, 1 in quarantine" in disks.reset_refusal(Held(3, 0, 1), override=False, reason="")
