"""`dcmgate send HOST:PORT FILE…`: a small sender for trials. Without files it is a C-ECHO."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from appliance.cli import exits, tls_options
from appliance.cli.context import Site
from appliance.cli.text import bar, size, span
from appliance.errors import UsageError

if TYPE_CHECKING:
    from appliance.cli.files import DicomFile
    from appliance.forward.association import Association
    from appliance.net.tls import Client

MOST_CONTEXTS = 128
CHUNK = 131072


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    one = commands.add_parser("send", help="send files or folders to a DICOM node, for trials", parents=[common])
    one.add_argument("place", metavar="HOST:PORT", help="where to")
    one.add_argument("files", nargs="*", metavar="FILE", help="Part 10 files, or folders of such; none: a C-ECHO")
    one.add_argument("--called", default="DCMGATE", metavar="TITLE", help="called AE title (default: DCMGATE)")
    one.add_argument("--calling", default="DCMGATE-SEND", metavar="TITLE", help="calling AE title (default: DCMGATE-SEND)")
    one.add_argument("--quiet", action="store_true", help="show failures and the sum only")
    tls_options.add(one)
    one.set_defaults(run=send)


def place_of(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [ADDRESS]:PORT. UsageError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise UsageError(f'"{text}" is no HOST:PORT', mend="for example 127.0.0.1:11112")
    return host, int(port)


def send(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.cli.files import find
    from appliance.policy import Party
    host, port = place_of(arguments.place)
    for title in (arguments.called, arguments.calling):
        if not 1 <= len(title.strip()) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
            raise UsageError(f'"{title}" is no AE title', mend="1 to 16 characters of ASCII, no backslash")
    party = Party(arguments.place, host, port, arguments.called, arguments.calling)
    tls = tls_options.client(site, arguments, host)
    if not arguments.files:
        return _echo(site, party, tls)
    files, skipped = [], 0
    for path, found in find(arguments.files):
        if found is None:
            skipped += 1
            site.note(f"dcmgate: {path}: no DICOM object, left out")
        else:
            files.append(found)
    if not files:
        raise UsageError("there is nothing to send", mend="give Part 10 files, or folders of such")
    return _Sending(site, party, tls, files, arguments.quiet).run(skipped)


def _echo(site: Site, party: Any, tls: Client | None) -> int:
    from appliance.dicom import pdu, uids
    from appliance.forward.association import Association, Limits
    began = time.monotonic()
    association = Association(party, Limits(), tls=tls)
    try:
        association.associate([pdu.ProposedContext(1, uids.VERIFICATION, (uids.IMPLICIT_LE,))])
        status = association.echo()
        association.release()
    finally:
        association.abort()
    milliseconds = round((time.monotonic() - began) * 1000, 1)
    site.emit({"place": party.place, "status": status, "milliseconds": milliseconds, **tls_options.facts(tls)})
    said = "took the association, but not Verification" if status is None else f"answers {status:04X}"
    site.say(f"{party.place} {said}, {milliseconds} ms")
    tls_options.say(site, tls)
    return exits.OK if not status else exits.FINDING


class _Sending:
    """One run over all files, on as few associations as their presentation contexts allow."""

    def __init__(self, site: Site, party: Any, tls: Client | None, files: list[DicomFile], quiet: bool) -> None:
        self.site = site
        self.party = party
        self.tls = tls
        self.files = files
        self.quiet = quiet
        self.results: list[dict[str, Any]] = []
        self.stored = self.sent_bytes = 0
        self.began = time.monotonic()
        self.total = sum(file.length for file in files)
        self.progress = sys.stderr.isatty() and quiet

    def run(self, skipped: int) -> int:
        from appliance.errors import DeliveryError
        lost: DeliveryError | None = None
        try:
            for group in _groups(self.files):
                self._send_group(group)
        except DeliveryError as e:
            lost = e
        seconds = max(time.monotonic() - self.began, 1e-6)
        if self.progress:
            sys.stderr.write("\r\x1b[K")
        failed = len(self.files) - self.stored
        self.site.emit({"place": self.party.place, "stored": self.stored, "failed": failed, "skipped": skipped,
                        "bytes": self.sent_bytes, "seconds": round(seconds, 3), "error": lost.message if lost else "",
                        **tls_options.facts(self.tls), "objects": self.results})
        self.site.say(f"{self.stored} of {len(self.files)} stored, {size(self.sent_bytes)} in {span(seconds)} "
                      f"({self.stored / seconds:.1f} objects/s, {size(self.sent_bytes / seconds)}/s)")
        tls_options.say(self.site, self.tls)
        if lost is not None:
            raise lost
        return exits.FINDING if failed else exits.OK

    def _send_group(self, files: list[DicomFile]) -> None:
        from appliance.dicom import pdu
        from appliance.forward.association import Association, Limits
        pairs = list(dict.fromkeys((file.sop_class.decode("latin-1"), file.syntax) for file in files))
        association = Association(self.party, Limits(), tls=self.tls)
        try:
            association.associate([pdu.ProposedContext(2 * nth + 1, abstract, (syntax,))
                                   for nth, (abstract, syntax) in enumerate(pairs)])
            for file in files:
                self._send_one(association, file)
            association.release()
        finally:
            association.abort()

    def _send_one(self, association: Association, file: DicomFile) -> None:
        context = association.context_for(file.sop_class.decode("latin-1"), file.syntax)
        if context is None:
            self._told(file, None, f"no presentation context for {file.sop_class.decode('latin-1')} in {file.syntax}")
            return
        response = association.store(context, file.sop_class, file.sop_instance, _pieces(file))
        self._told(file, response.status, _meaning(response.status))

    def _told(self, file: DicomFile, status: int | None, text: str) -> None:
        from appliance.model import escape
        stored = status is not None and (status == 0 or status >> 12 == 0xB)
        self.stored += stored
        self.sent_bytes += file.length if stored else 0
        self.results.append({"file": str(file.path), "status": status, "text": text, "stored": stored,
                             "sop_instance": escape(file.sop_instance)})
        code = "----" if status is None else f"{status:04X}"
        if not stored or not self.quiet:
            self.site.say(f"{code} {text if stored else self.site.bad(text)}  {file.path}")
        elif self.progress:
            done = len(self.results)
            sys.stderr.write(f"\r{bar(done, len(self.files), 30)} {done} of {len(self.files)}\x1b[K")
            sys.stderr.flush()


def _groups(files: list[DicomFile]) -> Iterator[list[DicomFile]]:
    """Files in order, as many together as their SOP classes and syntaxes fit into one association."""
    group: list[DicomFile] = []
    pairs: set[tuple[bytes, str]] = set()
    for file in files:
        pair = (file.sop_class, file.syntax)
        if pair not in pairs and len(pairs) == MOST_CONTEXTS:
            yield group
            group, pairs = [], set()
        pairs.add(pair)
        group.append(file)
    if group:
        yield group


def _pieces(file: DicomFile) -> Iterator[tuple[bytes, bool]]:
    """The data set in pieces, each with whether it is the last."""
    left = file.length
    with file.path.open("rb") as source:
        source.seek(file.offset)
        while True:
            piece = source.read(min(CHUNK, left))
            left -= len(piece)
            if left and not piece:
                raise OSError(5, "became shorter while it was sent", str(file.path))
            yield piece, left == 0
            if left == 0:
                return


def _meaning(status: int | None) -> str:
    """A C-STORE status in words (PS3.4 B.2.3, PS3.7 annex C)."""
    if status is None:
        return "answered without a status"
    if status in _MEANINGS:
        return _MEANINGS[status]
    kinds = {0xA7: "refused: out of resources", 0xA9: "refused: does not match its class"}
    return kinds.get(status >> 8, "cannot be understood" if status >> 12 == 0xC else
                     "stored, with a warning" if status >> 12 == 0xB else "failed")


_MEANINGS = {
    0x0000: "stored", 0xB000: "stored, coerced", 0xB006: "stored, elements discarded", 0xB007: "stored, not of its class",
    0x0110: "processing failure", 0x0117: "invalid instance", 0x0122: "SOP class not supported", 0x0124: "not authorised",
    0x0210: "duplicate invocation", 0x0211: "unrecognised operation",
}
