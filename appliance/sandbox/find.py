"""Asking an archive what it has: C-FIND at IMAGE level (PS3.4 C.6.2), by a limited child.

The child speaks pynetdicom, whose waiting without end and growing buffers
(hazards) are bounded here by a deadline and an address space. It opens no
connection: it is given one, whose TLS, if any, is spoken by somebody else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from appliance.errors import SandboxError
from appliance.sandbox.process import Process

MEMORY = 768 << 20
"""Address space of the child in bytes; pynetdicom's threads reserve much and use little (about 45 MB resident)."""

MOST_UIDS = 200_000
"""Instances of one series that are listened to; an archive that tells more is not believed."""

_MOST_ANSWER = 16 << 20


@dataclass(frozen=True, slots=True)
class Archive:
    """Whom to ask. Times in seconds: for the association, and for each answer to come."""

    address: str
    port: int
    called: str
    calling: str
    connect_seconds: float = 10.0
    progress_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Search:
    """One query: all instances of a series; or, where `uids` are given, which of these the archive knows."""

    study: str = ""
    series: str = ""
    uids: tuple[str, ...] = ()


class Finder:
    """One limited child for queries, started when first asked. For one thread."""

    def __init__(self, memory: int = MEMORY) -> None:
        self._process = Process("appliance.sandbox.find_child", memory, {"MALLOC_ARENA_MAX": "1"})

    @property
    def pid(self) -> int:
        return self._process.pid

    def images(self, archive: Archive, searches: Sequence[Search], connection: int,
               handed_over: Callable[[], None] = lambda: None) -> list[frozenset[str] | str]:
        """SOP Instance UIDs that the archive has for each search; a text instead where it refused that one.

        All go over one association, on `connection`: a descriptor, of which the child gets a copy; `handed_over` is called
        when it has it. SandboxError where the archive cannot be asked, goes silent, or the child dies of what it says.
        """
        request = {"archive": asdict(archive), "searches": [asdict(search) for search in searches], "most": MOST_UIDS}
        seconds = archive.connect_seconds * 2 + archive.progress_seconds + 5
        deadline = self._process.ask(json.dumps(request).encode(), [connection], seconds)
        handed_over()
        answers: list[frozenset[str] | str] = []
        while len(answers) < len(searches):
            reply = _parse(self._process.answer(_MOST_ANSWER, deadline))
            if reply is None or isinstance(reply, SandboxError):
                self._process.kill()             # after an error an association may still hang in it
                raise reply or SandboxError("the limited child answered nonsense")
            answers.append(reply)
            deadline = self._process.within(archive.progress_seconds * 2 + 5)
        return answers

    def close(self) -> None:
        """End the child."""
        self._process.kill()


def _parse(reply: bytes) -> frozenset[str] | str | SandboxError | None:
    """One answer as a value; None for anything that a sound child does not say."""
    try:
        found: Any = json.loads(reply)
    except (ValueError, RecursionError):
        return None
    match found:
        case {"error": str(text)}:
            return SandboxError(text[:500])
        case {"refused": str(text)}:
            return text[:500]
        case {"uids": list(uids)} if len(uids) <= MOST_UIDS and all(type(uid) is str for uid in uids):
            return frozenset(uids)
    return None
