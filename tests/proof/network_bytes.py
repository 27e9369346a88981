"""Connections that break at every kind of byte, on both sides of the gateway: a part of the instrument `network`."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.proof.network_part import Part
from tests.proof.oracle import Entry, Journal, judge, read_bytes, read_store
from tests.support import objects, peers
from tests.support.cutting import HOW, PLACES, RESETTING, STALLED, Cut, Place, Proxy
from tests.support.gateway import Gateway, to_peer
from tests.support.objects import Instance
from tests.support.peers import Destination, Orthanc
from tests.support.scu import Lost, Patient, Scanner, contexts_of
from tests.support.waiting import wait_until

LANES = 4
PROGRESS = 0.8
"""Seconds without progress after which the gateway (or our scanner) lets go."""

IDLE = 3.0
"""Seconds after which the gateway ends an association on which nothing is sent."""

MESSAGE = 95.0
"""Seconds after which the gateway has let go of a peer that went away in mid-message: 60 s between two PDUs, 30 s in one."""


def cases(seed: int, most: int = 0) -> list[Cut]:
    """Every kind of byte in every way, then resets four times in a row, which trip the breaker; in an order of the seed."""
    every = [Cut(place, how) for place in PLACES for how in HOW]
    chance = random.Random(seed)
    chance.shuffle(every)
    insistent = [Cut(place, RESETTING, times=4) for place in PLACES if not place.after]
    chance.shuffle(insistent)
    every += insistent
    # In a sample every kind of byte comes once before any comes twice.
    seen: Counter[Place] = Counter()
    order = []
    for cut in every:
        seen[cut.place] += 1
        order.append((seen[cut.place], cut))
    order.sort(key=lambda entry: entry[0])
    return [cut for _, cut in order][:most or None]


ORTHANC_HANGS = 30.0
"""Seconds for which a peer that stands still in its association request keeps all others of an Orthanc waiting: one thread of
it answers such requests. Each try meanwhile doubles the gateway's back-off."""


def deliver(folder: Path, cuts: Sequence[Cut], part: Part, late: Callable[[], bool], *, orthanc: bool = False,
            patience: float = 30.0) -> None:
    """Between gateway and destination: four destinations, each behind a proxy that breaks, each time at another byte.

    Every destination gets every object, once: twice only where the connection
    broke between the last byte and the status, when nobody can know better.
    `patience`: seconds for an object to arrive after the break.
    """
    journal = Journal()
    with ExitStack() as stack:
        archives = [stack.enter_context(peers.storescp(folder / f"pacs{lane}", profile=False)) for lane in range(LANES)]
        if orthanc:
            archives[0] = stack.enter_context(peers.orthanc(folder / "orthanc"))
        proxies = [stack.enter_context(Proxy(archive.port)) for archive in archives]
        site = stack.enter_context(Gateway(folder / "site", [
            to_peer(archive, id=f"d{lane}", port=proxy.port, connect_seconds=2.0, progress_seconds=PROGRESS, linger_seconds=0.1)
            for lane, (archive, proxy) in enumerate(zip(archives, proxies, strict=True))]))
        site.start()
        for number, first in enumerate(range(0, len(cuts), LANES)):
            if late():
                break
            armed = dict(zip(range(LANES), cuts[first:first + LANES], strict=False))
            big = any(cut.how == STALLED and cut.place.segment == "data.body" for cut in armed.values())
            instance = objects.dx(number, "cuts", size=8_000_000) if big else objects.ct(number, "cuts", side=128)
            for lane, cut in armed.items():
                proxies[lane].cut = cut
            before = [proxy.stored for proxy in proxies]
            _send(site.port, instance, journal)
            for lane, cut in armed.items():
                part.count("cuts_delivering", cut.times)
                _broken(part, cut, proxies[lane], before[lane], archives[lane], instance, patience)
            for proxy in proxies:
                proxy.cut = None
                proxy.reset_all()
        site.wait_settled(60, accepted=len(journal))
        assert site.stop() == 0
        part.judge(judge(journal, {f"d{lane}": store(archive) for lane, archive in enumerate(archives)}, spool=site.spool,
                         balance=site.json("balance", "--deep", status=None)), "cuts between gateway and destination")


def store(archive: Destination) -> list[Entry]:
    """What a destination has, by its own files or interface."""
    if archive.kind == "orthanc":
        orthanc = Orthanc(archive.http)
        return [read_bytes(orthanc.call(f"/instances/{one}/file")) for one in orthanc.json("/instances")]
    return read_store(archive.folder)


def _send(port: int, instance: Instance, journal: Journal) -> None:
    journal.offer(instance)
    with Scanner(port, contexts_of([instance])) as scanner:
        status = scanner.store(instance)
    assert status == 0, f"status {status:04X} although nothing is wrong on this side"
    journal.acknowledge(instance)


def _broken(part: Part, cut: Cut, proxy: Proxy, before: int, archive: Destination, instance: Instance,
            patience: float) -> None:
    """Wait until the cut was made and the object is there all the same; as often as it may be."""
    if archive.kind == "orthanc":
        patience += 3 * ORTHANC_HANGS
    try:
        # Four breaks in a row cost 1 + 2 + 4 + 8 s of back-off at most.
        wait_until(lambda: not cut.left and proxy.stored > before, patience, str(cut))
    except AssertionError as error:
        part.fail(f"{archive.kind} {cut}: {error}")
        return
    if archive.kind == "orthanc":      # it keeps one of each
        return
    least, most = cut.copies

    key = instance.key

    def copies() -> int:
        # storescp writes as it receives, and deletes what does not become whole only when it hears that.
        return sum(found == key for found in archive.arrived())

    with suppress(AssertionError):
        wait_until(lambda: copies() >= least, 10, str(cut))
    if not least <= copies() <= most:
        part.fail(f"{cut}: {copies()} copies at the destination, not {least} to {most}")
    part.count("sent_again", copies() - 1)


def receive(folder: Path, cuts: Sequence[Cut], part: Part, late: Callable[[], bool], *, patient: bool) -> None:
    """Between scanner and gateway: what broke before the last byte is never counted, what came whole is.

    `patient`: wait until the gateway has let go of every peer that went away without a word.
    """
    journal = Journal()
    wanted = [cut for cut in cuts if cut.how not in (STALLED,)]
    with ExitStack() as stack:
        archive = stack.enter_context(peers.storescp(folder / "pacs", profile=False))
        site = stack.enter_context(Gateway(folder / "site", [to_peer(archive)], receivers=2, peers=[
            {"id": "ct", "titles": ["CUT"], "idle_seconds": IDLE}]))
        site.start()
        proxies = [stack.enter_context(Proxy(site.port)) for _ in range(LANES)]
        counts: list[tuple[int, int]] = []

        def lane(number: int) -> None:
            for at in range(number, len(wanted), LANES):
                if late():
                    return
                cut = wanted[at]
                part.count("cuts_receiving", cut.times)
                counts.append(cut.copies)
                _insist(proxies[number], cut, objects.ct(at, "insist", side=128), journal, part)

        threads = [threading.Thread(target=lane, args=(number,), name=f"scanner {number}") for number in range(LANES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        balance = site.wait_settled(60, accepted=len(journal), states=())
        least, most = (sum(count[side] for count in counts) for side in (0, 1))
        if not least <= balance["accepted"] <= most:
            part.fail(f"{balance['accepted']} accepted, of {least} to {most} that came whole (seed {part.seed})")
            return
        site.wait_settled(60)
        if patient:
            began = time.monotonic()
            try:
                wait_until(lambda: not any(proxy.open for proxy in proxies), MESSAGE + 15, "the gateway lets go", every=0.5)
            except AssertionError as error:
                part.fail(f"{sum(proxy.open for proxy in proxies)} connections are still held: {error}")
            part.set("seconds_until_dead_scanners_are_let_go", round(time.monotonic() - began, 1))
        assert site.stop() == 0
        part.judge(judge(journal, {"pacs": read_store(archive.folder)}, spool=site.spool,
                         balance=site.json("balance", "--deep", status=None)), "cuts between scanner and gateway")


def _insist(proxy: Proxy, cut: Cut, instance: Instance, journal: Journal, part: Part) -> None:
    """Send one object until it was acknowledged, through breaks."""
    journal.offer(instance)
    proxy.cut = cut
    heard = []
    for _ in range(cut.times + 3):
        try:
            scanner = Scanner(proxy.port, contexts_of([instance]), calling="CUT", max_send=16384, timeout=PROGRESS).open()
            status = scanner.store(instance)
        except Lost as error:
            heard.append(str(error))
            continue
        if status == 0:
            journal.acknowledge(instance)
            scanner.release()
            break
        heard.append(f"{status:04X}")
    else:
        part.fail(f"{cut}: never acknowledged, heard {heard}")
    if cut.left:
        part.fail(f"{cut}: the cut was never made, heard {heard}")
    proxy.cut = None


def flap(folder: Path, part: Part, seconds: float) -> None:
    """Both sides of the gateway are thrown out for a second, every other second, while scanners send without a pause."""
    journal = Journal()
    with ExitStack() as stack:
        archive = stack.enter_context(peers.storescp(folder / "pacs", profile=False))
        wan = stack.enter_context(Proxy(archive.port))
        site = stack.enter_context(Gateway(folder / "site", [to_peer(archive, port=wan.port, progress_seconds=2.0)]))
        site.start()
        lan = stack.enter_context(Proxy(site.port))
        over = threading.Event()
        study = (objects.ct(number, "flap", side=256) for number in itertools.count(1))

        def more() -> Instance | None:
            if over.is_set():
                return None
            instance = next(study)
            journal.offer(instance)
            return instance

        scanner = Patient(lan.port, more, contexts=contexts_of([objects.ct(0)]), timeout=5.0).start()
        try:
            end = time.monotonic() + seconds
            for number in itertools.count():
                if time.monotonic() > end:
                    break
                wan.set_down(number % 2 == 0)
                part.count("flaps")
                threading.Event().wait(0.5)
                lan.set_down(number % 2 == 0)
                threading.Event().wait(0.5)
        finally:
            wan.set_down(False)
            lan.set_down(False)
            over.set()
            scanner.join()
        known = {entry.instance: entry for entry in journal.offered}
        for uid, _, _ in scanner.journal:
            journal.acknowledge(known[uid])
        site.wait_settled(60, accepted=len(journal))
        assert site.stop() == 0
        part.count("sent_again_by_flapping", len(archive.arrived()) - len(set(scanner.journal)))
        part.judge(judge(journal, {"pacs": read_store(archive.folder)}, spool=site.spool,
                         balance=site.json("balance", "--deep", status=None)), "flapping")
