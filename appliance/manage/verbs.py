"""The verbs: what a person may ask of the custody of objects. Each is one transaction of the ledger, in that person's name.

`handlers` gives the registry that the control socket and the commands share, so
that a verb does the same with and without a running keeper. Arguments come from
outside: each is checked here, and a wrong one is a ControlError with a mend.
After a change the forwarder is kicked; where it does not run, that does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from appliance import __version__
from appliance.config.findings import did_you_mean
from appliance.config.settings import Config
from appliance.errors import ControlError, LedgerError, ObjectDamaged
from appliance.manage import box
from appliance.manage.control import Verb
from appliance.manage.generations import InForce
from appliance.model import ObjectState, number_text
from appliance.spool import quarantine, reader
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger

Args = Mapping[str, Any]

MOST_NUMBERS = 10_000
"""Objects in one request; the commands ask in parts."""

LONGEST_TEXT = 1024
_WHO_KNOCKED = "`dcmgate peers` shows who knocked, with title and address"


@dataclass(frozen=True, slots=True)
class Desk:
    """What the verbs work on. `reload` puts the configuration file in force, `kick` wakes the forwarder."""

    spool: Spool
    ledger: Ledger
    config: Callable[[], Config]
    reload: Callable[[str], InForce]
    kick: Callable[[], None]


def handlers(desk: Desk) -> dict[str, Verb]:
    """The registry: name → verb. A verb is called with the person's name and its arguments."""
    verbs = (_hold, _release, _requeue, _discard, _damaged, _admit, _reload, _seen, _recovery_key, _factory_reset, _ping)
    return {verb.__name__.removeprefix("_"): _bound(verb, desk) for verb in verbs}


def _bound(verb: Callable[[Desk, str, Args], Any], desk: Desk) -> Verb:
    return lambda by, args: verb(desk, by, args)


# --- verbs ---------------------------------------------------------------------------------------------------------------

def _hold(desk: Desk, by: str, args: Args) -> Any:
    """numbers, reason, [destination]: let them wait for `release`."""
    numbers, destination = _numbers(desk, args), _destination(desk, args, "destination")
    done = desk.ledger.hold(numbers, by, _text(args, "reason", "held by a person"), destination)
    return {"deliveries": done}


def _release(desk: Desk, by: str, args: Args) -> Any:
    """numbers, [destination]: end `held`."""
    done = desk.ledger.release(_numbers(desk, args), by, _destination(desk, args, "destination"))
    desk.kick()
    return {"deliveries": done}


def _requeue(desk: Desk, by: str, args: Args) -> Any:
    """numbers or queue, [to], [destination]: send again, or send elsewhere."""
    to = _destination(desk, args, "to", configured=True)
    if args.get("queue") is not None:
        what: Sequence[int] | str = _destination(desk, args, "queue") or ""
        source = None
    else:
        what, source = _numbers(desk, args), _destination(desk, args, "destination")
    if to is None:
        _still_there(desk, what, source)
    done = desk.ledger.requeue(what, by, to, source)
    desk.kick()
    return {"deliveries": done}


def _discard(desk: Desk, by: str, args: Args) -> Any:
    """numbers, reason: give them up; the keeper deletes the files."""
    reason = _text(args, "reason", "").strip()
    if not reason:
        raise ControlError("a discard needs a reason", mend='say why: --reason "..."')
    discarded = desk.ledger.discard(_numbers(desk, args), by, reason)
    return {"discarded": [number_text(n) for n in discarded]}


def _damaged(desk: Desk, by: str, args: Args) -> Any:
    """numbers: read each anew; what is not what was acknowledged goes to quarantine, and a twin steps in."""
    moved = []
    for number in _numbers(desk, args):
        row = desk.ledger.object(number)
        if row is None or row.file != 0 or row.state is ObjectState.QUARANTINED:
            continue
        try:
            reader.verify(desk.spool, number, row.custody)
        except ObjectDamaged as e:
            if desk.ledger.quarantine(number, f"{e.message} (found by {by})"):
                quarantine.put(desk.spool, number, e.message)
                moved.append(number_text(number))
    desk.kick()
    return {"quarantined": moved}


def _admit(desk: Desk, by: str, args: Args) -> Any:
    """title, address: let a caller in that no [[peer]] names."""
    title, address = _text(args, "title", ""), _text(args, "address", "")
    if len(title) > 16 or "\\" in title or not title.isascii() or not title.isprintable():
        raise ControlError(f'"{title[:40]}" is no AE title', mend=f"at most 16 characters of ASCII; {_WHO_KNOCKED}")
    try:
        address = str(ip_address(address))     # one spelling, that of sockets: the router compares texts
    except ValueError:
        raise ControlError(f'"{address[:60]}" is no address', mend=_WHO_KNOCKED) from None
    desk.ledger.admit(title.strip(), address, by)
    return {"title": title.strip(), "address": address}


def _reload(desk: Desk, by: str, args: Args) -> Any:
    """Put the configuration file in force."""
    result = desk.reload(by)
    desk.kick()
    return {"generation": result.config.generation, "changed": result.changed}


def _seen(desk: Desk, by: str, args: Args) -> Any:
    """what: a person reads patient data; the row is durable before the answer."""
    what = _text(args, "what", "")
    if not what:
        raise ControlError("what was seen must be said")
    desk.ledger.seen(by, what)
    return {"by": by}


def _recovery_key(desk: Desk, by: str, args: Args) -> Any:
    """[written_down]: show the key of the disk; or, with its last letters, keep it here no more."""
    letters = args.get("written_down")
    if letters is None:
        key = box.recovery_key()
        desk.ledger.seen(by, "the recovery key of the disk")
        return {"key": key}
    box.check_letters(_text(args, "written_down", ""))
    desk.ledger.seen(by, "the recovery key of the disk is written down")
    box.forget_recovery_key()
    return {"forgotten": True}


def _factory_reset(desk: Desk, by: str, args: Args) -> Any:
    """[override], [reason]: ask the system to make the box new; refused while it holds what was not delivered."""
    override, reason = args.get("override") is True, _text(args, "reason", "")
    held = box.held_now(desk.ledger)
    box.check_reset(held, override=override, reason=reason)
    desk.ledger.seen(by, f"factory reset asked for ({box.in_words(held)}): {reason.strip() or 'no reason given'}")
    box.ask_for_reset(by, reason, held, override=override)
    return {"asked": True, "held": box.in_words(held)}


def _ping(desk: Desk, by: str, args: Args) -> Any:
    """Who answers."""
    return {"by": by, "pid": os.getpid(), "version": __version__, "generation": desk.config().generation}


# --- arguments -----------------------------------------------------------------------------------------------------------

def _text(args: Args, name: str, default: str) -> str:
    value = args.get(name, default)
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise ControlError(f"{name} must be a text of at most {LONGEST_TEXT} characters")
    return value


def _numbers(desk: Desk, args: Args) -> list[int]:
    """The numbers asked for, each of an object that was accepted."""
    texts = args.get("numbers")
    if not isinstance(texts, list) or not texts:
        raise ControlError("numbers of objects are missing", mend="`dcmgate list` shows them")
    if len(texts) > MOST_NUMBERS:
        raise ControlError(f"{len(texts)} numbers are too many at once", mend=f"ask for at most {MOST_NUMBERS}")
    numbers = [parse_number(text) for text in texts]
    for number in numbers:
        if desk.ledger.object(number) is None:
            raise ControlError(f"there is no object {number_text(number)}", mend="`dcmgate list` shows them")
    return list(dict.fromkeys(numbers))


def parse_number(text: object) -> int:
    """An object's number as people write it: up to 16 hex digits. ControlError."""
    if isinstance(text, str) and 1 <= len(text) <= 16 and all(c in "0123456789abcdefABCDEF" for c in text):
        number = int(text, 16)
        if 0 < number < 1 << 63:
            return number
    raise ControlError(f'"{str(text)[:40]}" is no number of an object',
                       mend="it is up to 16 hex digits, as `dcmgate list` shows it")


def _destination(desk: Desk, args: Args, name: str, *, configured: bool = False) -> str | None:
    """The id of a destination: one of the configuration, or (unless `configured`) one that still has a queue."""
    id = args.get(name)
    if id is None:
        return None
    known = [d.id for d in desk.config().destinations]
    if not configured:
        known += sorted({destination for destination, _ in desk.ledger.counts().queues} - set(known))
    if id not in known:
        raise ControlError(f'there is no destination "{str(id)[:64]}"', mend=did_you_mean(str(id), known))
    return str(id)


def _still_there(desk: Desk, what: Sequence[int] | str, source: str | None) -> None:
    """Trying again needs a destination that still exists: without this check the objects would wait for nobody."""
    known = {d.id for d in desk.config().destinations}
    wanted = {what} if isinstance(what, str) else {source} if source is not None else {
        d.destination for number in what for d in desk.ledger.deliveries(number)}
    gone = sorted(wanted - known)
    if gone:
        raise ControlError(f'destination "{gone[0]}" is not in the configuration any more', mend="name another with --to")


def in_parts(numbers: Sequence[int]) -> list[list[str]]:
    """Numbers as texts, in requests of a size that is taken."""
    texts = [number_text(n) for n in numbers]
    return [texts[start:start + MOST_NUMBERS] for start in range(0, len(texts), MOST_NUMBERS)]


def no_reload(by: str) -> InForce:
    """For a desk without a configuration file (tests, the demo)."""
    raise LedgerError("there is no configuration file to reload", mend="name one with --config")
