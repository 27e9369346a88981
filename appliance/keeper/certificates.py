"""The keeper's look at the certificates: what will run out, or is wrong, becomes alarms.

Files are read again only where the store has changed; dates are compared at
every round, so that a clock that is set late, or a day that ends, is noticed
within ten seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from appliance.clock import Clock
from appliance.config.settings import Config
from appliance.model import Alarm
from appliance.net.certstore import Store
from appliance.policy.certificates import Check, Held, examine

NAME = "certificates.json"


def ends(run: Path) -> dict[str, int]:
    """When the certificate of each id ends (wall ns), as the keeper found it last; for those who may not see the store."""
    try:
        return {str(id): int(end) for id, end in json.loads((run / NAME).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


class Certificates:
    """One for each keeper. `run`: where the ends of the certificates are published."""

    def __init__(self, clock: Clock, run: Path) -> None:
        self._clock = clock
        self._run = run
        self._held: dict[str, tuple[int, Held]] = {}
        self._published: dict[str, int] = {}

    def alarms(self, config: Config) -> Iterator[Alarm]:
        """What is wrong with what the configuration names. That the clock is wrong is an alarm of its own already."""
        if not config.certificates:
            return
        from appliance.net.certificates import held, wanted  # 18 MB that a box without TLS does not need
        store = Store(config.spool.state)
        now, trusted = self._clock.wall_ns(), self._clock.trusted()
        for id, wants in wanted(config).items():
            material = store.material(id)
            known = self._held.get(id)
            if known is None or known[0] != material.generation:
                known = self._held[id] = (material.generation, held(material))
            for finding in examine(known[1], wants, now, trusted):
                if finding.check is not Check.TIME_NOT_TRUSTED:
                    yield Alarm(f"certificate-{finding.check}:{id}", finding.severity, finding.text, finding.mend)
        self._publish({id: known.chain[0].not_after for id, (_, known) in self._held.items() if known.chain})

    def _publish(self, found: dict[str, int]) -> None:
        """OSError is swallowed: nothing waits for this."""
        if found == self._published:
            return
        with suppress(OSError):
            beside = self._run / f".{NAME}.{os.getpid()}"
            beside.write_text(json.dumps(found) + "\n")
            beside.rename(self._run / NAME)
            self._published = found
