"""The keeper's look at the certificates: what will run out, or is wrong, becomes alarms.

Files are read again only where the store has changed; dates are compared at
every round, so that a clock that is set late, or a day that ends, is noticed
within ten seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.clock import Clock
from appliance.config.settings import Config
from appliance.model import Alarm
from appliance.net.certstore import Store
from appliance.policy.certificates import Check, Held, examine


class Certificates:
    """One for each keeper."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[str, tuple[int, Held]] = {}

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
