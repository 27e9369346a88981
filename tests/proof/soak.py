"""Soak: mixed faults at twice a clinic's peak rate for half an hour (issue 3, item 9).

The stages run as processes of their own on a file system of their own. Forty CT
slices a second and some reports come in, in studies, without a pause; meanwhile

    destinations   storescp is killed or stops reading, a folder is unmounted, a third one never answers
    disk           somebody else fills it to the last byte, several times
    stages         receiver, forwarder, keeper or one worker is killed, in the first third
    peers          rows of the hazards file from one address, a real peer's C-ECHO from another

After that nothing of ours is killed, so that growth of memory shows. In the end the
oracle compares what was acknowledged with what arrived and what the spool holds.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.proof import oracle, soak_load, soak_watch
from tests.proof.figures import Budget, CannotRun, Figures
from tests.proof.soak_load import Echo, Hostile, Lateness, PacedScanner, Told
from tests.proof.soak_site import Pacs, Shelf
from tests.proof.soak_watch import MB, Sample, Watch, percentile
from tests.support import badpeers
from tests.support.faults import Disk, file_system
from tests.support.gateway import STAGES, Gateway, to_folder, to_peer
from tests.support.peers import Destination
from tests.support.waiting import Late, wait_until

NAME = "soak"
ABOUT = "half an hour of mixed faults at twice the peak rate: memory, descriptors, threads, time to the answer"
REQUIREMENTS = ("I1", "I2", "I3", "I4", "I5", "I9")

PEAK = 20.0
"""CT slices a second that a busy clinic sends at its peak (assumed); the soak sends twice as many."""

WHOLE, QUICK = 1800.0, 60.0
"""Seconds of load."""

AROUND = 25.0
"""Seconds of a quick run for what comes before and after the load."""

SPOOL_MIB = 4096
LIMITS = {"growth_mb": 60.0, "memory_mb": 100.0, "descriptors": 24.0, "threads": 8.0}
"""Growth an hour (judged only over a quarter of an hour or more without a kill); and how much more there may be in the end."""

KILLS_UNTIL = 0.33
"""Stages are killed in the first part of the time; what runs then runs to the end, and is measured."""

SETTLE = 300.0
"""Seconds for what is still held to be delivered, when all destinations are back."""


def run(budget: Budget) -> Figures:
    seconds = budget.seconds or (QUICK if budget.quick else WHOLE)
    if budget.quick:
        seconds = max(10.0, seconds - AROUND)
    figures = Figures(NAME)
    try:
        with ExitStack() as stack:
            try:
                disk = stack.enter_context(file_system(budget.folder / "site" / "spool", SPOOL_MIB))
            except pytest.skip.Exception as reason:
                raise CannotRun(str(reason)) from None
            _Soak(budget, seconds, disk, figures).run()
    except AssertionError as error:     # half an hour is not thrown away because something cannot be put away
        figures.failures.append(f"broke off: {error} (seed {budget.seed})"[:600])
    return figures


class _Soak:
    def __init__(self, budget: Budget, seconds: float, disk: Disk, figures: Figures) -> None:
        self._budget, self._seconds, self._disk, self._figures = budget, seconds, disk, figures
        self._dice = random.Random(budget.seed)
        self._told = Told()
        self._pacs = Pacs(budget.folder / "pacs", self._told.journal)
        self._shelf = Shelf(budget.folder / "shelf")
        self._over = threading.Event()
        self._stages = threading.Lock()      # one at a time kills and starts
        self.counts = dict.fromkeys(("stage_kills", "worker_kills", "destination_kills", "destination_hangs", "shelf_away",
                                     "disk_full"), 0)

    # --- the whole of it ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        with ExitStack() as stack:
            self._pacs.start()
            stack.callback(self._pacs.kill)
            hung = stack.enter_context(badpeers.hung_after_accept())
            self._gateway = stack.enter_context(self._site(hung))
            self._gateway.make()
            self._gateway.start_stages()
            self._lateness = Lateness()
            self._echo = Echo(self._gateway.port, self._lateness)
            self._hostile = Hostile(self._gateway.port, self._budget.seed)
            self._watch = Watch(self._pids, self._gateway.spool, 5.0 if self._seconds > 300 else 1.0)
            before = self._idle()
            self._load()
            settled = self._settle()
            self._again_idle(before)
            for stage in STAGES:
                self._gateway.stop(stage)
            self._judge(settled)

    def _site(self, hung: int) -> Gateway:
        never = to_peer(Destination("never", "NEVER", hung, Path()), default=False, required=False, progress_seconds=5.0,
                        connect_seconds=5.0)
        rules = [{"id": "shelf", "match": {"calling": "SCANNER3"}, "destinations": ["storescp", "archive"]},
                 {"id": "never", "match": {"calling": "SCANNER2", "modality": "SR"}, "destinations": ["storescp", "never"]}]
        # What is confirmed goes after some seconds: half an hour at this rate would fill any disk.
        return Gateway(self._budget.folder / "site", [
            to_peer(self._pacs.destination, progress_seconds=5.0, associations=2), never,
            to_folder(self._shelf.path, default=False)], receivers=2, rules=rules,
            size=0, spool={"keep_min_hours": 0.004, "keep_max_days": 0.0003})

    def _pids(self) -> list[int]:
        return [process.pid for process in list(self._gateway.processes.values())]

    def _load(self) -> None:
        """All at once, for as long as it takes."""
        port, seed = self._gateway.port, self._budget.seed
        rates = [2 * PEAK * 0.375] * 3 + [8.0]
        makes = [soak_load.images] * 3 + [soak_load.reports]
        self._scanners = [PacedScanner(port, n, rate, make, seed, self._told)
                          for n, (rate, make) in enumerate(zip(rates, makes, strict=True))]
        conductors = [threading.Thread(target=self._conduct, args=(list(acts), random.Random(seed + n), *pause), daemon=True)
                      for n, (acts, pause) in enumerate(self._faults())]
        helpers: list[threading.Thread] = [self._lateness, self._echo, self._hostile, self._watch]
        for thread in [*helpers, *self._scanners, *conductors]:
            thread.start()
        begin, told = time.monotonic(), 0.0
        try:
            while (passed := time.monotonic() - begin) < self._seconds:
                self._over.wait(1.0)
                self._pacs.collect()
                if passed - told >= 60:
                    told = passed
                    self._budget.say(f"{passed:.0f} s: {len(self._told.journal)} acknowledged, {self.counts}")
        finally:
            self._over.set()
            for conductor in conductors:
                conductor.join(120)
            for scanner in self._scanners:
                if not scanner.finish(120):
                    self._figures.failures.append(f"{scanner.name}: its last object was not acknowledged within 120 s")
            self._lasted = time.monotonic() - begin
            for helper in (self._echo, self._hostile, self._watch):
                helper.stop.set()
                helper.join(60)

    # --- faults -------------------------------------------------------------------------------------------------------

    def _faults(self) -> list[tuple[Sequence[Callable[[random.Random], None]], tuple[float, float]]]:
        """Who does what, and how long after: seconds, from … to."""
        scale = min(1.0, self._seconds / 300)
        return [((self._kill_pacs, self._hang_pacs, self._away), (10 * scale, 40 * scale)),
                ((self._fill,), (60 * scale, 150 * scale)),
                ((self._kill_stage, self._kill_stage, self._kill_worker), (8 * scale, 40 * scale))]

    def _conduct(self, acts: list[Callable[[random.Random], None]], dice: random.Random, low: float, high: float) -> None:
        while not self._over.wait(dice.uniform(low, high)):
            try:
                dice.choice(acts)(dice)
            except (AssertionError, OSError) as error:
                self._figures.failures.append(f"a fault could not be made, or the gateway did not come back: {error}"[:400])

    def _kill_pacs(self, dice: random.Random) -> None:
        self.counts["destination_kills"] += 1
        self._pacs.kill()
        self._over.wait(dice.uniform(1, 20))
        self._pacs.start()

    def _hang_pacs(self, dice: random.Random) -> None:
        self.counts["destination_hangs"] += 1
        self._pacs.hang(dice.uniform(1, 12), self._over)

    def _away(self, dice: random.Random) -> None:
        self.counts["shelf_away"] += 1
        self._shelf.away(dice.uniform(1, 20), self._over)

    def _fill(self, dice: random.Random) -> None:
        self.counts["disk_full"] += 1
        filler = self._disk.mount / "filler"
        end = time.monotonic() + dice.uniform(2, 10)
        try:
            with filler.open("ab") as file:
                # Again and again: the gateway delivers and deletes meanwhile, and that room is taken as well.
                while time.monotonic() < end and not self._over.wait(0.05):
                    room = os.statvfs(filler)
                    self._take(file.fileno(), room.f_bavail * room.f_frsize)
        finally:
            filler.unlink()

    @staticmethod
    def _take(filler: int, size: int) -> None:
        """That many bytes more, or as many as there are."""
        while size >= 4096:
            with suppress(OSError):
                os.posix_fallocate(filler, os.fstat(filler).st_size, size)
                return
            size //= 2

    def _may_kill(self) -> bool:
        return self._watch.now < KILLS_UNTIL * self._seconds

    def _kill_stage(self, dice: random.Random) -> None:
        if not self._may_kill():
            return
        with self._blind():
            stage = dice.choice(STAGES)
            self.counts["stage_kills"] += 1
            self._gateway.kill(stage)
            self._gateway.start(stage)

    def _kill_worker(self, dice: random.Random) -> None:
        """One receiver process, or the nursery that makes them; the others go on, and it comes back by itself."""
        if not self._may_kill():
            return
        with self._blind():
            workers = soak_watch.family(self._gateway.pid("receiver"))[1:]
            if workers:
                self.counts["worker_kills"] += 1
                with suppress(ProcessLookupError):
                    os.kill(dice.choice(workers), signal.SIGKILL)
                self._over.wait(2)

    @contextmanager
    def _blind(self) -> Iterator[None]:
        """While a stage is down neither the watch nor the echo says anything of the gateway."""
        with self._stages:
            self._watch.blind.set()
            self._echo.down.set()
            try:
                yield
            finally:
                self._echo.down.clear()
                self._watch.blind.clear()

    # --- before and after ---------------------------------------------------------------------------------------------

    def _idle(self) -> Sample:
        """The gateway before anybody called: two looks that are alike."""
        looks: list[Sample] = []

        def calm() -> bool:
            looks.append(soak_watch.look(self._pids(), self._gateway.spool, 0.0))
            return len(looks) > 3 and looks[-1].threads == looks[-2].threads and looks[-1].pss < looks[-2].pss + MB
        wait_until(calm, 30, "the gateway is idle", every=0.5)
        return looks[-1]

    def _settle(self) -> dict[str, Any]:
        """All destinations are back, nobody sends: everything arrives. What is parked is released, as a person would."""
        end = time.monotonic() + SETTLE
        balance: dict[str, Any] = {}
        while time.monotonic() < end:
            self._pacs.collect()
            balance = self._gateway.balance(status=None)
            if balance["unaccounted"] == balance["in_flight"] == balance["waiting"] == 0:
                break
            parked = self._gateway.json("list", "--state", "parked")["objects"]
            if parked:
                self.counts["parked_released"] = self.counts.get("parked_released", 0) + len(parked)
                self._gateway.command("requeue", "--state", "parked")
            threading.Event().wait(1)
        else:
            self._figures.failures.append(f"not settled after {SETTLE:.0f} s: {balance}; {self._gateway.log_tail(600)}")
        return balance

    def _again_idle(self, before: Sample) -> None:
        """Descriptors and threads are given back within 30 s; memory is judged then."""
        limits = dict(LIMITS)
        calm = [s for s in self._watch.samples if KILLS_UNTIL * self._seconds * 1.25 < s.at < self._seconds]
        growth = soak_watch.slope(calm, lambda s: s.pss)
        if not calm or calm[-1].at - calm[0].at < 900:
            del limits["growth_mb"]
        after = soak_watch.look(self._pids(), self._gateway.spool, self._watch.now)

        def back() -> bool:
            nonlocal after
            after = soak_watch.look(self._pids(), self._gateway.spool, self._watch.now)
            return not soak_watch.verdict(0.0, before, after, 0.0, limits)

        with suppress(Late):
            wait_until(back, 30, "descriptors and threads are given back", every=1.0)
        every = [*self._watch.samples, after]
        peak = max(s.pss for s in every)
        self._figures.failures += soak_watch.verdict(growth, before, after, peak, limits)
        self._figures.counts.update(
            memory_before_mb=round(before.pss / MB, 1), memory_after_mb=round(after.pss / MB, 1),
            memory_peak_mb=round(peak / MB, 1), memory_slope_mb_per_hour=round(growth / MB, 1),
            slope_over_seconds=round(calm[-1].at - calm[0].at) if calm else 0,
            descriptors_before=before.descriptors, descriptors_after=after.descriptors,
            descriptors_peak=max(s.descriptors for s in every), threads_before=before.threads, threads_after=after.threads,
            threads_peak=max(s.threads for s in every), ledger_mb=round(after.ledger / MB, 1),
            ledger_log_peak_mb=round(max(s.wal for s in every) / MB, 1),
            ledger_bytes_per_object=round((after.ledger - before.ledger) / max(1, len(self._told.journal))))

    def _judge(self, settled: dict[str, Any]) -> None:
        figures, told = self._figures, self._told
        balance = oracle.balance_of(self._gateway.spool, self._budget.folder, "--deep")
        store, shelf = self._pacs.rest(), oracle.read_archive(self._shelf.path)
        verdict = oracle.judge(told.journal, {"storescp": sorted(store, key=str)}, spool=self._gateway.spool, balance=balance)
        second = oracle.judge(self._scanners[3].own, {"archive": shelf}, spool=self._gateway.spool)
        unknown = set(shelf) - set(told.journal.offered)
        figures.acknowledged = verdict.acknowledged
        figures.lost, figures.altered = verdict.lost + second.lost, verdict.altered + second.altered + len(unknown)
        figures.unaccounted = verdict.unaccounted
        figures.notes += verdict.notes + second.notes + [f"at the archive, and nobody sent it so: {entry}" for entry in unknown]
        if balance["quarantined"]:
            figures.failures.append(f"{balance['quarantined']} objects are in quarantine, and nobody damaged any")
        if told.longest > soak_load.ANSWER:
            figures.failures.append(f"no answer and no end of the connection for {told.longest:.1f} s after the last byte")
        if self._echo.late:
            figures.failures.append(f"{len(self._echo.late)} of {len(self._echo.took)} {self._echo.late[0]}")
        figures.failures = [f"{failure} (seed {self._budget.seed})" for failure in figures.failures]
        ct = sum(entry.length > 400_000 for entry in told.journal.acknowledged)
        figures.counts.update(self.counts)
        figures.counts.update(
            seconds=round(self._lasted, 1), objects_per_second=round(len(told.answers) / self._lasted, 1),
            images_per_second=round(ct / self._lasted, 1), resent_to_destinations=self._pacs.copies - len(store),
            torn_at_destination=self._pacs.torn, answer_p50_ms=round(percentile(told.answers, 0.5) * 1000, 1),
            answer_p99_ms=round(percentile(told.answers, 0.99) * 1000, 1), answer_longest_s=round(told.longest, 2),
            refused=sum(told.failures.values()), hostile=sum(self._hostile.done.values()), echoes=len(self._echo.took),
            echo_p99_ms=round(percentile(self._echo.took, 0.99) * 1000, 1),
            echo_longest_ms=round(max(self._echo.took, default=0.0) * 1000, 1), retired=settled.get("retired", 0),
            archived=len(shelf))
        figures.notes.append(f"what scanners heard besides success: {dict(sorted(told.failures.items()))}")
        figures.notes.append(f"hostile peers: {dict(sorted(self._hostile.done.items()))}")
