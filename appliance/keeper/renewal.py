"""The keeper's hand in the certificates: renews by EST what is due, and keeps revocation lists fresh. A thread of its own.

Servers may be slow or gone: each try has a deadline, and the rounds of the keeper
wait for none of it. A failure leaves everything as it was and is tried again
after a pause, which is counted in powered-on time (I7) and kept in the store, so
that starting the keeper anew asks nobody more often. What was tried, by whom ever
(`dcmgate cert enroll`), is read from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from appliance.clock import Clock
from appliance.config.settings import Certificate, Config
from appliance.errors import CertificateError, DcmgateError
from appliance.model import Alarm, Severity
from appliance.net import tries
from appliance.net.certstore import Store, Writer
from appliance.policy import renewal
from appliance.telemetry.log import Log

PERIOD_SECONDS = 10.0
"""Pause between two looks at what is due."""

FIRST_SECONDS = 1.0

TOLD_AFTER = 3
"""A list that cannot be fetched is an alarm after so many failures; that it grows old is one anyway."""

_log = Log("certificates")


class Renewals:
    """`step` does everything that is due. `run` does so on a thread of its own until `stop` is set."""

    def __init__(self, config: Callable[[], Config], clock: Clock, random: Random) -> None:
        self._config = config
        self._clock = clock
        self._random = random
        self._refused: dict[Path, tuple[int, str]] = {}     # lists put there by somebody, that cannot be taken

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set."""
        pause = FIRST_SECONDS
        while not self._clock.wait(stop, pause):
            pause = PERIOD_SECONDS
            try:
                self.step(stop)
            except DcmgateError as error:
                _log.error("certificates cannot be looked after now", error=str(error))
            except Exception:  # noqa: BLE001  top of the thread: an unforeseen fault must not end renewals for good
                _log.crash("looking after certificates failed")

    def step(self, stop: threading.Event | None = None) -> None:
        """Everything that is due. LedgerError where the configuration cannot be read; nothing else."""
        config = self._config()
        writer = Writer(config.spool.state)
        for entry in config.certificates:
            for task in (self._enrol, self._lists):
                if stop is not None and stop.is_set():
                    return
                try:
                    task(entry, writer)
                except CertificateError as error:
                    _log.error("a certificate cannot be looked after", certificate=entry.id, error=str(error))

    # --- enrolment ----------------------------------------------------------------------------------------------------

    def _enrol(self, entry: Certificate, writer: Writer) -> None:
        before = tries.enrolment(writer.store, entry.id)
        if not (entry.est_url and self._clock.trusted() and before.is_due(self._clock)):
            return
        from appliance.net import enrolment
        from appliance.net.est import EstError
        there = enrolment.present(writer, entry.id)
        why = renewal.due(there.facts if there else None, entry.names, entry.renew_days, self._clock.wall_ns())
        if not why:
            return
        if not before.tries.failures:
            _log.info("a certificate is enrolled", certificate=entry.id, why=why)
        try:
            done = enrolment.enrol(entry, writer, self._clock, self._random.random())
            _log.info("a certificate was enrolled", certificate=entry.id, done=done)
        except EstError as error:
            _log.error("a certificate cannot be enrolled", certificate=entry.id, step=error.step, error=str(error))

    # --- revocation lists ---------------------------------------------------------------------------------------------

    def _lists(self, entry: Certificate, writer: Writer) -> None:
        for path in writer.dropped(entry.id):
            self._take(entry, writer, path)
        material = writer.store.material(entry.id)
        if not entry.crl_fetch or (material.chain is None and material.trust is None):
            return
        from appliance.net import revocation
        kept = tries.lists(writer.store, entry.id)
        now = {url: kept.get(url, tries.Kept()) for url in revocation.places(entry, material)}
        for url, before in now.items():
            if before.is_due(self._clock):
                now[url] = self._fetch(url, entry, writer, before)
        if now != kept:
            tries.keep_lists(writer, entry.id, now)

    def _fetch(self, url: str, entry: Certificate, writer: Writer, before: tries.Kept) -> tries.Kept:
        from appliance.net import revocation
        share = self._random.random()
        try:
            done, ends = revocation.fetch(url, entry, writer)
        except CertificateError as error:
            if not before.tries.failures:
                _log.error("a revocation list cannot be fetched", certificate=entry.id, error=str(error))
            wait = renewal.pause(before.tries.failures + 1, 0, share)
            return tries.failed(self._clock, before, "fetch", error.message, error.mend, wait)
        if done:
            _log.info("a revocation list was fetched", certificate=entry.id, done=done)
        return tries.good(self._clock, renewal.list_pause(ends, self._clock.wall_ns(), share))

    def _take(self, entry: Certificate, writer: Writer, path: Path) -> None:
        """A list that somebody has put there. What cannot be taken stays, and is looked at again when it has changed."""
        from appliance.net import certificates, revocation
        mark = _mark(path)
        if self._refused.get(path, (0, ""))[0] == mark:
            return
        try:
            certificates.read(path, bundle := certificates.Bundle())
            if not bundle.lists:
                raise CertificateError(f"{path} is no revocation list", mend="Remove it.")
            done = revocation.take(writer, entry.id, bundle.lists)
        except (CertificateError, OSError) as error:
            text = error.message if isinstance(error, CertificateError) else f"{path}: {error.strerror}"
            _log.error("a revocation list cannot be taken", certificate=entry.id, file=str(path), error=text)
            self._refused[path] = (mark, text)
            return
        writer.forget(entry.id, path.name)
        self._refused.pop(path, None)
        _log.info("a revocation list was taken", certificate=entry.id, file=path.name, done=done or "nothing new")

    # --- alarms -------------------------------------------------------------------------------------------------------

    def alarms(self, config: Config) -> Iterator[Alarm]:
        """What fails, and since when not: read from the store, whoever has tried. Never raises."""
        if not config.certificates:
            return
        store = Store(config.spool.state)
        for entry in config.certificates:
            if entry.est_url:
                yield from self._enrolment_alarm(entry, store)
            if entry.crl_fetch:
                late = [one.tries for one in tries.lists(store, entry.id).values() if one.tries.failures >= TOLD_AFTER]
                for one in late[:1]:
                    yield Alarm(f"certificate-crl-fetch:{entry.id}", Severity.NOTICE, f"certificate {entry.id}: {one.why}",
                                one.mend)
            for path, (_, text) in sorted(self._refused.items()):
                if path.parent.name == entry.id and path.exists():
                    yield Alarm(f"certificate-crl-file:{entry.id}", Severity.WARNING, f"certificate {entry.id}: {text}",
                                f"Put the right one there, or remove {path}.")
                    break

    def _enrolment_alarm(self, entry: Certificate, store: Store) -> Iterator[Alarm]:
        last = tries.enrolment(store, entry.id).tries
        if not (last.failures or last.waits):
            return
        from appliance.net import enrolment
        there = enrolment.present(Writer(store.folder.parent), entry.id)
        leaf, now = there.facts if there else None, self._clock.wall_ns()
        if not renewal.due(leaf, entry.names, entry.renew_days, now):
            return                               # tried before its time by a person, or mended in another way
        stays = "there is none" if leaf is None else "the present one stays in force"
        loud = Severity.NOTICE if last.waits else renewal.severity(leaf, entry.renew_days, now)
        yield Alarm(f"certificate-renewal:{entry.id}", loud, f"certificate {entry.id} is not enrolled, {stays}: at step "
                    f"{last.step}: {last.why}", last.mend)


def _mark(path: Path) -> int:
    try:
        stat = path.stat()
        return stat.st_mtime_ns ^ stat.st_size ^ stat.st_ino
    except OSError:
        return 0
