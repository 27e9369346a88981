"""The real processes with a wall clock that is wrong at boot, and jumps while they work (libfaketime): a part of `clocks`."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests.proof.network_part import Part
from tests.proof.oracle import Journal, judge, read_spool, read_store
from tests.support import objects, peers
from tests.support.cutting import Proxy
from tests.support.faked import FakedGateway
from tests.support.faults import wait_alarm, wait_no_alarm
from tests.support.gateway import STAGES, to_peer
from tests.support.objects import Instance
from tests.support.peers import Destination
from tests.support.scu import Patient, Scanner, contexts_of
from tests.support.waiting import free_port, wait_until

DAY = 86400.0
YEAR = 365.25 * DAY
BOOT_1970 = 35.0
"""Seconds since 1970 of a box without a battery, when the receiver is up."""

ROUND = 10.0
"""Seconds between two rounds of the keeper."""


def _send(site: FakedGateway, instances: list[Instance], journal: Journal) -> None:
    with Scanner(site.port, contexts_of(instances)) as scanner:
        for instance in instances:
            journal.offer(instance)
            status = scanner.store(instance)
            assert status == 0, f"status {status:04X}"
            journal.acknowledge(instance)


def _finish(site: FakedGateway, archives: dict[str, Destination], journal: Journal, part: Part, what: str) -> None:
    site.wait_settled(60, accepted=len(journal))
    for name in list(site.processes):
        if status := site.stop(name):
            part.fail(f"{what}: exit status {status} of {name}\n{site.log_tail(1000)}")
    part.judge(judge(journal, {name: read_store(archive.folder) for name, archive in archives.items()}, spool=site.spool,
                     balance=site.json("balance", "--deep", status=None)), what)


# --- 1970 at boot -----------------------------------------------------------------------------------------------------


def boot_in_1970(folder: Path, part: Part, *, patient: bool) -> None:
    """A box that boots in 1970: it takes, routes and sends; rules by the hour do not apply; then a time server is reached.

    `night` is a destination with hours that are shut by the hour that the box
    believes: the clock is not trusted, so it gets its images all the same. When
    the clock is set to a time outside its hours, it waits; at one within, it goes on:
    by itself within a minute (`patient`: that is waited for), or as soon as something new comes.
    """
    journal = Journal()
    with ExitStack() as stack:
        archives = {name: stack.enter_context(peers.storescp(folder / name, profile=False)) for name in ("always", "night")}
        noon = _local(2030, 6, 1, 12)
        site = stack.enter_context(FakedGateway(folder / "site", [
            to_peer(archives["always"], id="always"), to_peer(archives["night"], id="night", hours=["20:00-04:00"])],
            wall=BOOT_1970))
        site.start()
        study = objects.ct_study(9, "1970", side=64)
        _send(site, study[:3], journal)
        for archive in archives.values():
            archive.wait_for({instance.key for instance in study[:3]}, 20)
        alarm = wait_alarm(site, "^clock ", 2 * ROUND)
        if "wrong" not in alarm["text"]:
            part.fail(f"1970: {alarm}")
        site.set_wall(noon)
        _send(site, study[3:6], journal)
        archives["always"].wait_for({instance.key for instance in study[:6]}, 20)
        if {instance.key for instance in study[3:6]} & set(archives["night"].arrived()):
            part.fail("1970, then noon: sent outside its hours")
        site.set_wall(noon + 10 * 3600)
        began = time.monotonic()
        if not patient:
            _send(site, study[6:7], journal)
        archives["night"].wait_for({entry.key for entry in study[:6]}, 75)
        if patient:
            part.set("seconds_until_a_set_clock_opens_a_window", round(time.monotonic() - began, 1))
            wait_no_alarm(site, "^clock ", 60 + 3 * ROUND)      # it stays a minute longer, as every alarm does
        site.set_wall(noon)
        _send(site, study[7:8], journal)
        site.set_wall(BOOT_1970)            # the clock goes wrong again: what waits for the night is not stuck
        if not patient:
            _send(site, study[8:], journal)
        archives["night"].wait_for({entry.key for entry in study[7:8]}, 75)
        part.count("clocks_set", 5)
        _finish(site, archives, journal, part, "1970 at boot")


def _local(year: int, month: int, day: int, hour: int) -> float:
    return time.mktime((year, month, day, hour, 0, 0, 0, 0, -1))


# --- back-off ---------------------------------------------------------------------------------------------------------


def step_in_a_back_off(folder: Path, part: Part, years: float, steps: int) -> None:
    """The destination is down; the clock jumps while the forwarder waits; it tries no earlier and no later than without."""
    journal = Journal()
    with ExitStack() as stack:
        port = free_port()
        tries: list[float] = []
        refusing = stack.enter_context(Proxy(port))
        site = stack.enter_context(FakedGateway(folder / "site", [      # no C-ECHO beside them: every connection is a try
            to_peer(Destination("pacs", "PACS", refusing.port, folder), id="pacs", echo_minutes=0.0)], wall=time.time()))
        refusing.on_connect = lambda: tries.append(time.monotonic())
        site.start()
        study = objects.ct_study(3, ("back-off", years), side=64)
        _send(site, study, journal)
        for number in range(1, steps + 1):
            wait_until(lambda n=number: len(tries) >= n, 2.0 ** number + 10, f"try {number} of the destination")   # type: ignore[misc]
            site.step_to(years * YEAR if number % 2 else -years * YEAR / 2)
            part.count("clocks_set")
        waits = [after - before for before, after in itertools.pairwise(tries)]
        # 1 s doubled, with full jitter, never below a tenth (man/design.md); a second more for a machine that is busy.
        for number, wait in enumerate(waits[:5]):
            if not 0.09 <= wait <= 2.0 ** number + 1.0:
                part.fail(f"{years:+g} years in a back-off: {wait:.2f} s before try {number + 2} (of {waits})")
        archive = stack.enter_context(peers.storescp(folder / "pacs", profile=False, port=port))
        began = time.monotonic()
        archive.wait_for({instance.key for instance in study}, 2.0 ** len(tries) + 10)
        part.note(f"{years:+g} years in a back-off: delivered {time.monotonic() - began:.1f} s after it is back")
        _finish(site, {"pacs": archive}, journal, part, f"{years:+g} years in a back-off")


# --- retention --------------------------------------------------------------------------------------------------------


def retention(folder: Path, part: Part, offsets: Sequence[float]) -> None:
    """Confirmed copies stay their time whatever the clock says, and go when it is over: two gateways, on clocks that jump.

    `keeps` keeps them for a day, and their clocks go a round of the keeper each by
    `offsets` (seconds from the present): nothing goes. `goes` keeps them for some
    seconds, and the clock goes back ten years before they are over: all go.
    """
    with ExitStack() as stack:
        journals = {name: Journal() for name in ("keeps", "goes")}
        sites, archives = {}, {}
        for name, most in (("keeps", 1.0), ("goes", 2.0 / DAY)):
            archives[name] = stack.enter_context(peers.storescp(folder / name / "pacs", profile=False))
            sites[name] = stack.enter_context(FakedGateway(
                folder / name / "site", [to_peer(archives[name], id="pacs", status_days=0.0)], wall=time.time() - 10 * YEAR,
                spool={"keep_min_hours": 0.0, "keep_max_days": most}))
            sites[name].start_stages()
            _send(sites[name], objects.ct_study(4, name, side=64), journals[name])
        sites["goes"].step_to(-20 * YEAR)
        wait_until(lambda: sites["keeps"].balance()["confirmed"] == 4, 3 * ROUND, "confirmed", every=0.5)
        for offset in offsets:
            sites["keeps"].step_to(offset)
            sites["keeps"].wait_round()
            part.count("clocks_set")
        kept = sum(held.intact for held in read_spool(sites["keeps"].spool))
        if kept != 4:
            part.fail(f"retention: {kept} of 4 are kept although a day has not passed")
            return
        wait_until(lambda: sites["goes"].balance()["retired"] == 4, 3 * ROUND, "goes: retired", every=0.5)
        for name, site in sites.items():
            _finish(site, {"pacs": archives[name]}, journals[name], part, f"retention, {name}")


# --- anything at any time ---------------------------------------------------------------------------------------------


def wild(folder: Path, part: Part, seconds: float) -> None:
    """The clock is set five times a second under load, to anything that a broken box has; now and then a stage is killed."""
    chance = random.Random(part.seed)
    journal = Journal()
    with ExitStack() as stack:
        archive = stack.enter_context(peers.storescp(folder / "pacs", profile=False))
        site = stack.enter_context(FakedGateway(folder / "site", [to_peer(archive)], wall=BOOT_1970, receivers=2))
        site.start_stages()
        over = threading.Event()
        numbers = itertools.count(1)

        def more() -> Instance | None:
            if over.is_set():
                return None
            instance = objects.ct(next(numbers), "wild", side=64)
            journal.offer(instance)
            return instance

        scanner = Patient(site.port, more, contexts=contexts_of([objects.ct(0)])).start()
        kills = 0
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                site.set_wall(chance.choice((0.0, BOOT_1970, time.time(), time.time() + 10 * YEAR, time.time() - 10 * YEAR,
                                             2.0**31 - 1, 2.0**32, time.time() + chance.uniform(-DAY, DAY))))
                part.count("clocks_set")
                threading.Event().wait(0.2)
                if chance.random() < 0.05:
                    site.restart(STAGES[kills % 3])
                    kills += 1
        finally:
            over.set()
            scanner.join()
        known = {entry.instance: entry for entry in journal.offered}
        for uid, _, _ in scanner.journal:
            journal.acknowledge(known[uid])
        part.count("kills", kills)
        with suppress(AssertionError):
            site.command("requeue", "--state", "parked", status=None)
        _finish(site, {"pacs": archive}, journal, part, "a clock that is set all the time")
        chain: Any = site.json("verify", status=None)
        part.note(f"verify: {str(chain)[:200]}")
