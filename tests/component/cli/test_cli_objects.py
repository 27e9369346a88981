"""Finding, reading and deciding: on a real spool and ledger, without a running keeper."""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path

import pydicom
import pytest

from appliance.cli import exits
from appliance.spool.index import study_key
from tests.support.sites import STUDY, CliSite, texts

ME = getpass.getuser()


def damage(path: Path) -> None:
    """Flip a bit of the data set."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


# --- list and show -------------------------------------------------------------------------------------------------------

@pytest.mark.requirement("Goal 4")
def test_studies_are_found_by_what_people_know(site: CliSite) -> None:
    site.fill([b"one", b"two"], name="M\u00fcller^Eva", patient="4711", accession="ACC9")
    for criterion in (["--patient", "4711"], ["--patient", "muller"], ["--accession", "acc9"], ["--study", STUDY],
                      ["--study", study_key(STUDY)], ["--date", "20260101"], ["--modality", "CT"], []):
        found = site.json("list", *criterion)["studies"]
        assert [s["uid"] for s in found] == [STUDY], criterion
        assert found[0]["destinations"]["pacs"] == {"received": 2, "waiting": 2, "sent": 0, "confirmed": 0}
    for criterion in (["--patient", "4712"], ["--accession", "ACC"], ["--study", "1.2.3"], ["--modality", "MR"]):
        assert site.json("list", *criterion)["studies"] == []
    text = site("list", "--patient", "4711")
    assert "M\u00fcller^Eva" in text and "pacs 0/2" in text and text.endswith("1 study\n")


def test_objects_are_found_by_number_uid_state_and_destination(site: CliSite) -> None:
    one, _ = custodies = site.fill([b"one", b"two"])
    site.sent("pacs", one.number)

    def numbers(*argv: str) -> list[str]:
        return [o["number"] for o in site.json("list", *argv)["objects"]]

    both = texts(custodies)
    assert numbers("--objects") == both
    assert numbers(f"{one.number:x}") == both[:1]
    assert numbers("--uid", "1.2.3.2") == both[1:]
    assert numbers("--state", "waiting") == both                       # second has not got it: the least advanced counts
    assert numbers("--state", "sent", "--destination", "pacs") == both[:1]
    assert numbers("--state", "waiting", "--destination", "pacs") == both[1:]
    assert numbers("--study", STUDY, "--objects") == both
    assert numbers("--patient", "P1", "--objects", "--limit", "1") == both[:1]
    assert numbers("--destination", "nowhere") == []
    assert "pacs:sent second:waiting" in site("list", both[0])
    site("list", "ffff", status=exits.REFUSED)
    assert site.err == "dcmgate: there is no object 000000000000ffff — `dcmgate list` shows them\n"
    site("list", "--state", "retired", status=exits.USAGE)


@pytest.mark.requirement("every reading of patient data is an event with the person's name")
def test_each_reading_is_recorded_before_it_is_shown(site: CliSite, tmp_path: Path) -> None:
    number = texts(site.fill([b"one"]))[0]
    site("list", "--patient", "P1")
    site("show", number)
    site("export", number, "--to", str(tmp_path / "out"))
    site("status", "--once", "--names")
    seen = site.kinds("seen")
    assert [s["by"] for s in seen] == [ME] * 4
    assert [s["what"].split()[0] for s in seen] == ["list", "show", "export", "status"]
    assert '"patient": "P1"' in seen[0]["what"] and number in seen[1]["what"]


def test_what_cannot_be_recorded_is_not_shown(site: CliSite, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.errors import LedgerFault
    from appliance.spool.ledger import Ledger
    number = texts(site.fill([b"one"], patient="SECRET"))[0]

    def full(*_: object) -> None:
        raise LedgerFault("the ledger cannot be used: database or disk is full")

    monkeypatch.setattr(Ledger, "seen", full)
    for argv in (["list"], ["show", number], ["export", number, "--to", str(site.folder / "out")]):
        assert site(*argv, status=exits.UNREACHABLE) == ""
    assert not list((site.folder / "out").iterdir())


def test_status_shows_no_patient_unless_asked(site: CliSite) -> None:
    site.fill([b"one"], name="DOE^JANE", patient="4711")
    plain, named = site("status", "--once"), site("status", "--once", "--names")
    assert "DOE" not in plain and "4711" not in plain and site.kinds("seen")[0]["what"] == "status --names"
    assert "DOE^JANE" in named and "4711" in named


@pytest.mark.requirement("Goal 4")
def test_everything_about_an_object(site: CliSite) -> None:
    one = site.fill([b"one"])[0]
    site("hold", f"{one.number:x}", "--reason", "wrong patient", "--destination", "second")
    text = site("show", f"{one.number:x}")
    for wanted in (f"{one.number:016x}  waiting", one.digest.hex(), '"CT1" at 127.0.0.1', "P1  DOE^JANE",
                   "by rule1, generation 1", "→ second: held", "wrong patient", f"by={ME}", "accepted",
                   str(site.spool().object_path(one.number))):
        assert wanted in text
    told = site.json("show", f"{one.number:x}")["objects"][0]
    assert [e["kind"] for e in told["history"]][-1] == "held" and told["patient_id"] == "P1"
    assert told["sop_instance"] == "1.2.3.1"


def test_a_name_from_a_peer_cannot_play_with_the_terminal(site: CliSite) -> None:
    one = site.fill([b"one"], name="\x1b]0;pwned\x07\x1b[2J^X\r\nfake line", accession="\x1b[31m")[0]
    for text in (site("list"), site("show", f"{one.number:x}"), site("status", "--once", "--names")):
        assert "\x1b" not in text and "\x07" not in text and "\nfake" not in text


# --- export --------------------------------------------------------------------------------------------------------------

def test_exported_files_are_the_objects(site: CliSite, tmp_path: Path) -> None:
    data = pydicom.data.get_testdata_file("CT_small.dcm")
    raw = Path(str(data)).read_bytes()
    body = raw[raw.index(b"\x08\x00\x05\x00"):]
    one = site.fill([body])[0]
    out = tmp_path / "out"
    assert site.json("export", "--study", STUDY, "--to", str(out)) == {"folder": str(out), "exported": 1, "failed": []}
    file = out / f"{one.number:016x}.dcm"
    assert file.read_bytes() == site.spool().object_path(one.number).read_bytes()
    assert file.read_bytes()[4096:] == body and file.stat().st_mode & 0o777 == 0o600
    assert pydicom.dcmread(file).PatientID == "1CT1"


def test_a_damaged_object_leaves_no_file(site: CliSite, tmp_path: Path) -> None:
    one, two = site.fill([b"one" * 1000, b"two"])
    damage(site.spool().object_path(one.number))
    out = tmp_path / "out"
    text = site("export", "--study", STUDY, "--to", str(out), status=exits.FINDING)
    assert f"{one.number:016x}: damaged, not exported" in text and "1 of 2 exported" in text
    assert [p.name for p in out.iterdir()] == [f"{two.number:016x}.dcm"]


def test_a_file_that_is_there_is_left_alone(site: CliSite, tmp_path: Path) -> None:
    one = site.fill([b"one"])[0]
    (tmp_path / f"{one.number:016x}.dcm").write_text("mine")
    text = site("export", f"{one.number:x}", "--to", str(tmp_path), status=exits.FINDING)
    assert "is there already" in text and (tmp_path / f"{one.number:016x}.dcm").read_text() == "mine"
    site("export", "--patient", "nobody", "--to", str(tmp_path), status=exits.REFUSED)


def test_export_to_a_file_system_without_nameless_files(site: CliSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = site.fill([b"one" * 1000, b"two"])
    damage(site.spool().object_path(two.number))
    monkeypatch.setattr(os, "O_TMPFILE", 0o1 << 30)          # no such flag: EINVAL or EISDIR, as on FAT
    site("export", "--study", STUDY, "--to", str(tmp_path / "usb"), status=exits.FINDING)
    names = {p.name: p.stat().st_size for p in (tmp_path / "usb").iterdir()}
    assert names == {f"{one.number:016x}.dcm": 4096 + 3000, f"{two.number:016x}.part": 0}


# --- deciding ------------------------------------------------------------------------------------------------------------

def test_hold_and_release(site: CliSite) -> None:
    one, two = site.fill([b"one", b"two"])
    assert site("hold", "--study", study_key(STUDY), "--destination", "pacs") == "2 deliveries of 2 objects held\n"
    assert site.states(one.number) == {"pacs": "held", "second": "waiting"}
    assert [o["number"] for o in site.json("list", "--state", "held")["objects"]] == texts([one, two])
    assert site.json("release", f"{one.number:x}") == {"objects": 1, "deliveries": 1}
    assert site.states(one.number)["pacs"] == "waiting" and site.states(two.number)["pacs"] == "held"
    assert site("release", "--destination", "pacs") == "1 delivery of 1 object released\n"
    site("release", "--destination", "pacs", status=exits.REFUSED)
    assert site.err.startswith("dcmgate: no object fits — ")
    site("hold", status=exits.USAGE)
    site("hold", "12", "--destination", "second", status=exits.REFUSED)
    assert {e["by"] for e in site.kinds("held", "released")} == {ME}


def test_requeue_sends_again_and_elsewhere(site: CliSite) -> None:
    one, two = site.fill([b"one", b"two"])
    site.sent("pacs", one.number)
    assert site("requeue", f"{one.number:x}", "--destination", "pacs") == "1 delivery of 1 object queued again\n"
    assert site.states(one.number)["pacs"] == "waiting"
    assert site.json("requeue", "--destination", "second", "--to", "pacs") == {"deliveries": 2}
    assert site.states(two.number)["pacs"] == "waiting"
    site("requeue", f"{one.number:x}", "--to", "pasc", status=exits.REFUSED)
    assert site.err == 'dcmgate: there is no destination "pasc" — did you mean "pacs"?\n'


def test_the_queue_of_a_removed_destination_waits_for_another(site: CliSite) -> None:
    one = site.fill([b"one"])[0]
    text = site.config.read_text()
    site.config.write_text(re.sub(r'\[\[destination\]\]\nid = "second".*?\n\n', "", text, flags=re.DOTALL))
    assert site("reload") == "generation 2 is in force\n"
    second = next(d for d in site.json("status")["destinations"] if d["destination"] == "second")
    assert (second["state"], second["owed"]) == ("removed", 1)
    site("requeue", "--destination", "second", status=exits.REFUSED)
    assert "is not in the configuration any more — name another with --to" in site.err
    site("requeue", "--destination", "second", "--to", "pacs")
    assert site.states(one.number) == {"pacs": "waiting"}


def test_a_discard_needs_a_reason_and_a_count(site: CliSite, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = site.fill([b"one", b"two"])
    site("discard", f"{one.number:x}", "--reason", " ", status=exits.REFUSED)
    assert site("discard", f"{one.number:x}", "--reason", "phantom") == "1 of 1 object discarded\n"
    assert site.kinds("discarded") == [{"by": ME, "reason": "phantom"}]
    site("discard", "--study", STUDY, "--reason", "x", status=exits.USAGE)
    assert "--yes" in site.err
    assert site.json("discard", "--study", STUDY, "--reason", "x", "--yes")["discarded"] == texts([two])
    assert site("balance").endswith("unaccounted 0\n")
    assert site.spool().object_path(one.number).exists()          # only retire deletes (I4)


def test_an_asked_person_may_say_no(site: CliSite, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Typed(io.StringIO):
        def isatty(self) -> bool:
            return True

    site.fill([b"one", b"two"])
    monkeypatch.setattr("sys.stdin", Typed("no\n"))
    site("discard", "--study", STUDY, "--reason", "x", status=exits.REFUSED)
    assert site.kinds("discarded") == [] and "nothing was discarded" in site.err
    monkeypatch.setattr("sys.stdin", Typed("2\n"))
    site("discard", "--study", STUDY, "--reason", "x")
    assert len(site.kinds("discarded")) == 2


# --- checking ------------------------------------------------------------------------------------------------------------

@pytest.mark.requirement("I2")
def test_the_last_line_of_the_balance_is_what_is_unaccounted(site: CliSite) -> None:
    one, _ = site.fill([b"one", b"two"])
    text = site("balance", "--deep")
    assert text.splitlines()[-1] == "unaccounted 0" and re.search(r"^accepted +2$", text, re.MULTILINE)
    os.rename(site.spool().object_path(one.number), site.folder / "stolen.dcm")
    text = site("balance", status=exits.FINDING)
    assert text.splitlines()[-1] == "unaccounted 1" and f"{one.number:016x}" in text
    told = site.json("balance", status=exits.FINDING)
    assert (told["unaccounted"], told["accepted"], told["waiting"], told["retired"]) == (1, 2, 2, 0)


@pytest.mark.requirement("I5")
def test_verify_finds_a_flipped_bit_and_puts_the_object_aside(site: CliSite) -> None:
    one, two = site.fill([b"one", b"two"])
    assert site("verify").startswith("2 objects, 6 B read in ")
    damage(site.spool().object_path(one.number))
    assert site.json("verify", f"{two.number:x}")["damaged"] == []
    told = site.json("verify", "--only-report", status=exits.FINDING)
    assert [d["number"] for d in told["damaged"]] == texts([one]) and told["quarantined"] == []
    told = site.json("verify", status=exits.FINDING)
    assert told["quarantined"] == texts([one])
    assert [o["number"] for o in site.json("list", "--state", "quarantined")["objects"]] == texts([one])
    assert (site.spool().quarantine / f"{one.number:016x}.dcm").exists()
    assert site.json("balance")["quarantined"] == 1
    assert site.json("verify")["damaged"] == []


# --- peers ---------------------------------------------------------------------------------------------------------------

def test_who_knocked_is_let_in_by_one_command(site: CliSite) -> None:
    from appliance.spool.rows import Knock
    site.fill([b"one"])
    with site.ledger() as ledger:
        ledger.knocked([Knock("CT2", "GATE", "10.0.0.2", "reject", '"CT2" at 10.0.0.2 is no known peer', 3)])
    text = site("peers")
    assert "CT1@127.0.0.1" in text and '"CT2"' in text and 'dcmgate admit "CT2" 10.0.0.2' in text
    assert site("admit", "CT2", "10.0.0.2") == '"CT2" at 10.0.0.2 is let in\n'
    assert site.json("peers", "admitted")["admitted"][0]["by"] == ME
    assert site.json("peers", "seen")["knocked"] == []
    site("peers", "admit", "", "10.0.0.3")                     # a blank title
    site("admit", "A" * 17, "10.0.0.2", status=exits.REFUSED)
    site("admit", "CT2", "ct2.local", status=exits.REFUSED)
    assert "is no address" in site.err


# --- routing -------------------------------------------------------------------------------------------------------------

def test_route_explain_says_which_rule_and_why(site: CliSite) -> None:
    site.config.write_text(site.config.read_text() + """
[[rule]]
id = "heads"
match = { modality = "MR" }
destinations = ["second"]
[[rule]]
id = "ct"
match = { calling = "CT1", StudyDescription = "e+1", not = { modality = "SR" } }
destinations = ["second"]
priority = "stat"
""")
    file = str(pydicom.data.get_testdata_file("CT_small.dcm"))
    told = site.json("route", "explain", file, "--file", "--calling", "CT1")
    assert (told["rules"], told["destinations"], told["priority"]) == (["ct"], ["second"], "stat")
    text = site("route", "explain", file, "--file", "--calling", "CT9")
    assert 'heads: no, modality is "CT", not "MR"' in text and 'ct: no, calling is "CT9"' in text and "→ pacs" in text
    assert site.json("route", "explain", file)["rules"] == []        # what is in force has no rules yet
    one = site.fill([b"no data set at all"])[0]
    text = site("route", "explain", f"{one.number:x}")
    assert "cannot be read" in text and "as routed, generation 1: rule1" in text
    (site.folder / "notes.txt").write_text("hello")
    site("route", "explain", str(site.folder / "notes.txt"), status=exits.FINDING)
    site("route", "explain", file, "--time", "25:00", status=exits.USAGE)
