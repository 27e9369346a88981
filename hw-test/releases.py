"""Releases to update a box from: other versions of the image under test, made without building one, and spoilt ones.

They are served over HTTP on the uplink side, in parts of files, as the box asks for them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from machine import IMAGES

SERVER = ("10.99.2.10", 8000)
URL = "http://10.99.2.10:8000"


def next_version(version: str, steps: int = 1) -> str:
    """Of the same length, so that it fits where the old one stands."""
    major, minor, patch = version.split(".")
    found = f"{major}.{int(minor) + steps}.{patch}"
    assert len(found) == len(version), "there is no next version of the same length"
    return found


class Maker:
    """`root` of the checkout, `folder` for what is made, `keys` of the builder."""

    def __init__(self, root: Path, folder: Path, keys: Path, version: str) -> None:
        self.root, self.folder, self.keys, self.version = root, folder, keys, version
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def variant(self, name: str, version: str, *words: str) -> Path:
        """That version of the image, with words behind the command line of its kernel."""
        parts, tools = self.folder / f".{name}", self.root / "image-build"
        self._run(tools / "enter", "--work", self.root, "--work", self.keys, self.root / "hw-test" / "variant",
                  IMAGES, self.version, version, parts, self.keys, *words)
        self._run(tools / "release", parts / "root.raw", parts / "verity.raw", parts / "uki.efi", version,
                  self.folder / name)
        shutil.rmtree(parts)
        return self.folder / name

    def spoilt(self, name: str, source: Path) -> Path:
        """A copy to be spoilt, with the list still to be signed."""
        copy = self.folder / name
        shutil.copytree(source, copy, copy_function=os.link)
        for path in (copy / "SHA256SUMS", copy / "SHA256SUMS.gpg"):
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
        return copy

    def renamed(self, name: str, source: Path, old: str, new: str) -> Path:
        """The same content under other names, signed by the builder."""
        copy = self.spoilt(name, source)
        for path in list(copy.glob("dcmgate-*")):
            path.rename(copy / path.name.replace(old, new))
        sums = copy / "SHA256SUMS"
        sums.write_text(sums.read_text().replace(old, new))
        self.sign(copy)
        return copy

    def sign(self, release: Path, key: Path | None = None) -> None:
        self._run(self.root / "image-build" / "sign", release, *([key] if key else []))

    @staticmethod
    def _run(*command: str | os.PathLike[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


class _Handler(BaseHTTPRequestHandler):
    folder = Path()

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or ".." in self.path or not path.is_file():
            self.send_error(404)
            return
        first, total = int(asked[1]), path.stat().st_size
        with path.open("rb") as file:
            file.seek(first)
            part = file.read(int(asked[2]) - first + 1)
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{total}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"folder": folder})
    with ThreadingHTTPServer(SERVER, handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield URL
        server.shutdown()
