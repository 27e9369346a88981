"""Records: what is known of updates, across slots and reboots. Small files, each there whole or not at all.

`progress.json` alone is lost at a reboot. A file that cannot be read is as if it
were not there: nothing here decides about an image, and the slots speak for
themselves.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from appliance.policy.update import Entry, Fate, Installed, Slot, Trial, entries_of, is_newer, version_key
from appliance.spool.durable import write_whole
from appliance.update.places import Places, device

MOST_HISTORY = 200
"""Lines that are kept."""


@dataclass(frozen=True, slots=True)
class Event:
    """`what`: approved, refused, failed, installed, blessed, cut off or back. `by`: the person, or "" where the box did it."""

    at: int
    what: str
    version: str
    text: str = ""
    by: str = ""


class Records:
    """Reading for everybody, writing for root."""

    def __init__(self, places: Places | None = None) -> None:
        self.places = places or Places()

    # reading

    def installed(self) -> Installed:
        """What this box is, for the decision on a release."""
        running = self.places.running()
        floors = [self.places.floor_of_image(), str(_read(self.places.state / "floor.json").get("floor", "0"))]
        back = {event.version for event in self.history() if event.what == Fate.BACK}
        back |= {entry.version for entry in self.places.entries() if entry.slot is Slot.FAILED}
        on_trial = any(entry.version == running and entry.slot is not Slot.GOOD for entry in self.places.entries())
        return Installed(device(), running, max(floors, key=_key), frozenset(back - {running}), on_trial)

    def menu(self) -> tuple[Entry, ...]:
        """The boot menu; for who may not read it, as root has shown it last."""
        names = _read(self.places.run / "menu.json").get("names", [])
        return self.places.entries() or entries_of([str(name) for name in names if isinstance(name, str)])

    def history(self) -> list[Event]:
        """The oldest first."""
        found: list[Event] = []
        with suppress(OSError):
            for line in (self.places.state / "history.jsonl").read_text().splitlines():
                with suppress(ValueError, TypeError):
                    found.append(Event(**json.loads(line)))
        return found

    def trial(self) -> Trial | None:
        found = _read(self.places.state / "trial.json")
        with suppress(TypeError):
            return Trial(**found) if found else None
        return None

    def approved(self) -> str:
        return str(_read(self.places.state / "approved.json").get("version", ""))

    def offered(self) -> str:
        """The version that was found last, and may be installed; empty where there is none."""
        version = str(_read(self.places.state / "offered.json").get("version", ""))
        with suppress(ValueError):
            return version if version and is_newer(version, self.places.running()) else ""
        return ""

    def progress(self) -> dict[str, Any]:
        return _read(self.places.run / "progress.json")

    # writing

    def show_menu(self) -> None:
        """The boot menu is root's."""
        _write(self.places.run / "menu.json", {"names": [entry.name for entry in self.places.entries()]}, sync=False)

    def tell(self, stage: str, text: str = "", **more: Any) -> None:
        """What goes on, for whoever waits for it."""
        _write(self.places.run / "progress.json", {"stage": stage, "text": text, "at": time.time_ns(), **more}, sync=False)

    def note(self, what: str, version: str, text: str = "", by: str = "") -> None:
        lines = [json.dumps(asdict(event)) for event in self.history()[-MOST_HISTORY:]]
        lines.append(json.dumps(asdict(Event(time.time_ns(), what, version, text, by))))
        write_whole(self.places.state / "history.jsonl", "\n".join(lines) + "\n", 0o644)

    def set_trial(self, trial: Trial) -> None:
        _write(self.places.state / "trial.json", asdict(trial))

    def complain(self, said: list[str]) -> None:
        """What the gate has against the version on trial."""
        trial = self.trial() or Trial(self.places.running(), "the version before it")
        self.set_trial(replace(trial, said=[*trial.said, "; ".join(said)]))

    def end_trial(self) -> None:
        (self.places.state / "trial.json").unlink(missing_ok=True)

    def approve(self, version: str, by: str) -> None:
        _write(self.places.state / "approved.json", {"version": version, "by": by})
        self.note("approved", version, by=by)

    def offer(self, version: str) -> None:
        _write(self.places.state / "offered.json", {"version": version})

    def raise_floor(self) -> None:
        """A version that was blessed sets the floor of its image for good."""
        known, floor = str(_read(self.places.state / "floor.json").get("floor", "0")), self.places.floor_of_image()
        if _key(floor) > _key(known):
            _write(self.places.state / "floor.json", {"floor": floor})


def _key(version: str) -> tuple[int, ...]:
    try:
        return version_key(version)
    except ValueError:
        return (0,)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, value: object, *, sync: bool = True) -> None:
    write_whole(path, json.dumps(value) + "\n", 0o644, sync=sync)
