"""Faults of the disk under the spool: full, read-only, torn out, failing once, hanging.

Each ends in a failure status or a rejection, never in silence and never in a
success that is not durable; C-ECHO always answers; a person is told; and
nothing that was acknowledged is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import faults, objects, peers
from tests.support.faults import MIB, REJECTED_FULL, Disk, FailingDisk, Journal, echo, wait_alarm, wait_log
from tests.support.gateway import Gateway, to_peer
from tests.support.peers import Destination
from tests.support.scu import IMPLICIT, VERIFICATION, Lost, Scanner, contexts_of
from tests.support.waiting import free_port, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(150)]

CT = [(objects.CT, objects.EXPLICIT)]
OBJECT = 540_000
"""Bytes that one CT slice takes in the spool, about."""

ANSWER_SECONDS = 25.0
"""The product's hard deadline for a status after the last byte (I1)."""

CUT_OFF = ("aborted", "closed", "ConnectionReset", "BrokenPipe")
"""What a sender hears whose association was ended, wherever it was just then."""

TRAUMA = {"id": "trauma", "titles": ["TRAUMA"], "priority": "trauma"}


def absent(port: int) -> dict[str, object]:
    """A destination at a port on which nobody listens yet; what it stored counts as confirmed at once."""
    return to_peer(Destination("pacs", "PACS", port, Path()), connect_seconds=1.0)


def state(site: Gateway) -> str:
    return str(site.json("status")["state"])


def settled(site: Gateway, pacs: Destination, journal: Journal) -> dict[str, int]:
    """Everything acknowledged is at the destination, unaltered, and the balance is exact; ends the gateway."""
    pacs.wait_for(journal.acknowledged, 60)
    assert set(pacs.arrived()) <= set(journal.acknowledged) | {key for key, _ in journal.refused}
    balance = site.wait_settled(60)
    assert site.stop() == 0
    deep = site.json("balance", "--deep")
    assert (deep["unaccounted"], deep["discrepancies"]) == (0, []), deep
    return balance


# --- full -------------------------------------------------------------------------------------------------------------


@contextmanager
def small(kind: str, folder: Path, port: int) -> Iterator[Gateway]:
    """A gateway with little room, by quota or because its file system is small."""
    with ExitStack() as stack:
        if kind == "ext4":
            stack.enter_context(faults.file_system(folder / "spool", 64))
        yield stack.enter_context(Gateway(folder, [absent(port)], size=24 * MIB if kind == "quota" else 0, peers=[TRAUMA],
                                          spool={"keep_min_hours": 0.0}).make())


@pytest.mark.requirement("I1")
@pytest.mark.requirement("design: Space")
@pytest.mark.parametrize("kind", ["quota", "ext4"])
def test_a_full_spool_turns_scanners_away_and_recovers_by_itself(kind: str, tmp_path: Path) -> None:
    """The destination is away: green, amber, red, black. It comes back, and all of that goes back without a hand."""
    port = free_port()
    journal = Journal()
    numbers = iter(range(1, 1000))
    with small(kind, tmp_path / "site", port) as site:
        site.start()
        total = site.json("status")["total"]
        with Scanner(site.port, [*CT, (VERIFICATION, IMPLICIT)]) as open_since_green:

            def fill_to(part: float) -> None:
                """Store until less than this part of the room is free."""
                while (left := free(site, journal) - part * total) >= 0:
                    for _ in range(max(1, int(left / OBJECT))):
                        assert journal.store(open_since_green, objects.ct(next(numbers), kind)) == "0000"

            assert state(site) == "green"
            fill_to(0.2)
            assert state(site) == "amber"
            fill_to(0.1)
            assert state(site) == "red"
            assert Journal().send(site.port, [objects.ct(0, "turned away")]) == [REJECTED_FULL]
            assert journal.send(site.port, [objects.ct(0, "trauma")], calling="TRAUMA") == ["0000"]
            assert echo(site.port) == 0
            assert wait_alarm(site, "^space .*turned away")["severity"] == "critical"

            while (status := journal.store(open_since_green, objects.ct(next(numbers), kind))) == "0000":
                pass
            assert status == "A700"   # what is in flight does not fit
            assert echo(site.port) == 0 and open_since_green.echo() == 0
            assert Journal().send(site.port, [objects.ct(0, "too late")], calling="TRAUMA") == [REJECTED_FULL]
            assert journal.store(open_since_green, objects.ct(next(numbers), kind)) == "A700"
            assert not journal.missing(site)
            free(site, journal)
            assert site.balance()["unaccounted"] == 0

            with peers.storescp(tmp_path / "pacs", port=port) as pacs:
                wait_until(lambda: state(site) in ("green", "amber"), 60, "room again", every=0.3)
                assert journal.store(open_since_green, objects.ct(next(numbers), kind)) == "0000"
                assert journal.send(site.port, objects.ct_study(3, "after", side=64)) == ["0000"] * 3
                balance = settled(site, pacs, journal)
                assert balance["retired"] > 0   # confirmed copies only: everything is at the destination


def free(site: Gateway, journal: Journal) -> int:
    """Free bytes as `status` shows them, once the ledger has every row."""
    def look() -> int | None:
        told = site.json("status")
        return int(told["free"]) + 1 if told["accepted"] == len(journal.acknowledged) else None

    return (wait_until(look, 10, "rows for all", every=0.05) or 0) - 1


@pytest.mark.requirement("design: Space, ballast")
def test_a_disk_that_somebody_else_fills_to_the_last_block(tmp_path: Path) -> None:
    """No intake, but what is held goes out: the ballast is the room for its rows. With the room everything comes back."""
    port = free_port()
    journal = Journal()
    with (faults.file_system(tmp_path / "site" / "spool", 256) as disk,    # the ballast is no large part of that
          Gateway(tmp_path / "site", [absent(port)]).make() as site):
        site.start()
        assert journal.send(site.port, objects.ct_study(20, "held", side=128)) == ["0000"] * 20
        disk.fill()
        assert Journal().send(site.port, [objects.ct(0, "full")])[0] in ("A700", REJECTED_FULL)
        assert echo(site.port) == 0
        assert wait_alarm(site, "^space .*(turned away|nothing is taken in)")["severity"] == "critical"
        with peers.storescp(tmp_path / "pacs", port=port) as pacs:
            pacs.wait_for(journal.acknowledged, 60)
            site.wait_settled(30, accepted=20)
            assert (disk.mount / "ballast").stat().st_size == 0
            disk.make_room()
            assert journal.send(site.port, objects.ct_study(3, "after", side=64)) == ["0000"] * 3
            wait_until(lambda: (disk.mount / "ballast").stat().st_blocks * 512 >= 8 * MIB, 30, "the ballast is there again")
            settled(site, pacs, journal)


# --- failing ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("I6")
@pytest.mark.parametrize("how", ["read-only", "torn out", "write errors"])
def test_a_disk_that_takes_nothing_any_more(how: str, tmp_path: Path) -> None:
    """No success ever after, no delivery that could not be written down, an alarm; repaired, and everything is there."""
    port = free_port()
    journal = Journal()
    with ExitStack() as stack:
        mount = tmp_path / "site" / "spool"
        disk: Disk = stack.enter_context(faults.failing_disk(mount) if how == "write errors" else faults.file_system(mount))
        site = stack.enter_context(Gateway(tmp_path / "site", [absent(port)]).make())
        site.start()
        assert journal.send(site.port, objects.ct_study(4, "before", side=128)) == ["0000"] * 4
        with Scanner(site.port, CT) as scanner:
            assert journal.store(scanner, objects.ct(5, "before", side=128)) == "0000"
            wait_until(lambda: site.balance()["accepted"] == 5, 10, "rows for all")
            if isinstance(disk, FailingDisk):
                disk.switch(faults.WRITE_ERRORS)
            elif how == "read-only":
                disk.turn_read_only()
            else:
                disk.tear_out()
            during = objects.ct_study(3, "during", side=256)
            assert [journal.store(scanner, instance) for instance in during] == ["A700"] * 3
        assert journal.send(site.port, during) == [REJECTED_FULL] * 3
        assert echo(site.port) == 0
        with peers.storescp(tmp_path / "pacs", port=port) as pacs:
            wait_log(site, "alarm: the disk is out of intake")
            wait_log(site, "(nothing is sent|cannot route now|the ledger is damaged).*dmesg")
            if how == "torn out":
                assert "Input/output error" in faults.refusal(site, "status", status=3)
            else:
                assert wait_alarm(site, "out-of-intake")["severity"] == "critical"
            if how == "read-only":
                assert not journal.missing(site)
            assert Journal().send(site.port, during) == [REJECTED_FULL] * 3
            assert echo(site.port) == 0
            assert pacs.arrived() == []   # an attempt is written down before an object is touched
            assert site.stop() == 0
            if isinstance(disk, FailingDisk):
                disk.switch(faults.GOOD)
            disk.mend()
            assert not journal.missing(site)
            site.start()
            assert journal.send(site.port, during) == ["0000"] * 3
            settled(site, pacs, journal)


@pytest.mark.requirement("I6")
def test_a_disk_that_fails_once_is_out_of_intake_until_a_restart_and_delivery_goes_on(tmp_path: Path) -> None:
    """After a failed write the kernel may have dropped what it held: no second try is believed. Reading is another matter."""
    port = free_port()
    journal = Journal()
    with (faults.failing_disk(tmp_path / "site" / "spool") as disk,
          Gateway(tmp_path / "site", [absent(port)]).make() as site):
        site.start()
        assert journal.send(site.port, objects.ct_study(10, "before", side=128)) == ["0000"] * 10
        wait_until(lambda: site.balance()["accepted"] == 10, 10, "rows for all")
        with Scanner(site.port, CT) as scanner:
            disk.switch(faults.WRITE_ERRORS)
            failed = journal.store(scanner, objects.ct(1, "failed"))
            disk.switch(faults.GOOD)
            assert failed == "A700"
            assert journal.store(scanner, objects.ct(1, "failed")) == "A700"
        assert Journal().send(site.port, [objects.ct(2, "failed")]) == [REJECTED_FULL]
        with peers.storescp(tmp_path / "pacs", port=port) as pacs:
            pacs.wait_for(journal.acknowledged, 60)
            alarm = wait_alarm(site, "out-of-intake")
            assert alarm["severity"] == "critical" and "Input/output error" in alarm["text"], alarm
            assert Journal().send(site.port, [objects.ct(3, "failed")]) == [REJECTED_FULL]
            assert site.balance()["unaccounted"] == 0
            assert site.stop() == 0
            site.start()
            assert journal.send(site.port, [objects.ct(1, "failed")]) == ["0000"]
            settled(site, pacs, journal)


@pytest.mark.requirement("I5")
def test_an_object_that_cannot_be_read_stays_behind_and_the_others_go(tmp_path: Path) -> None:
    """A bad sector: what lies on it goes to quarantine with an alarm, and is sent again when the scanner sends it again."""
    port = free_port()
    journal = Journal()
    large, small_ones = objects.ct(1, "unreadable"), objects.ct_study(5, "readable", side=64)   # large: not in the page cache
    with (faults.failing_disk(tmp_path / "site" / "spool") as disk,
          Gateway(tmp_path / "site", [absent(port)]).make() as site):
        site.start("receiver")
        assert set(journal.send(site.port, [large, *small_ones])) == {"0000"}
        wait_until(lambda: site.balance()["accepted"] == 6, 10, "rows for all")
        assert site.stop("receiver") == 0
        disk.switch(faults.BAD_SECTOR)
        with peers.storescp(tmp_path / "pacs", port=port) as pacs:
            site.start()
            pacs.wait_for([instance.key for instance in small_ones], 30)
            assert wait_alarm(site, "^quarantine ")["severity"] == "critical"
            wait_log(site, "damaged.*Input/output error")
            assert len(pacs.arrived()) == 5 and site.balance()["unaccounted"] == 0
            assert echo(site.port) == 0
            disk.switch(faults.GOOD)
            assert large.key in faults.held(site.spool) | faults.quarantined(site.spool)   # nothing of it is lost
            assert Journal().send(site.port, [large]) == ["0000"]
            pacs.wait_for(journal.acknowledged, 30)
            assert site.wait_settled(30)["quarantined"] == 1
            assert site.stop() == 0
            assert site.json("balance", "--deep")["unaccounted"] == 0


# --- hanging ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("I1")
@pytest.mark.parametrize("how", ["frozen", "hanging"])
def test_a_disk_that_hangs_is_no_silence_and_no_second_life(how: str, tmp_path: Path) -> None:
    """Every sender hears a failure within the deadline, new ones are turned away, echoes answer. Then the disk goes on.

    What was answered with a failure and became durable all the same is the same
    object when the scanner sends it again: one at the destination.
    """
    journal = Journal()
    with ExitStack() as stack:
        mount = tmp_path / "site" / "spool"
        disk: Disk = stack.enter_context(faults.failing_disk(mount, 96) if how == "hanging" else faults.file_system(mount, 96))
        pacs = stack.enter_context(peers.storescp(tmp_path / "pacs"))
        site = stack.enter_context(Gateway(tmp_path / "site", [to_peer(pacs, resend="never")]).make())
        site.start()
        assert journal.send(site.port, objects.ct_study(4, "before", side=128)) == ["0000"] * 4
        pacs.wait_for(journal.acknowledged)
        under_way = [objects.ct(1, how), objects.ct(2, how, side=64), objects.sr(3, how, size=3000), objects.dx(4, how)]
        senders = [Sender(site.port, instance) for instance in under_way]
        with disk.hanging() if isinstance(disk, FailingDisk) else disk.frozen():
            for sender in senders:
                sender.start()
            while any(sender.is_alive() for sender in senders):
                assert echo(site.port, 5.0) == 0
                for sender in senders:
                    sender.join(0.5)
            for sender in senders:
                assert sender.heard == "A700" or sender.heard.startswith(CUT_OFF), sender.heard
                assert sender.seconds <= ANSWER_SECONDS, f"{sender.seconds:.1f} s until {sender.heard}"
            assert Journal().send(site.port, under_way[:1]) == [REJECTED_FULL]
            assert echo(site.port) == 0
            wait_log(site, "out of intake.*the disk has not answered")
        # It goes on: nothing was restarted.
        wait_until(lambda: echo(site.port) == 0 and Journal().send(site.port, [objects.ct(9, how, side=64)]) == ["0000"], 30,
                   "images are taken in again", every=0.3)
        journal.acknowledged.append(objects.ct(9, how, side=64).key)
        assert journal.send(site.port, under_way) == ["0000"] * 4
        pacs.wait_for(journal.acknowledged, 60)
        site.wait_settled(60)
        arrived = pacs.arrived()
        assert set(arrived) == set(journal.acknowledged)
        assert len(arrived) == len(set(arrived))
        settled(site, pacs, journal)


class Sender(threading.Thread):
    """Sends one object on an association of its own: what it heard, and how long after it began."""

    def __init__(self, port: int, instance: objects.Instance) -> None:
        super().__init__()
        self.heard = ""
        self.seconds = 0.0
        self._instance = instance
        self._scanner = Scanner(port, contexts_of([instance]), timeout=60).open()

    def run(self) -> None:
        began = time.monotonic()
        try:
            self.heard = f"{self._scanner.store(self._instance):04X}"
        except Lost as error:
            self.heard = str(error)
        self.seconds = time.monotonic() - began
        self._scanner.close()
