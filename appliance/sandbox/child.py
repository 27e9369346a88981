"""The limited child: reads tags of data sets and recodes them. `python -m appliance.sandbox.child <memory> <parent>`.

It gets requests and open descriptors over stdin, answers over stdout (one
socket), and opens nothing. Whatever a data set does to it — memory, time, a
crash — is the end of this process at most.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from appliance.dicom.elements import Read, read_tags
from appliance.dicom.recode import recode
from appliance.errors import FormatError, SandboxError
from appliance.sandbox import dictionary, frames, limits
from appliance.sandbox.inflate import DEFLATED, inflating

FILES = frames.MOST_DESCRIPTORS + 16
MOST_REQUEST = 1 << 20


def reader(descriptor: int, base: int, length: int) -> Read:
    """`Read` over `length` bytes at `base` of an open file."""
    def read(offset: int, n: int) -> bytes:
        if offset > length:
            raise FormatError("a value runs beyond the end of the data set")
        n = min(n, length - offset)
        data = os.pread(descriptor, n, base + offset)
        while len(data) < n:
            more = os.pread(descriptor, n - len(data), base + offset + len(data))
            if not more:
                raise FormatError("the file is shorter than its data set")
            data += more
        return data

    return read


def tags(request: Any, descriptors: list[int], answer: Callable[[bytes], None]) -> None:
    """Answer with one JSON list: for each object the values by tag, or null where it cannot be read."""
    wanted = frozenset(request["wanted"])
    found: list[dict[int, str] | None] = []
    for descriptor, (offset, length, syntax) in zip(descriptors, request["objects"], strict=True):
        try:
            read = reader(descriptor, offset, length)
            if syntax in DEFLATED:
                read = inflating(read)
            found.append(read_tags(read, syntax, wanted, dictionary.vr_of))
        except (FormatError, MemoryError, OSError):
            found.append(None)
    answer(json.dumps(found, separators=(",", ":")).encode())


def recoded(request: Any, descriptors: list[int], answer: Callable[[bytes], None]) -> None:
    """Answer with the pieces (`D` + bytes), then `E`, or `F` + what is wrong."""
    offset, length = request["offset"], request["length"]
    try:
        pieces = recode(reader(descriptors[0], offset, length), length, request["source"], request["target"], dictionary.vr_of)
        for piece in pieces:
            if piece:
                answer(b"D" + piece)
    except (FormatError, MemoryError, OSError) as e:
        answer(b"F" + str(e).encode()[:500])
    else:
        answer(b"E")


def main() -> None:
    memory, parent = int(sys.argv[1]), int(sys.argv[2])
    dictionary.load()
    limits.apply(memory, FILES, parent)
    sock = socket.socket(fileno=0)
    frames.send(sock, frames.READY)
    jobs = {"tags": tags, "recode": recoded}
    while True:
        payload, descriptors = frames.receive(sock, MOST_REQUEST)
        if not payload:
            return
        try:
            request = json.loads(payload)
            jobs[request["job"]](request, descriptors, lambda reply: frames.send(sock, reply))
        finally:
            frames.close_all(descriptors)


if __name__ == "__main__":
    try:
        main()
    except (OSError, SandboxError):
        os._exit(1)                              # the parent is gone
