"""Archives that can be asked (C-FIND, Study Root), honest and hostile ones."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.waiting import free_port


@dataclass
class QueryArchive:
    """What a pynetdicom query SCP in this process says it has: study UID → series UID → instance UIDs."""

    port: int
    has: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    asked: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    titles: list[tuple[str, str]] = field(default_factory=list)
    status: int = 0
    endless: bool = False
    silent: threading.Event = field(default_factory=threading.Event)
    """Set: a query gets no answer for as long as the archive lives."""
    over: threading.Event = field(default_factory=threading.Event)

    def put(self, study: str, series: str, instance: str) -> None:
        self.has.setdefault(study, {}).setdefault(series, []).append(instance)


@contextmanager
def query_archive(*, title: str = "ARCHIVE", context: ssl.SSLContext | None = None) -> Iterator[QueryArchive]:
    """A stock pynetdicom acceptor for Study Root C-FIND at IMAGE level; `context`: behind TLS."""
    from pydicom import Dataset
    from pynetdicom import AE, evt

    archive = QueryArchive(free_port())

    def on_find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier
        uids = asked.SOPInstanceUID or ()
        wanted = (uids,) if isinstance(uids, str) else tuple(uids)
        archive.asked.append((str(asked.StudyInstanceUID), str(asked.SeriesInstanceUID), tuple(map(str, wanted))))
        archive.titles.append((event.assoc.requestor.primitive.called_ae_title, event.assoc.requestor.ae_title))
        if archive.silent.is_set():
            archive.over.wait(60)
            return
        if archive.status:
            yield archive.status, None
            return
        for study, series in archive.has.items():
            for one, instances in series.items():
                for instance in instances:
                    if (asked.StudyInstanceUID in ("", study) and asked.SeriesInstanceUID in ("", one)
                            and (not wanted or instance in wanted)):
                        answer = Dataset()
                        answer.QueryRetrieveLevel = "IMAGE"
                        answer.SOPInstanceUID = instance
                        yield 0xFF00, answer
        while archive.endless and not archive.over.is_set():
            answer = Dataset()
            answer.SOPInstanceUID = "1.2.3"
            yield 0xFF00, answer

    ae = AE(ae_title=title)
    ae.add_supported_context("1.2.840.10008.5.1.4.1.2.2.1")
    server = ae.start_server(("127.0.0.1", archive.port), block=False, evt_handlers=[(evt.EVT_C_FIND, on_find)],
                             ssl_context=context)
    try:
        yield archive
    finally:
        archive.over.set()
        if server is not None:
            server.shutdown()


@contextmanager
def mute_listener() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []
        over = threading.Event()

        def take() -> None:
            listener.settimeout(0.1)
            while not over.is_set():
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    continue

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            over.set()
            thread.join()
            for connection in taken:
                connection.close()
