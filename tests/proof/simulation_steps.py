"""What may happen in a simulation: one step each, with small whole numbers that say what, who and how much.

`VOCABULARY` is all there is to know of them: name → (weight, {argument: highest
value}). A script is a list of (name, arguments); it means the same however it was
made, by hypothesis, by a seed, or by a shrinker that leaves steps out: whatever
an argument points at is counted modulo what there is, and a step that makes no
sense just now does nothing.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import apsw

from appliance.dicom import dimse
from appliance.errors import DcmgateError, LedgerError, SpoolError
from appliance.manage.verbs import Desk, handlers
from appliance.model import Source
from appliance.receive.services import Call, Refusal
from appliance.spool import rebuild
from tests.proof.simulation_box import DEFAULT, FAIL_OVER, ROUTES, SITES, Receiver, Underway, content
from tests.proof.simulation_examine import examine, live
from tests.proof.simulation_oracle import Duty, Instance, Routing
from tests.proof.simulation_sites import MOODS, PLANS
from tests.proof.simulation_world import World

T = TypeVar("T")

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
CALLED = tuple(ROUTES)
CALLING = ("DAY", "ER", "OLD")
STRETCHES = (0.3, 2.0, 30.0, 400.0, 4000.0, 30_000.0, 200_000.0)
STEPS_OF_THE_CLOCK = (-10 * 365 * 86400.0, -3600.0, -60.0, 60.0, 3600.0, 10 * 365 * 86400.0)
ROLES = ("receiver 0", "receiver 1", "forwarder", "keeper")
FAILURES = (("sync", errno.EIO), ("write", errno.EIO), ("write", errno.ENOSPC), ("write", errno.EINTR), ("truncate", errno.EIO),
            ("sync folder", errno.EIO), ("create", errno.EIO), ("create", errno.ENOSPC), ("unlink", errno.EIO),
            ("rename", errno.EIO), ("read", errno.EIO), ("sync", 0))
LEDGER = (apsw.BusyError, apsw.FullError, apsw.IOError)

DOWN_FOR = 2
OUT_OF_INTAKE_FOR = 8
"""Steps after which somebody starts it again."""

VOCABULARY: dict[str, tuple[int, dict[str, int]]] = {
    "arrive": (12, {"receiver": 1, "scanner": 14, "what": 23}),
    "begin": (3, {"receiver": 1, "scanner": 14, "what": 23}),
    "go_on": (3, {"at": 5}),
    "give_up": (1, {"at": 5}),
    "maintain": (4, {"receiver": 1}),
    "route": (5, {}),
    "watch": (2, {}),
    "lane": (8, {"at": 5, "turns": 3}),
    "confirm": (3, {"site": 3}),
    "keep": (2, {}),
    "scrub": (1, {}),
    "wait": (2, {"stretch": 6}),
    "live": (5, {"stretch": 6}),
    "hold": (1, {"at": 99, "site": 4}),
    "release": (1, {"at": 99, "site": 4}),
    "requeue": (2, {"at": 99, "to": 4, "source": 4}),
    "move_queue": (1, {"source": 3, "to": 4}),
    "discard": (1, {"at": 99}),
    "mood": (3, {"site": 3, "mood": len(MOODS) - 1}),
    "plan": (4, {"site": 3, "plan": len(PLANS) - 1, "count": 2}),
    "poison": (1, {"site": 3, "what": 5}),
    "mute": (1, {"site": 3}),
    "lose": (2, {"site": 3, "at": 9}),
    "crash": (2, {"role": 3}),
    "doom": (4, {"role": 3, "after": 30, "power": 3}),
    "start": (3, {"role": 3, "fuse": 60}),
    "power_cut": (1, {}),
    "reboot": (1, {"wall": 2}),
    "step_clock": (1, {"step": 5}),
    "fail_disk": (2, {"failure": len(FAILURES) - 1, "count": 1}),
    "heal_disk": (1, {}),
    "fill_disk": (1, {"left": 3}),
    "flip": (1, {"at": 99, "bit": 80_000}),
    "fail_ledger": (1, {"kind": 2, "count": 3}),
    "lose_ledger": (1, {}),
    "remove_site": (1, {"there": 1}),
}

Script = list[tuple[str, dict[str, int]]]

Moved = dict[int, list[tuple[str, str, int | None]]]
"""Number → its deliveries as they were: destination, state, since when it is confirmed."""


class Steps:
    """Does steps on a world, and looks at it after each."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._missing: Counter[str] = Counter()

    def do(self, name: str, arguments: dict[str, int]) -> None:
        """One step, and everything that it brings about."""
        world = self.world
        world.steps += 1
        world.clock.advance(0.05)
        self._supervise()
        step: Callable[..., None] = getattr(self, f"_{name}")
        step(**arguments)
        if world.blackout:
            world.power_cut()
        examine(world)

    def _supervise(self) -> None:
        """systemd: what is down for some steps is started again; a receiver out of intake waits longer, for a person."""
        there = {process.name for process in self.world.processes()}
        for role, name in enumerate(ROLES):
            receiver = self.world.receivers[role] if role < 2 else None
            out = receiver is not None and receiver.intake.out_of_intake
            self._missing[name] = self._missing[name] + 1 if out or name not in there else 0
            if self._missing[name] > (OUT_OF_INTAKE_FOR if out else DOWN_FOR):
                self._start(role, 60)

    # --- scanners ---------------------------------------------------------------------------------------------------------

    def _arrive(self, receiver: int, scanner: int, what: int) -> None:
        one = self._offer(receiver, scanner, what)
        if one is not None:
            self._send(receiver, one, to_the_end=True)

    def _begin(self, receiver: int, scanner: int, what: int) -> None:
        self._offer(receiver, scanner, what)

    def _go_on(self, at: int) -> None:
        receiver, one = self._under_way(at)
        if one is not None:
            self._send(receiver, one, to_the_end=one.sent > 0)

    def _give_up(self, at: int) -> None:
        receiver, one = self._under_way(at)
        there = self.world.receivers[receiver]
        if one is not None and there is not None:
            there.underway.remove(one)
            self.world.act(there.process, partial(one.task.abandon, "the peer went away"))

    def _under_way(self, at: int) -> tuple[int, Underway | None]:
        every = [(index, one) for index, receiver in enumerate(self.world.receivers) if receiver is not None
                 for one in receiver.underway]
        return every[at % len(every)] if every else (0, None)

    def _offer(self, index: int, scanner: int, what: int) -> Underway | None:
        """A scanner begins to send: the writer of its instance, or None where it was refused."""
        receiver = self.world.receivers[index]
        if receiver is None:
            return None
        called, calling = CALLED[scanner % 5], CALLING[scanner // 5]
        uid, syntax, data = content(what)
        source = Source(listener="main", calling=calling, called=called, raw_calling=calling.encode().ljust(16),
                        raw_called=called.encode().ljust(16), address="127.0.0.1", port=104, peer=calling.lower())
        command = dimse.Command(dimse.C_STORE_RQ, message_id=1, sop_class=CT_CLASS.encode(), sop_instance=uid.encode(),
                                has_data_set=True)
        task = self._guarded(receiver, partial(receiver.storage.begin, Call(command, CT_CLASS, syntax, source)))
        if task is None or isinstance(task, Refusal):
            return None
        one = Underway(task, task._writer.number, uid, syntax, data, called, calling == "ER")  # type: ignore[attr-defined]
        receiver.underway.append(one)
        return one

    def _guarded(self, receiver: Receiver, work: Callable[[], T]) -> T | None:
        """What a receiver does for a scanner; None where it failed or died. Only errors of its own may come out."""
        try:
            return self.world.act(receiver.process, work)
        except (SpoolError, LedgerError, OSError):
            return None
        except Exception as error:  # noqa: BLE001  that is what is looked for
            self.world.oracle.unforeseen(f"{type(error).__name__}: {error}")
            return None

    def _send(self, index: int, one: Underway, *, to_the_end: bool) -> None:
        """More of an instance: half of it, or all, and then the answer."""
        world, receiver = self.world, self.world.receivers[index]
        assert receiver is not None
        piece = one.data[one.sent:] if to_the_end else one.data[:(len(one.data) + 1) // 2]
        one.sent += len(piece)

        def take() -> bool:
            one.task.write(memoryview(piece))
            return True
        if not self._guarded(receiver, take):
            if not receiver.process.dead:
                receiver.underway.remove(one)
                world.act(receiver.process, partial(one.task.abandon, "storage failed"))
        elif to_the_end:
            receiver.underway.remove(one)
            self._answer(receiver, one)

    def _answer(self, receiver: Receiver, one: Underway) -> None:
        """The last byte is there."""
        world, oracle = self.world, self.world.oracle
        found = oracle.offered(one.number, one.uid, one.syntax, one.data, urgent=one.urgent)
        found.ever.update(*(sites for sites, _ in self._owed(one)))
        began, slow = world.clock.boot_ns(), world.slow_seconds

        def end() -> int:
            responses = list(one.task.end())
            world.effect("status")
            return responses[-1].status
        status = self._guarded(receiver, end)
        oracle.check("I1 failures are our own", status is not None or receiver.process.dead, f"{one.number:x}: no status")
        if status is None:
            return
        seconds = (world.clock.boot_ns() - began) / 1e9
        oracle.check("I1 answered in time", seconds <= 25 or world.slow_seconds - slow > 10, f"{one.number:x}: {seconds:.1f} s")
        if status == 0:
            since = world.faults - receiver.process.faults
            oracle.check("I6 out of intake", not since, f"{one.number:x}: success after {since} errors of the disk")
            path = str(world.spool.object_path(one.number))
            oracle.success(found, world.clock.powered_ns, self._owed(one), world.disk.durable(path))

    def _owed(self, one: Underway) -> Routing:
        """Where that goes by the configuration in force, as a person reads it."""
        sites = [site for site in ROUTES[one.called] if site not in self.world.without]
        if DEFAULT not in sites and not one.data.startswith(b"STUDY="):
            sites.append(DEFAULT)
        terms = self.world.oracle.terms
        return [((site, FAIL_OVER[site]) if site in FAIL_OVER else (site,), terms[site].required) for site in sites]

    # --- the stages -------------------------------------------------------------------------------------------------------

    def _maintain(self, receiver: int) -> None:
        there = self.world.receivers[receiver]
        if there is not None:
            self.world.maintain(there)

    def _route(self) -> None:
        self.world.route()

    def _watch(self) -> None:
        self.world.watch()

    def _lane(self, at: int, turns: int) -> None:
        for _ in range(turns + 1):
            lanes = self.world.sender.lanes() if self.world.sender is not None else []
            if lanes:
                self.world.lane_turn(lanes[at % len(lanes)])

    def _confirm(self, site: int) -> None:
        self.world.confirm(SITES[site])

    def _keep(self) -> None:
        self.world.keep()

    def _scrub(self) -> None:
        holder = self.world.holder
        if holder is not None:
            with suppress(DcmgateError):
                self.world.act(holder.process, holder.keeper.scrubber.step)

    # --- time -------------------------------------------------------------------------------------------------------------

    def _wait(self, stretch: int) -> None:
        """Nobody gets a turn for that long, save a lane that has something in its hands."""
        for lane in self.world.sender.lanes() if self.world.sender is not None else []:
            if self.world.sender is not None and (lane._hand or lane._results):
                self.world.lane_turn(lane)
        self.world.clock.advance(STRETCHES[stretch])

    def _live(self, stretch: int) -> None:
        live(self.world, STRETCHES[stretch])

    def _step_clock(self, step: int) -> None:
        self.world.clock.step_wall(STEPS_OF_THE_CLOCK[step])

    # --- persons ----------------------------------------------------------------------------------------------------------

    def _ask(self, verb: str, arguments: dict[str, object]) -> object:
        """What a person asks of the keeper; None where it is not there, refused or died."""
        world, holder = self.world, self.world.holder
        if holder is None:
            return None
        keeper = holder.keeper
        desk = Desk(keeper._spool, keeper.ledger, lambda: world.config, keeper._reload_by_person, lambda: None)
        with suppress(DcmgateError):
            return world.act(holder.process, partial(handlers(desk)[verb], "anna", arguments))
        return None

    def _one(self, at: int) -> Instance | None:
        """One of the objects that have a row, as a person sees them listed."""
        numbers = [row[0] for row in self.world.look_up("SELECT number FROM objects ORDER BY number")]
        return self.world.oracle.instances.get(numbers[at % len(numbers)]) if numbers else None

    def _hold(self, at: int, site: int) -> None:
        self._hold_or_release("hold", at, site)

    def _release(self, at: int, site: int) -> None:
        self._hold_or_release("release", at, site)

    def _hold_or_release(self, verb: str, at: int, site: int) -> None:
        one = self._one(at)
        if one is not None:
            self.world.oracle.disturbed.add(one.uid)
            self._ask(verb, {"numbers": [f"{one.number:x}"], **({"destination": SITES[site]} if site < 4 else {})})

    def _discard(self, at: int) -> None:
        one = self._one(at)
        if one is not None:
            self.world.oracle.disturbed.add(one.uid)
            before, one.discarded = one.discarded, True
            self._ask("discard", {"numbers": [f"{one.number:x}"], "reason": "test images"})
            row = self.world.look_up("SELECT 1 FROM events WHERE number = ? AND kind = 'discarded'", one.number)
            one.discarded = before or bool(row)

    def _requeue(self, at: int, to: int, source: int) -> None:
        one = self._one(at)
        if one is None:
            return
        target = SITES[to] if to < 4 else None
        arguments: dict[str, object] = {"numbers": [f"{one.number:x}"]}
        if target is not None:
            arguments["to"] = target
        if source < 4:
            arguments["destination"] = SITES[source]
        rows = [row for row in self._deliveries(one.number) if source == 4 or row[0] == SITES[source]]
        self._requeued("requeue", arguments, {one.number: rows}, target)

    def _move_queue(self, source: int, to: int) -> None:
        where, target = SITES[source], SITES[to] if to < 4 else None
        states = ("waiting", "deferred", "sending", "held", "parked") if target else ("held", "parked")
        moved: Moved = {number: [(where, state, None)] for number, state in self.world.look_up(
            "SELECT number, state FROM deliveries WHERE destination = ?", where) if state in states}
        self._requeued("requeue", {"queue": where, **({"to": target} if target else {})}, moved, target)

    def _deliveries(self, number: int) -> list[tuple[str, str, int | None]]:
        return [(row[0], row[1], row[2]) for row in self.world.look_up(
            "SELECT destination, state, confirmed_on FROM deliveries WHERE number = ?", number)]

    def _requeued(self, verb: str, arguments: dict[str, object], moved: Moved, target: str | None) -> None:
        """A person sends again or elsewhere: what is owed from now on, and to whom."""
        world, oracle = self.world, self.world.oracle
        covered = {(number, where): [row[0] for row in world.look_up(
            "SELECT number FROM deliveries WHERE twin = ? AND destination = ? AND state = 'covered' AND confirmed_on IS NULL",
            number, where)] for number, rows in moved.items() for where, _, _ in rows}
        head = world.look_up("SELECT seq FROM chain")[0][0]
        self._ask(verb, arguments)
        done = {(row[0], row[1]) for row in world.look_up(
            "SELECT number, destination FROM events WHERE seq > ? AND kind = 'requeued'", head)}
        for number, rows in moved.items():
            one = oracle.instances.get(number)
            if one is None:
                continue
            oracle.disturbed.add(one.uid)
            for where, _, confirmed in rows:
                if (number, where) in done:
                    oracle.forgiven([one.content])
                    self._owe(one, where, target, proved=confirmed is not None)
                    for other in covered[number, where]:
                        if other in oracle.instances and target is not None:
                            self._owe(oracle.instances[other], where, target, proved=False, leniently=True)

    def _owe(self, one: Instance, where: str, target: str | None, *, proved: bool, leniently: bool = False) -> None:
        """`where` is asked to take it again (`target` None), or `target` takes its place; what was proved there stays."""
        oracle = self.world.oracle
        now = min([self.world.clock.powered_ns,
                   *(oracle.successes[key][-1] for key in oracle.unsettled if key[1] == one.content)])
        concerned = [duty for duty in one.duties if duty.main == where] or [duty for duty in one.duties if where in duty.sites]
        for duty in concerned:
            if target is None:
                duty.sites[where] = now
            elif target != where:
                # Where it was sent already, it need not go again; nor to who stands in for the target.
                there = any(target in each.sites for each in one.duties)
                sites = {target: -1 if there or leniently else now, **({FAIL_OVER[target]: -1} if target in FAIL_OVER else {})}
                one.ever.update(sites)
                if leniently:
                    duty.sites.update(sites)
                else:
                    if not proved:
                        one.duties.remove(duty)
                    one.duties.append(Duty(sites, duty.required))

    # --- destinations -----------------------------------------------------------------------------------------------------

    def _mood(self, site: int, mood: int) -> None:
        self.world.sites[SITES[site]].mood = MOODS[mood]

    def _plan(self, site: int, plan: int, count: int) -> None:
        there = self.world.sites[SITES[site]]
        there.plan.extend([PLANS[plan]] * (count + 1))

    def _poison(self, site: int, what: int) -> None:
        self.world.sites[SITES[site]].poison ^= {f"1.2.{what}"}

    def _mute(self, site: int) -> None:
        there = self.world.sites[SITES[site]]
        there.answers_queries = not there.answers_queries

    def _lose(self, site: int, at: int) -> None:
        """It loses something that it said it had stored."""
        there = self.world.sites[SITES[site]]
        if there.store:
            uid = sorted(there.store)[at % len(there.store)]
            del there.store[uid]
            self.world.oracle.disturbed.add(uid)

    def _remove_site(self, there: int) -> None:
        """The optional destination leaves the configuration, or comes back; only while nothing waits to be routed."""
        world = self.world
        routed = {row[0] for row in world.look_up("SELECT number FROM objects WHERE routed <> 0")}
        if all(number in routed for number, one in world.oracle.instances.items() if one.acknowledged):
            world.without = set() if there else {"research"}
            world.reconfigure()

    # --- breakdowns -------------------------------------------------------------------------------------------------------

    def _crash(self, role: int) -> None:
        for process in self.world.processes():
            if process.name == ROLES[role]:
                self.world.bury(process)

    def _doom(self, role: int, after: int, power: int) -> None:
        """It dies so many steps of its own from now; one time in four, the whole box with it."""
        for process in self.world.processes():
            if process.name == ROLES[role]:
                process.fuse, process.power = after, power == 3

    def _start(self, role: int, fuse: int) -> None:
        """It is started where it is not running, and may die while it starts."""
        world, after = self.world, fuse if fuse < 30 else None
        there = {process.name for process in world.processes()}
        if ROLES[role] in there:
            receiver = world.receivers[role] if role < 2 else None
            if receiver is None or not receiver.intake.out_of_intake:
                return
            world.bury(receiver.process)
        if role < 2:
            world.start_receiver(role, after)
        elif role == 2:
            world.start_sender(after)
        else:
            world.start_holder(after)

    def _power_cut(self) -> None:
        self.world.power_cut()

    def _reboot(self, wall: int) -> None:
        """An orderly restart; the wall clock may come up in 1970, or ten years late."""
        world = self.world
        world.reboot()
        if wall == 1:
            world.clock.step_wall(-world.clock.wall_ns() / 1e9)
        elif wall == 2:
            world.clock.step_wall(10 * 365 * 86400.0)

    def _fail_disk(self, failure: int, count: int) -> None:
        kind, number = FAILURES[failure]
        self.world.disk.fail(kind, number, count + 1, 8.0)

    def _heal_disk(self) -> None:
        self.world.disk.heal()
        self.world.disk.foreign = 0

    def _fill_disk(self, left: int) -> None:
        disk = self.world.disk
        disk.foreign = 0
        disk.foreign = max(0, disk.total - disk.used() - (0, 5000, 60_000, disk.total // 6)[left])

    def _flip(self, at: int, bit: int) -> None:
        one = self._one(at)
        path = "" if one is None else str(self.world.spool.object_path(one.number))
        if one is not None and path in self.world.disk.names and self.world.disk.names[path].disk:
            self.world.damage(one)
            self.world.disk.flip(path, bit)

    def _fail_ledger(self, kind: int, count: int) -> None:
        self.world.ledger_faults.extend(LEDGER[kind](f"simulated: {LEDGER[kind].__name__}") for _ in range(3 * (count + 1)))

    def _lose_ledger(self) -> None:
        """The ledger is gone; it is made again from the objects."""
        world = self.world
        for process in world.processes():
            world.bury(process)
        world.blind()
        held = {int(path[-20:-4], 16) for path in world.disk.names if path.endswith(".dcm")}
        world.oracle.ledger_lost(held, world.without)
        for _ in range(50):                          # where the disk fails, it is run again
            with suppress(LedgerError, SpoolError):
                rebuild.rebuild(world.spool, world.clock)
                return
        raise AssertionError("the ledger cannot be made again")

