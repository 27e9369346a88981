"""`dcmgate status`: what is held and what is owed, by study and destination, with rate, time left and alarms.

On a terminal it is drawn anew every second until Ctrl-C; elsewhere, with
`--once` or with `--json`, once. It shows no patient data unless `--names` asks
for it, and then that is recorded.
"""

from __future__ import annotations

import argparse
import shutil
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from appliance.cli import disk_commands, exits, tls_counts, tunnel_status
from appliance.cli.context import Site
from appliance.cli.text import bar, cut, plural, safe, size, span, table, when
from appliance.errors import LedgerError, SpoolError
from appliance.model import DeliveryState, Severity, SpaceState
from appliance.policy.handshakes import KINDS, REFUSED_THERE

if TYPE_CHECKING:
    from appliance.cli.services import Opened
    from appliance.forward.work import Condition
    from appliance.spool.rows import Counts, StudyRow

SECOND = 1_000_000_000
WINDOW_SECONDS = 30
"""Rates are means over so long."""

LOOK_BACK = 2000
"""Events looked at for the first rate."""

OWED = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.DEFERRED)
ENTER, LEAVE, HOME, END_LINE, END_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[K", "\x1b[J"


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    one = commands.add_parser("status", help="live table by study and destination, with alarms", parents=[common])
    one.add_argument("--once", action="store_true", help="once, then end (also where the output is no terminal)")
    one.add_argument("--names", action="store_true", help="show patients and descriptions; recorded with your name")
    one.add_argument("--studies", type=int, default=0, metavar="N", help="so many studies (default: as many as fit, 20 once)")
    one.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="time between two looks (default: 1)")
    one.set_defaults(run=status)


def status(site: Site, arguments: argparse.Namespace) -> int:
    try:
        opened = site.opened()
    except (SpoolError, LedgerError) as error:
        return _without_spool(site, error)
    if arguments.names:
        site.asking().call("seen", what="status --names")
    look = Look(site, opened, names=arguments.names)
    if site.as_json or arguments.once or not site.is_terminal:
        facts = look.facts(max(1, arguments.studies or 20))
        site.emit(facts)
        if not site.as_json:
            site.say("\n".join(look.lines(facts)))
        return exits.OK
    _live(site, look, arguments)
    return exits.OK


def _without_spool(site: Site, error: SpoolError | LedgerError) -> int:
    """What is known of the box all the same; the error itself where that is nothing."""
    from appliance.cli import box_status
    told = box_status.facts()
    if not box_status.is_known(told):
        raise error
    site.emit({**told, "problem": error.message})
    site.say("\n".join([site.bad(f"the spool cannot be read: {safe(error.message)}"), *box_status.lines(site, told)]))
    return exits.UNREACHABLE


def _live(site: Site, look: Look, arguments: argparse.Namespace) -> None:
    pause = threading.Event()
    lines: list[str] = []
    site.out.write(ENTER)
    try:
        while True:
            columns, rows = shutil.get_terminal_size()
            facts = look.facts(arguments.studies or max(3, rows - 12))
            lines = [cut(line, columns) if "\x1b" not in line else line for line in look.lines(facts)][:rows - 1]
            site.out.write(HOME + "".join(line + END_LINE + "\n" for line in lines) + END_SCREEN)
            site.out.flush()
            pause.wait(max(0.1, arguments.interval))
    except KeyboardInterrupt:
        pass
    finally:
        site.out.write(LEAVE)
    site.say("\n".join(lines))


class Look:
    """One pair of eyes on the spool: what was seen before gives the rates."""

    def __init__(self, site: Site, opened: Opened, *, names: bool = False) -> None:
        from appliance.clock import SystemClock
        self._site = site
        self._opened = opened
        self._names = names
        self._clock = SystemClock()
        self._rates = Rates(opened, self._clock.boot_ns)

    # what there is

    def facts(self, studies: int) -> dict[str, Any]:
        """Everything that is shown, as JSON values; times are wall nanoseconds, sizes bytes, rates bytes a second."""
        from appliance.cli import box_status
        from appliance.cli.health_lines import reach_facts
        from appliance.forward import health
        from appliance.health import published
        from appliance.net import kick
        from appliance.spool.space import held, measure
        opened, ledger = self._opened, self._opened.ledger
        counts = ledger.counts()
        room = measure(opened.spool, *held(ledger))
        self._rates.look()
        forwarder = kick.listens(opened.run / kick.FORWARDER)
        conditions = {c.destination: c for c in health.read(opened.run)} if forwarder else {}
        reaches, canaries = published.read(opened.run) if forwarder else ({}, {})
        handshakes = ledger.knocks(1000, only=KINDS)
        return {
            "spool": str(opened.spool.path), "generation": opened.config.generation, "stale": opened.stale,
            "problem": str(opened.problem) if opened.problem else "", "keeper": opened.keeper_answers(),
            "forwarder": forwarder,
            "state": str(room.state), "free": room.free, "total": room.total,
            "disk": disk_commands.facts(),
            "held_objects": counts.held_objects, "held_bytes": counts.held_bytes, "accepted": counts.accepted,
            "unrouted": counts.unrouted, "rate_in": self._rates.of(""),
            "states": {str(state): count for state, count in counts.states.items()},
            "listeners": tls_counts.listeners(opened.config, handshakes),
            "destinations": [{**told, **reach_facts(reaches.get(told["destination"]), canaries.get(told["destination"]),
                                                    told["state"], self._clock.boot_ns()),
                              "tls_refused": tls_counts.refused(handshakes, REFUSED_THERE, told["destination"])}
                             for told in self._destinations(counts, conditions)],
            "tunnels": tunnel_status.facts(opened.config, opened.run, keeper=opened.keeper_answers()),
            "studies": [self._study(row) for row in ledger.studies(studies)],
            "alarms": self._alarms(),
            **box_status.facts(),
        }

    def _box_lines(self, facts: dict[str, Any]) -> list[str]:
        from appliance.cli import box_status
        return box_status.lines(self._site, facts)

    def _alarms(self) -> list[dict[str, Any]]:
        """Those that the keeper put in the ledger, and what receivers say of a disk that takes no rows any more."""
        from appliance.receive import health
        found = [(row.alarm, row.wall) for row in self._opened.ledger.alarms()]
        if why := health.read(self._opened.run).out_of_intake:
            from appliance.keeper.findings import intake_alarm
            alarm = intake_alarm(why)
            found += [(alarm, 0)] if alarm.key not in {known.key for known, _ in found} else []
        return [{"key": alarm.key, "severity": str(alarm.severity), "text": alarm.text, "mend": alarm.mend, "since": wall}
                for alarm, wall in found]

    def _destinations(self, counts: Counts, conditions: dict[str, Condition]) -> list[dict[str, Any]]:
        oldest = {b.destination: b.oldest_wall for b in self._opened.ledger.backlog()}
        configured = [d.id for d in self._opened.config.destinations]
        others = sorted({id for id, _ in counts.queues} - set(configured))
        told = []
        for id in configured + others:
            owed, rate = counts.queue(id, *OWED), self._rates.of(id)
            condition = conditions.get(id)
            state = condition.state if condition else "unknown"
            if id not in configured:
                state = "removed"
            told.append({
                "destination": id, "state": state, "text": condition.text if condition else "", "owed": owed.count,
                "owed_bytes": owed.bytes, "rate": rate, "seconds_left": owed.bytes / rate if owed.count and rate else None,
                "oldest": oldest.get(id), **{str(s): counts.queue(id, s).count for s in DeliveryState}})
        return told

    def _study(self, row: StudyRow) -> dict[str, Any]:
        index = self._opened.index() if self._names else None
        info = index.study(row.study) if index is not None else None
        named = {"patient_id": info.patient_id, "patient_name": info.patient_name, "description": info.description,
                 "modalities": list(info.modalities)} if info is not None else {}
        return {"study": row.study, "destination": row.destination, "received": row.received,
                "delivered": row.received - row.waiting, "confirmed": row.confirmed, "bytes": row.bytes,
                "incomplete_since": row.since_wall, "last": row.last_wall, **named}

    # how it looks

    def lines(self, facts: dict[str, Any]) -> list[str]:
        site = self._site
        run = ", ".join(site.good(f"{name} runs") if facts[name] else site.warn(f"no {name} runs")
                        for name in ("keeper", "forwarder"))
        lines = [f"{site.bold('dcmgate')}  generation {facts['generation']}, {run}" +
                 (site.warn(", the file has changed: `dcmgate reload` puts it in force") if facts["stale"] else "")]
        used = facts["total"] - facts["free"]
        room = f"{bar(used, facts['total'], 16)} {facts['state']}, {size(facts['free'])} of {size(facts['total'])} free"
        unrouted = f"; {facts['unrouted']} not routed yet" if facts["unrouted"] else ""
        lines.append(f"spool  {room if facts['state'] == SpaceState.GREEN else site.warn(room)}; "
                     f"{plural(facts['held_objects'], 'object')}, {size(facts['held_bytes'])} held; "
                     f"in {size(facts['rate_in'])}/s{unrouted}")
        lines += self._box_lines(facts)
        lines += disk_commands.lines(site, facts["disk"])
        for alarm in facts["alarms"]:
            style = site.bad if alarm["severity"] == Severity.CRITICAL else site.warn
            lines.append(style(f"{alarm['severity']}: {safe(alarm['text'])}") +
                         (f" — {safe(alarm['mend'])}" if alarm["mend"] else "") +
                         (site.dim(f"  since {when(alarm['since'])}") if alarm["since"] else ""))
        lines += [site.warn(text) if "legacy" in listener else text for listener in facts["listeners"]
                  if (text := tls_counts.line(listener))]
        lines += ["", *self._destination_lines(facts["destinations"]), *tunnel_status.lines(site, facts["tunnels"])]
        if facts["studies"]:
            lines += ["", *self._study_lines(facts["studies"])]
        return lines

    def _destination_lines(self, destinations: list[dict[str, Any]]) -> list[str]:
        from appliance.cli.health_lines import health_lines
        rows = []
        for d in destinations:
            left = "" if not d["owed"] else span(d["seconds_left"]) if d["seconds_left"] is not None else "?"
            rows.append([d["destination"], d["state"], str(d["owed"]), size(d["owed_bytes"]) if d["owed"] else "",
                         f"{size(d['rate'])}/s" if d["rate"] else "", left, *(str(d[s] or "") for s in
                         ("deferred", "held", "parked", "sent", "confirmed")), when(d["oldest"] or 0)])
        lines = table(("DESTINATION", "STATE", "OWED", "", "RATE", "LEFT", "DEFERRED", "HELD", "PARKED", "SENT", "CONFIRMED",
                       "OLDEST OWED"), rows, right=(2, 3, 4, 5, 6, 7, 8, 9, 10)).split("\n")
        out = [self._site.dim(lines[0])]
        for line, d in zip(lines[1:], destinations, strict=True):
            out.append(self._site.bad(line) if d["state"] in ("down", "removed") else line)
            if d["text"] and d["state"] != "up":
                out.append(f"  {safe(d['text'])}")
            out += [f"  {self._site.warn(text) if bad else self._site.dim(text)}" for text, bad in health_lines(d)]
            if d["tls_refused"]:
                out.append(f"  TLS failed {plural(sum(d['tls_refused'].values()), 'time')} with it: `dcmgate peers` says why")
        return out

    def _study_lines(self, studies: list[dict[str, Any]]) -> list[str]:
        rows = []
        for s in studies:
            complete = s["delivered"] == s["received"]
            name = f"{safe(s['patient_id'])} {safe(s['patient_name'])} {safe(s['description'])}" if "patient_id" in s else ""
            rows.append([s["study"], s["destination"] or "(not routed)", bar(s["delivered"], s["received"]),
                         f"{s['delivered']}/{s['received']}", str(s["confirmed"]), size(s["bytes"]),
                         "" if complete and not s["incomplete_since"] else when(s["incomplete_since"] or 0), name])
        lines = table(("STUDY", "DESTINATION", "DELIVERED", "", "CONFIRMED", "SIZE", "INCOMPLETE SINCE", ""), rows,
                      right=(3, 4, 5)).split("\n")
        return [self._site.dim(lines[0]), *lines[1:]]


class Rates:
    """Bytes a second in the last half minute, from the events themselves: right from the first look on."""

    def __init__(self, opened: Opened, now: Callable[[], int]) -> None:
        self._ledger = opened.ledger
        self._now = now
        self._after = max(0, opened.ledger.head()[0] - LOOK_BACK)
        self._seen: dict[str, deque[tuple[int, int]]] = {}

    def look(self) -> None:
        """Take in what has happened since the last look."""
        horizon = self._now() - WINDOW_SECONDS * SECOND
        while events := self._ledger.events(self._after, 1000):
            self._after = events[-1].seq
            for event in events:
                if event.kind in ("sent", "accepted") and event.boot == self._ledger.boot and event.at >= horizon:
                    row = self._ledger.object(event.number or 0)
                    if row is not None:
                        self._seen.setdefault(event.destination, deque()).append((event.at, row.custody.length))
        for seen in self._seen.values():
            while seen and seen[0][0] < horizon:
                seen.popleft()

    def of(self, destination: str) -> float:
        """Of a destination; "" is what comes in."""
        seen = self._seen.get(destination)
        if not seen:
            return 0.0
        return sum(length for _, length in seen) / max(1.0, (self._now() - seen[0][0]) / SECOND)
