"""The limit: a bare TCP receiver that writes each object to a ready file and syncs it once. No DICOM, no digest, no ledger.

    python -m tests.bench.limit PORT FOLDER PROCESSES direct|cached

Each object is 8 bytes of length and its bytes; the answer is one byte after the
sync. Files are created, opened and their folders synced ahead of need, by a
line `ready N` on standard input, which is answered when they are there. With
several processes each accepts on its own; a thread serves a connection.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
import threading
from pathlib import Path

BUFFER = 1 << 20
PAGE = 4096
SHARDS = 256


class Files:
    """Ready files: empty, open, in the same layout as the spool's (a shard for 4096 numbers), folders synced."""

    def __init__(self, folder: Path, direct: bool) -> None:
        self._folder = folder
        self._direct = direct
        self._ready: list[int] = []
        self._next = 0

    def make(self, count: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if self._direct else 0)
        shards = set()
        fresh = []
        for _ in range(count - len(self._ready)):
            number = self._next
            self._next += 1
            shard = self._folder / f"{(number >> 12) & (SHARDS - 1):02x}"
            if shard not in shards:
                shard.mkdir(exist_ok=True)
                shards.add(shard)
            fresh.append(os.open(shard / f"{os.getpid():08x}{number:08x}.raw", flags, 0o600))
        for folder in (*shards, self._folder):
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        self._ready = fresh[::-1] + self._ready

    def take(self) -> int:
        return self._ready.pop()


def receive(sock: socket.socket, view: memoryview, count: int) -> bool:
    """Exactly that many bytes, in as few calls as the kernel allows; False at the end of the stream."""
    at = 0
    while at < count:
        got = sock.recv_into(view[at:count], count - at, socket.MSG_WAITALL)
        if got == 0:
            return False
        at += got
    return True


def serve(sock: socket.socket, files: Files, direct: bool) -> None:
    """One connection: length, bytes, one sync, one byte of answer."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(mmap.mmap(-1, BUFFER))
    head = memoryview(bytearray(8))
    with sock:
        while receive(sock, head, 8):
            length = left = struct.unpack(">Q", head)[0]
            target = files.take()
            at = 0
            while left:
                size = min(left, BUFFER)
                if not receive(sock, buffer, size):
                    return
                os.pwrite(target, buffer[:-(-size // PAGE) * PAGE if direct else size], at)
                at += size
                left -= size
            if direct and length % PAGE:
                os.ftruncate(target, length)
            os.fdatasync(target)
            sock.send(b"\0")
            os.close(target)


def accept(listener: socket.socket, files: Files, direct: bool) -> None:
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock, files, direct), daemon=True).start()


def worker(listener: socket.socket, folder: Path, direct: bool, orders: int, answers: int) -> None:
    """One process: its own files; orders are the number of files that are to be ready."""
    files = Files(folder, direct)
    threading.Thread(target=accept, args=(listener, files, direct), daemon=True).start()
    while order := os.read(orders, 4):
        files.make(struct.unpack(">L", order)[0])
        os.write(answers, b"\0")


def main(port: int, folder: Path, processes: int, direct: bool) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    pipes: list[tuple[int, int]] = []
    for _ in range(processes):
        orders, answers = os.pipe(), os.pipe()
        if os.fork() == 0:
            os.close(orders[1])
            for write, _ in pipes:
                os.close(write)
            listener.listen(512)
            worker(listener, folder, direct, orders[0], answers[1])
            os._exit(0)
        os.close(orders[0])
        os.close(answers[1])
        pipes.append((orders[1], answers[0]))
    listener.listen(512)
    for line in sys.stdin:
        count = int(line.split()[1])
        for write, _ in pipes:
            os.write(write, struct.pack(">L", count))
        for _, read in pipes:
            os.read(read, 1)
        print("ready", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "direct")
