"""Updates: what is refused and why, when it is due, what the gate complains of, what a trial came to."""

from __future__ import annotations

import pytest

from appliance.policy.update import (
    Entry,
    Fate,
    Installed,
    Refused,
    Signs,
    Slot,
    Trial,
    choose,
    complaints,
    digests,
    entries_of,
    entry_of,
    fate,
    is_due,
    is_newer,
    may_reboot,
    releases,
    starting,
    version_key,
    why_back,
)

UUID = "f3c0a1d2-0000-4000-8000-0123456789ab"
BOX = Installed("x86-64", "0.2.0", "0.1.0")


def listed(*versions: str, device: str = "x86-64") -> dict[str, str]:
    found = {}
    for version in versions:
        for name in (f"dcmgate-{device}_{version}_{UUID}.root.raw.gz", f"dcmgate-{device}_{version}_{UUID}.root-verity.raw.gz",
                     f"dcmgate-{device}_{version}.efi"):
            found[name] = "a" * 64
    return found


def text(found: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in found.items())


def test_versions_are_numbers():
    assert is_newer("0.10.0", "0.9.9")
    assert not is_newer("0.2.0", "0.2.0")
    for bad in ("", "1.x", "1..2", "1.2.3.4.5", "v1", "1.0-rc1"):
        with pytest.raises(ValueError, match="is no version"):
            version_key(bad)


def test_a_list_is_what_sha256sum_writes():
    found = listed("0.3.0")
    assert digests(text(found)) == found
    for bad in ("", "nothing of that kind\n", "a" * 64 + "  ../../etc/passwd\n", "a" * 63 + "  name\n",
                text({f"name{n}": "a" * 64 for n in range(65)})):
        with pytest.raises(Refused):
            digests(bad)


def test_a_version_counts_only_where_it_is_whole():
    found = listed("0.3.0", "0.10.0")
    found["README"] = "b" * 64
    assert [release.version for release in releases(found)] == ["0.3.0", "0.10.0"]
    del found["dcmgate-x86-64_0.10.0.efi"]
    assert [release.version for release in releases(found)] == ["0.3.0"]


def test_the_newest_for_this_box_is_taken():
    assert choose(listed("0.3.0", "0.4.0") | listed("0.5.0", device="arm64"), BOX).version == "0.4.0"


@pytest.mark.parametrize(("found", "box", "words"), [
    (listed("0.3.0", device="arm64"), BOX, "for arm64, and this box is x86-64"),
    (listed("0.2.0"), BOX, "0.2.0 is what runs already"),
    (listed("0.1.5"), BOX, "0.1.5 is older than 0.2.0, which runs"),
    (listed("0.0.9"), BOX, "0.0.9 is older than 0.1.0, the oldest"),
    (listed("0.3.0"), Installed("x86-64", "0.2.0", "0.4.0"), "older than 0.4.0, the oldest"),
    (listed("0.3.0"), Installed("x86-64", "0.2.0", "0.1.0", {"0.3.0"}), "came back: --again"),
    ({"README": "a" * 64}, BOX, "no whole version"),
    (listed("0.3.0"), Installed("x86-64", "0.2.0", "0.1.0", on_trial=True), "0.2.0, which runs, is itself on trial"),
])
def test_what_is_not_for_this_box_is_refused_with_the_reason(found, box, words):
    with pytest.raises(Refused, match=words):
        choose(found, box)


def test_what_came_back_gets_another_trial_only_where_a_person_says_so():
    assert choose(listed("0.3.0"), Installed("x86-64", "0.2.0", "0.1.0", {"0.3.0"}), again=True).version == "0.3.0"


def test_the_box_waits_for_approval_and_for_the_window():
    night = [(120, 300)]
    assert is_due(night, 130, "0.3.0", "0.3.0", by_person=True) == ""
    assert "approve 0.3.0" in is_due(night, 130, "0.3.0", "", by_person=True)
    assert "approve 0.3.0" in is_due(night, 130, "0.3.0", "0.2.9", by_person=True)
    assert "window" in is_due(night, 600, "0.3.0", "0.3.0", by_person=True)
    assert "not known" in is_due(night, None, "0.3.0", "", by_person=False)
    assert is_due([], None, "0.3.0", "", by_person=False) == ""


def test_entries_of_the_boot_menu():
    found = entries_of(["dcmgate_0.10.0+2-0.efi", "dcmgate_0.9.0.efi", "dcmgate_0.8.0+0-2.efi", "other.efi", ".#x.efi"])
    assert found == (Entry("dcmgate_0.8.0+0-2.efi", "0.8.0", 0, 2), Entry("dcmgate_0.9.0.efi", "0.9.0"),
                     Entry("dcmgate_0.10.0+2-0.efi", "0.10.0", 2, 0))
    assert [entry.slot for entry in found] == [Slot.FAILED, Slot.GOOD, Slot.TRIAL]
    assert entry_of("dcmgate_0.9.0+3.efi") == Entry("dcmgate_0.9.0+3.efi", "0.9.0", 3, 0)


def test_a_reboot_has_to_lead_somewhere():
    old, last, bad = "dcmgate_0.1.0.efi", "dcmgate_0.2.0+0-2.efi", "dcmgate_0.1.0+0-2.efi"
    assert may_reboot(entries_of([old, last]), "0.2.0")
    assert may_reboot(entries_of(["dcmgate_0.2.0+1-1.efi", bad]), "0.2.0")
    assert not may_reboot(entries_of([last, bad]), "0.2.0")
    assert not may_reboot(entries_of([last]), "0.2.0")


GOOD = Signs(running="0.2.0", counted="0.2.0", services={
    "dcmgate-receiver.service": "active", "dcmgate-keeper.service": "reloading"}, before=("pacs",), reached=("pacs",))


def test_a_good_version_gives_no_cause_to_complain():
    assert complaints(GOOD) == []
    assert complaints(Signs(before=(), reached=())) == []
    assert complaints(Signs(before=("a", "b"), reached=("b",))) == []


@pytest.mark.parametrize(("signs", "words"), [
    (Signs(running="0.1.0", counted="0.2.0"), "0.2.0 could not be started, 0.1.0 runs"),
    (Signs(services={"dcmgate-receiver.service": "inactive"}), "dcmgate-receiver.service is inactive"),
    (Signs(failed_units=("chrony.service",)), "chrony.service has failed"),
    (Signs(answered="nobody listens"), "the port for scanners: nobody listens"),
    (Signs(stored="A700"), "not stored: A700"),
    (Signs(unaccounted=1, discrepancy="00: no row"), "unaccounted 1 (00: no row)"),
    (Signs(before=("pacs",), reached=()), "pacs could be reached before"),
])
def test_each_sign_alone_closes_the_gate(signs, words):
    said = complaints(signs)
    assert len(said) == 1
    assert words in said[0]


def test_who_is_on_the_way_is_waited_for():
    assert starting({"a": "activating", "b": "active"})
    assert not starting({"a": "inactive", "b": "failed"})


def test_what_became_of_a_trial():
    trial = Trial("0.2.0", "0.1.0")
    assert fate(trial, "0.1.0", entries_of(["dcmgate_0.2.0+2-0.efi"])) is Fate.WAITING
    assert fate(trial, "0.2.0", entries_of(["dcmgate_0.2.0+1-1.efi"])) is Fate.TRYING
    assert fate(trial, "0.2.0", entries_of(["dcmgate_0.2.0.efi"])) is Fate.BLESSED
    assert fate(trial, "0.1.0", entries_of(["dcmgate_0.2.0+0-2.efi"])) is Fate.BACK
    assert fate(trial, "0.1.0", ()) is Fate.BACK
    assert fate(Trial("0.2.0", "0.1.0", whole=False), "0.1.0", ()) is Fate.CUT_OFF
    assert "never came far enough" in why_back(trial)
    assert why_back(Trial("0.2.0", "0.1.0", said=("a", "b"))) == "0.2.0 came back to 0.1.0: b"
