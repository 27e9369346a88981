"""What is looked at after every step of a simulation, and the long quiet end in which everything must come right."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import partial

from blake3 import blake3

from appliance.clock import SECOND
from appliance.errors import DcmgateError
from appliance.manage.verbs import Desk, handlers
from tests.proof.simulation_box import KEEP_MAX_DAYS, MAX_DEBT
from tests.proof.simulation_oracle import Instance
from tests.proof.simulation_world import World

BALANCE_EVERY = 4
"""Steps between two of the product's own balances."""

QUIET_ROUNDS = 120
QUIET_SECONDS = 900.0
"""So many rounds of so many seconds are enough for any backlog here: back-offs, hours of the day, proofs that are missing."""


def examine(world: World) -> None:
    """Hold the ledger against what happened."""
    oracle, disk, now = world.oracle, world.disk, world.clock.powered_ns
    rows = {row[0]: row[1:] for row in world.look_up(
        "SELECT number, state, file, complete_on, uid, syntax, length, digest FROM objects")}
    opened = dict(world.look_up("SELECT number, owner FROM open_numbers"))
    without: Counter[int] = Counter()
    for number, one in oracle.instances.items():
        path = str(world.spool.object_path(number))
        if one.acknowledged and not one.damaged and path in disk.names:
            content = disk.names[path]
            held = bytes(content.disk)
            oracle.check("I3 unmodified", held[4096:] == one.data and held[:4096] == one.head, f"{number:x} on the platter")
        if number in rows:
            _row(world, one, *rows[number], there=path in disk.names, now=now)
        elif one.acknowledged and not one.damaged and oracle.check(
                "I2 every acknowledged object has a row or is owed one", number in opened, f"{number:x} ({one.uid})"):
            without[opened[number]] += 1
    for number in rows.keys() - oracle.instances.keys():
        oracle.check("I2 states follow facts", False, f"{number:x} was accepted, and nobody sent it")
    for owner, count in without.items():
        oracle.check("I2 bounded debt", count <= MAX_DEBT, f"owner {owner} owes {count} rows")
    _deliveries(world, now)
    if world.steps % BALANCE_EVERY == 0:
        _balance(world)


def _row(world: World, one: Instance, state: str, file: int, complete: int | None, uid: str, syntax: str, length: int,
         digest: bytes, *, there: bool, now: int) -> None:
    check, number = world.oracle.check, one.number
    same = (uid, syntax, length, digest) == (one.uid, one.syntax, len(one.data), blake3(one.data).digest())
    check("I2 states follow facts", same, f"{number:x} is noted as {uid}, {length} bytes")
    if one.discarded and not world.oracle.ledger_was_lost:
        check("I2 states follow facts", state == "discarded", f"{number:x} was discarded, and is {state}")
    if state == "discarded":
        check("I2 states follow facts", one.discarded, f"{number:x} is discarded, and nobody did that")
    elif state == "quarantined":
        check("I2 states follow facts", one.damaged, f"{number:x} is in quarantine, and is sound")
    elif file == 0 and not one.damaged:
        check("I2 states follow facts", there, f"{number:x} is {state}, and its file is gone")
        durable = world.disk.durable(str(world.spool.object_path(number)))
        check("I1 held is durable", durable is not None and durable[4096:] == one.data, f"{number:x} is {state}")
    if file == 2:
        check("I2 states follow facts", not there, f"{number:x} is retired, and its file is there")
    elif complete is not None and one.acknowledged and not one.discarded:
        unproved = [duty for duty in world.oracle.counted(one) if world.oracle.proved_at(one, duty, now) is None]
        check("I4 deletes only what is proved", not unproved,
              f"{number:x} ({uid}) counts as complete, and {' and '.join(map(str, unproved))} did not prove it")


def _deliveries(world: World, now: int) -> None:
    oracle = world.oracle
    for number, site, state in world.look_up("SELECT number, destination, state FROM deliveries WHERE state IN"
                                             " ('sent', 'confirmed')"):
        one = oracle.instances.get(number)
        if one is not None:
            told = oracle.successes.get((site, one.content))
            oracle.check("I2 states follow facts", told, f"{number:x} is {state} at {site}, which never said so")


def _balance(world: World, *, deep: bool = False) -> None:
    wrong = world.unaccounted(deep=deep)
    world.oracle.check("I2 balance", not wrong, "; ".join(wrong[:3]))


# --- time, and the end of all faults --------------------------------------------------------------------------------------

def live(world: World, seconds: float, rounds: int = 40) -> None:
    """Let that much time pass, everybody doing what is due, at most so many times."""
    end = world.clock.boot_ns() + int(seconds * SECOND)
    for _ in range(rounds):
        pause = turn(world)
        left = (end - world.clock.boot_ns()) / SECOND
        if left <= 0 or world.blackout:
            return
        world.clock.advance(min(max(pause, left / rounds, 0.01), left) + 1e-6)


def turn(world: World) -> float:
    """Everybody does what is due now; seconds until somebody has more to do."""
    pause = 3600.0
    for receiver in world.receivers:
        if receiver is not None:
            pause = min(pause, world.maintain(receiver))
    world.watch()
    while world.route():
        pass
    pause = min(pause, _lanes(world))
    if world.holder is not None:
        for runner in list(world.holder.keeper.confirmer._runners):
            world.confirm(runner)
        if world.clock.boot_ns() >= (world.holder.round_at if world.holder else 0):
            world.keep()
    return pause


def _lanes(world: World) -> float:
    for _ in range(60):
        due = [lane for lane in world.sender.lanes() if world.lane_is_due(lane)] if world.sender is not None else []
        if not due:
            break
        for lane in due:
            if world.sender is not None and lane._thread.is_alive():
                world.lane_turn(lane)
    now = world.clock.boot_ns()
    return min((max(at - now, 0) / SECOND for at in world.sender.due.values()), default=3600.0) if world.sender else 3600.0


def quiet_end(world: World) -> None:
    """No fault any more: everything is delivered, proved and, in its time, deleted; and all of it adds up."""
    world.disk.heal()
    world.disk.foreign = 0
    world.ledger_faults.clear()
    for site in world.sites.values():
        site.heal()
    for process in world.processes():
        process.fuse = None
    if not world.clock.trusted():
        world.clock.step_wall(30 * 365 * 86400.0)
    world.without.clear()
    world.reconfigure()
    world.start_all()
    for round in range(QUIET_ROUNDS):
        if round % 4 == 0:
            _patient_person(world)
        live(world, QUIET_SECONDS, 12)
        if round >= 4 and _nothing_owed(world):
            break
    world.oracle.at_the_end(world.clock.powered_ns)
    for _ in range(8):
        live(world, KEEP_MAX_DAYS * 86400 / 4, 6)
    oracle, now = world.oracle, world.clock.powered_ns
    for one in oracle.instances.values():
        if one.owed and all(oracle.proved_at(one, duty, now) is not None and oracle.can_be_proved(one, duty)
                            for duty in one.duties):
            kept = str(world.spool.object_path(one.number)) in world.disk.names
            oracle.check("I9 proved in the end", not kept, f"{one.number:x} ({one.uid}) is proved everywhere, and is kept")
    examine(world)
    _balance(world, deep=True)


def _patient_person(world: World) -> None:
    """Somebody who releases what is held, and has tried again what is parked."""
    if world.holder is None:
        return
    keeper = world.holder.keeper
    verbs = handlers(Desk(keeper._spool, keeper.ledger, lambda: world.config, keeper._reload_by_person, lambda: None))
    held = [f"{row[0]:x}" for row in world.look_up(
        "SELECT DISTINCT number FROM deliveries WHERE state = 'held' AND reason <> 'order'")]
    late = {row[0] for row in world.look_up("SELECT number FROM deliveries WHERE state = 'held' AND reason = 'late'")}
    given_up = world.look_up("SELECT number, destination FROM deliveries WHERE state = 'parked'")
    parked = {where: [f"{number:x}" for number, at in given_up if at == where] for _, where in given_up}
    # Of these two a person decides that they go out after what came later under their UID: so they are asked for by number.
    late |= {number for number, _ in given_up}
    world.oracle.disturbed |= {world.oracle.instances[number].uid for number in late}
    with suppress(DcmgateError):
        if held:
            world.act(world.holder.process, partial(verbs["release"], "anna", {"numbers": held}))
        for site, numbers in sorted(parked.items()):
            if world.holder is not None:
                world.act(world.holder.process, partial(verbs["requeue"], "anna", {"numbers": numbers, "destination": site}))


def _nothing_owed(world: World) -> bool:
    """Nothing waits any more, and all that can be proved is."""
    if world.look_up("SELECT 1 FROM objects WHERE routed = 0 UNION ALL SELECT 1 FROM deliveries WHERE state IN"
                     " ('waiting', 'sending', 'deferred', 'held', 'parked') LIMIT 1"):
        return False
    oracle, now = world.oracle, world.clock.powered_ns
    return all(oracle.proved_at(one, duty, now) is not None or not oracle.can_be_proved(one, duty)
               for one in oracle.instances.values() if one.owed for duty in oracle.counted(one))
