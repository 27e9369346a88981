"""Findings: the alarms that follow from what the keeper sees. Pure functions of values.

Keys name a finding for good (`backlog:pacs`); the text says what is so, the mend what a person does about it.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.config.settings import LEGACY as LEGACY_PROFILE
from appliance.config.settings import Alarms, Config
from appliance.errors import ConfigError, DcmgateError
from appliance.health.checks import Verdict
from appliance.health.checks.verdict import alarm as of_check
from appliance.model import Alarm, DeliveryState, ObjectState, Severity, SpaceState, escape
from appliance.policy import Space, backlog_alarm, silence_alarm
from appliance.policy.handshakes import LEGACY, read
from appliance.spool.rows import Arrival, Backlog, Counts, Knock

MINUTE = 60_000_000_000
DAY = 1440 * MINUTE
LEGACY_DAYS = 30
"""A scanner that has not come by the retired profile for so long does not need it any more."""

GB = 1_000_000_000
OWED = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.DEFERRED, DeliveryState.HELD, DeliveryState.PARKED)


def objects(count: int, verb: str = "", plural: str = "") -> str:
    """"1 object waits", "3 objects wait"."""
    return f"1 object {verb}".rstrip() if count == 1 else f"{count} objects {plural}".rstrip()


def space_alarms(room: Space) -> list[Alarm]:
    """Room: amber is a warning, red and black mean that scanners are turned away."""
    if room.state is SpaceState.GREEN:
        return []
    free = f"{room.free / GB:.1f} GB of {room.total / GB:.1f} GB are free"
    what, severity = {
        SpaceState.AMBER: ("the spool is getting full", Severity.WARNING),
        SpaceState.RED: ("the spool is nearly full: routine scanners are turned away", Severity.CRITICAL),
        SpaceState.BLACK: ("the spool is full: nothing is taken in", Severity.CRITICAL),
    }[room.state]
    return [Alarm("space", severity, f"{what}, {free}", "Unconfirmed images are never deleted: see which destination is behind"
                                                        " (`dcmgate status`), or enlarge the spool.")]


def custody_alarms(counts: Counts) -> list[Alarm]:
    """Objects that wait for a person: parked, held, in quarantine, unreadable."""
    found = []
    for destination in sorted({destination for destination, _ in counts.queues}):
        parked = counts.queue(destination, DeliveryState.PARKED).count
        if parked:
            found.append(Alarm(f"parked:{destination}", Severity.WARNING,
                               f"{objects(parked, 'is', 'are')} parked for {destination}: it does not take them",
                               f"`dcmgate list --state parked --destination {destination}` names them; requeue or discard."))
        held = counts.queue(destination, DeliveryState.HELD).count
        if held:
            found.append(Alarm(f"held:{destination}", Severity.NOTICE, f"{objects(held, 'is', 'are')} held for {destination}",
                               f"`dcmgate list --state held --destination {destination}` names them; release or discard them."))
    if quarantined := counts.states[ObjectState.QUARANTINED]:
        found.append(Alarm("quarantine", Severity.CRITICAL, f"{objects(quarantined, 'is', 'are')} damaged and in quarantine",
                           "Have the scanner send them again; then discard the damaged ones. Check the disk (smartctl)."))
    if unreadable := counts.flags.get("unreadable", 0):
        found.append(Alarm("unreadable", Severity.NOTICE,
                           f"the tags of {objects(unreadable)} could not be read: rules on tags did not apply",
                           "Look at what that scanner sends; the log names the objects."))
    return found


def orphan_alarms(counts: Counts, config: Config) -> list[Alarm]:
    """Queues of destinations that are not in the configuration any more."""
    known = {d.id for d in config.destinations}
    found = []
    for destination in sorted({destination for destination, _ in counts.queues} - known):
        owed = counts.queue(destination, *OWED).count
        if owed:
            found.append(Alarm(f"removed-destination:{destination}", Severity.WARNING,
                               f"{objects(owed, 'waits', 'wait')} for {destination}, which is not in the configuration",
                               f"`dcmgate requeue --destination {destination} --to …`, or discard them."))
    return found


def backlog_alarms(backlog: Sequence[Backlog], now: int, settings: Alarms, config: Config) -> list[Alarm]:
    """Age of the oldest object that a destination has not got; `now` is powered-on time (ns)."""
    known = {d.id for d in config.destinations}
    found = []
    for entry in backlog:
        if entry.destination and entry.destination not in known:
            continue
        age = max(0, now - entry.oldest_on)
        alarm = backlog_alarm(entry.destination or "routing", entry.count, age, settings.backlog_minutes)
        if alarm is not None:
            found.append(alarm)
    return found


def silence_alarms(arrivals: Sequence[Arrival], now: int, settings: Alarms, config: Config) -> list[Alarm]:
    """Known scanners that are silent for longer than their habit; `now` is powered-on time (ns)."""
    watched = {p.id for p in config.peers if p.silence_alarm}
    found = []
    for arrival in arrivals:
        if arrival.source in watched:
            alarm = silence_alarm(arrival.source, arrival.habit, now - arrival.last_on, int(settings.silence_minutes * MINUTE))
            if alarm is not None:
                found.append(alarm)
    return found


def configuration_alarm(error: ConfigError, generation: int) -> Alarm:
    """The file is bad; the last good generation works on."""
    return Alarm("configuration", Severity.WARNING,
                 f"the configuration file is bad, generation {generation} stays in force: {error.what}", error.mend)


def fault_alarm(what: str, error: DcmgateError) -> Alarm:
    """Something that the keeper had to do failed; it tries again."""
    return Alarm(f"keeper-{what}", Severity.CRITICAL, f"{what} fails: {error.message}", error.mend)


def legacy_alarms(config: Config, knocks: Sequence[Knock], wall: int) -> list[Alarm]:
    """Listeners that speak the retired profile: which scanners keep them from a current one; `wall` is the time now (ns)."""
    found = []
    for listener in (entry for entry in config.listeners if entry.tls == LEGACY_PROFILE):
        needing = set()
        for knock in knocks:
            said = read(knock.verdict, knock.called)
            if said is not None and (said.kind, said.entry) == (LEGACY, listener.id) and said.needed \
                    and knock.last_wall > wall - LEGACY_DAYS * DAY:
                needing.add(f'"{escape(knock.title)}" at {knock.address}')
        names = ", ".join(sorted(needing)[:4]) + (" and others" if len(needing) > 4 else "")
        text = f"listener {listener.id} speaks the retired AES profile: "
        found.append(Alarm(f"legacy-tls:{listener.id}", Severity.NOTICE,
                           text + (f"{names} cannot do without it" if needing else
                                   f"no scanner has needed it in {LEGACY_DAYS} days"),
                           "Update or replace what needs it (`dcmgate peers`), then write tls = \"bcp195\"." if needing else
                           "Write tls = \"bcp195\" for it, if all of its scanners have sent in that time."))
    return found


def stuck_alarm(destination: str) -> Alarm:
    return Alarm(f"confirm-stuck:{destination}", Severity.WARNING, f"asking {destination} for what it has hangs",
                 "Look whether its folder's mount answers. Nothing is deleted meanwhile, and the others are asked.")


def forwarder_alarm() -> Alarm:
    return Alarm("no-forwarder", Severity.CRITICAL, "no forwarder runs: nothing is delivered",
                 "Look at its log (`journalctl -u dcmgate-forwarder`) and start it.")


def intake_alarm(reason: str) -> Alarm:
    return Alarm("out-of-intake", Severity.CRITICAL, f"the disk is out of intake: {reason}",
                 "Check the disk (dmesg, smartctl). After an error restart the receiver; a disk that hung goes on by itself.")


def check_alarms(verdicts: Sequence[Verdict]) -> list[Alarm]:
    """What the checks of the box found; the clock and a disk without room are told by the keeper itself."""
    ours = [each for each in verdicts if each.check not in ("clock", "space")]
    return [found for each in ours if (found := of_check(each)) is not None]


def rolled_back_alarm(path: str) -> Alarm:
    return Alarm("ledger-rolled-back", Severity.CRITICAL, "the ledger is not the one that was seen, or an older state of it",
                 f"Find out who restored it. If it was on purpose, remove {path}.")


def clock_alarm() -> Alarm:
    return Alarm("clock", Severity.NOTICE, "the wall clock is wrong: rules by time of day do not apply",
                 "Set the time, or let the box reach a time server.")


def ports_alarm(problems: Sequence[str]) -> Alarm:
    return Alarm("ports", Severity.CRITICAL, "; ".join(problems),
                 "See who holds that port (`ss -ltnp`), or correct the listener.")
