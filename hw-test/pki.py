"""A certification authority for the tests: the box's certificate, and those of who talks TLS with it."""

from __future__ import annotations

import subprocess
from pathlib import Path


def _openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


class Authority:
    """Files in a folder: `ca.pem`, and `<name>.key`, `<name>.pem` for each that was issued."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.trust = folder / "ca.pem"
        _openssl("req", "-x509", "-newkey", "rsa:3072", "-nodes", "-days", 300, "-subj", "/CN=Test authority", "-addext",
                 "keyUsage=critical,keyCertSign,cRLSign", "-keyout", folder / "ca.key", "-out", self.trust)

    def issue(self, name: str, *alternatives: str) -> tuple[Path, Path]:
        """Key and certificate with these subject alternative names ("DNS:gate1", "IP:10.99.1.2")."""
        key, request, made = (self.folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join(alternatives)}\nkeyUsage=critical,digitalSignature,keyEncipherment\n"
                              "extendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:FALSE\n")
        _openssl("req", "-newkey", "rsa:3072", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        _openssl("x509", "-req", "-in", request, "-CA", self.trust, "-CAkey", self.folder / "ca.key", "-CAcreateserial",
                 "-days", 30, "-extfile", extensions, "-out", made)
        return key, made
