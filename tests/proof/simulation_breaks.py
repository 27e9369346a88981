"""Deliberate breakages of the core, each as one edit of a copy of the code: the simulation has to find every one.

    python -m tests.proof.simulation --break "a number is used twice"
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Break:
    """`old`, which occurs exactly once in `file`, becomes `new`; so do `more`: (file, old, new).

    `seed`: of the first walk, for what shows seldom; 0 for that of the run.
    """

    name: str
    file: str
    old: str
    new: str
    quick: bool = False
    more: tuple[tuple[str, str, str], ...] = ()
    seed: int = 0

    @property
    def edits(self) -> tuple[tuple[str, str, str], ...]:
        return ((self.file, self.old, self.new), *self.more)


BREAKS = (
    Break("retire before confirmed", "appliance/spool/apply.py",
          '''sent_on=d.powered(e.boot, e.at), status=''',
          '''sent_on=d.powered(e.boot, e.at), confirmed_on=d.powered(e.boot, e.at), status=''', quick=True,
          more=(("appliance/spool/keeping.py", '''row[0] in ("confirmed", "duplicate")''',
                 '''row[0] in ("confirmed", "duplicate", "sent")'''),)),
    Break("a number is used twice", "appliance/spool/custody.py",
          '''"SELECT first + count FROM grants ORDER BY first DESC LIMIT 1")
    return int(last[0])''', '''"SELECT max(number) + 1 FROM objects")
    return int(last[0] or 1)''', quick=True),
    Break("a duplicate is swallowed", "appliance/spool/delivering.py",
          '''if already is not None and entry.resend == "never":''', '''if already is not None:''', quick=True),
    Break("a claim is lost after a crash", "appliance/spool/delivering.py",
          '''                if park:
                    t.append("parked"''', '''                if not crash and boot == t.boot or crash:
                    continue
                if park:
                    t.append("parked"''', quick=True),
    Break("the breaker never closes", "appliance/schedule.py",
          '''now + backoff.delay(faults, random))''', '''now + backoff.delay(faults, random), self.probing)''', quick=True),
    Break("the back-off overflows", "appliance/schedule.py",
          '''return min(self.cap, self.base << min(max(failures - 1, 0), 32))''',
          '''return self.base << 3 * max(failures - 1, 0)''', quick=True),
    Break("status before the sync", "appliance/spool/writer.py", '''os.fdatasync(self._slot.fd)''', '''pass'''),
    Break("the names of slots are not synced", "appliance/spool/slots.py", '''os.fsync(self._folder)''', '''pass'''),
    Break("a failed sync is tried again", "appliance/spool/writer.py",
          '''            os.fdatasync(self._slot.fd)
        except OSError as e:''', '''            try:
                os.fdatasync(self._slot.fd)
            except OSError:
                os.fdatasync(self._slot.fd)
        except OSError as e:'''),
    Break("the length is not cut", "appliance/spool/writer.py",
          '''os.ftruncate(self._slot.fd, HEAD + self.length)''', '''pass'''),
    Break("the digest is not checked", "appliance/spool/reader.py",
          '''if done == custody.length and digest.digest() != custody.digest:''', '''if False:'''),
    Break("recovery trusts the page cache", "appliance/spool/recover.py",
          '''        _around_cache(fd)
    except''', '''        pass
    except'''),
    Break("recovery forgets all owners but one", "appliance/spool/custody.py",
          '''return [owner for owner in owners if not is_alive(owner)]''',
          '''return [owner for owner in owners[-1:] if not is_alive(owner)]'''),
    Break("the debt is unbounded", "appliance/spool/debt.py",
          '''if ticket <= self.settled_count:''', '''if ticket <= self.settled_count or True:'''),
    Break("success while intake is closed", "appliance/spool/intake.py",
          '''            if self._out:
                raise SpoolFault(self._out)
        if not settled:''', '''        if not settled:'''),
    Break("the ledger is not synced", "appliance/spool/schema.py",
          '''PRAGMA synchronous = FULL''', '''PRAGMA synchronous = NORMAL'''),
    Break("the file goes before its row", "appliance/retire.py",
          '''            allowed = self._ledger.retiring(numbers)
''', '''            self._unlink(numbers)
            allowed = self._ledger.retiring(numbers)
'''),
    Break("keep_min does not count", "appliance/policy/space.py",
          '''return keep_min if state is not SpaceState.GREEN else max(keep_min, keep_max)''',
          '''return 0'''),
    Break("a heir does not step in", "appliance/spool/derived.py",
          '''        if not covered:
            self.unblock''', '''        if True:
            self.unblock'''),
    Break("a deferral outlives the boot it was made in", "appliance/spool/queries.py",
          '''until if then == boot else 0, source_of''', '''until, source_of'''),
    Break("later content overtakes", "appliance/spool/delivering.py",
          '''            if ahead is None and pending:''', '''            if ahead is None and not pending and pending:'''),
    Break("what is found late goes out last", "appliance/spool/delivering.py", '''    if late:
''', '''    if late and not late:
''', seed=30_000_000),
    Break("a rival that was moved elsewhere is forgotten", "appliance/spool/queries.py",
          '''" CROSS JOIN events e ON e.number = o.number AND e.destination = ? AND e.kind = 'attempt'"''',
          '''" CROSS JOIN deliveries e ON e.number = o.number AND e.destination = ? AND e.attempts > 0"'''),
    Break("a look is forgotten when the ledger is busy", "appliance/confirm/watch.py",
          '''            self._later(batch, on)                   # nothing became durable for sure: they are looked for again
''', '''''', seed=30_000_000),
    Break("hours of the day do not count", "appliance/schedule.py",
          '''return priority is Priority.TRAUMA or within(windows, minute) is not False''', '''return True'''),
    Break("fail-over forgets what waits", "appliance/spool/apply.py",
          '''        d.queue(to, new, 1, length)
    d.settle(number)''', '''        d.queue(to, new, 1, length)
        d.run("DELETE FROM deliveries WHERE number = ? AND destination = ? AND state = 'waiting'", (number, to))
    d.settle(number)'''),
)


def by_name(name: str) -> Break:
    """KeyError where there is none of that name."""
    return {each.name: each for each in BREAKS}[name]
