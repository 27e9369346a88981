"""Persons: by key, on the management side, by their own names; and what they read says nothing of patients."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from conftest import FOLDER
from dicom import arrived, content, pacs, send, study
from gateway import GatewayStrategy

SECRETS = ("Zyxwvut", "Qponmlk", "PID-77531", "ACC-99217", "Kjihgfe study")


def ssh(*options: str, user: str = "engineer") -> subprocess.CompletedProcess[str]:
    fixed = [f"-o{option}" for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=60",
                                          "LogLevel=ERROR", *options)]
    return subprocess.run(["ssh", *fixed, f"{user}@10.99.3.2", "id -un"], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=120)


def test_a_person_has_a_key_and_nobody_a_password(serving: GatewayStrategy) -> None:
    key = f"IdentityFile={FOLDER / 'key'}"
    refused = ssh(key, "BatchMode=yes", user="root")
    assert refused.returncode == 255 and "Permission denied (publickey)" in refused.stderr
    asked = ssh("PubkeyAuthentication=no", "NumberOfPasswordPrompts=1")
    assert asked.returncode == 255 and "Permission denied (publickey)" in asked.stderr


def test_a_person_reads_the_status_and_cannot_write_custody(serving: GatewayStrategy) -> None:
    facts = json.loads(serving.run("dcmgate --json status --once", 120))
    assert facts["keeper"] and facts["forwarder"] and facts["destinations"][0]["destination"] == "pacs"
    assert "pacs" in serving.run("dcmgate status --once", 120)
    for place in ("/var/spool/dcmgate/ledger.sqlite", "/var/spool/dcmgate/x", "/run/dcmgate/x", "/etc/dcmgate/dcmgate.toml",
                  "/var/lib/dcmgate/spool-uuid", "/usr/bin/dcmgate"):
        assert serving.run(f"bash -c ': >>{place}' 2>/dev/null && echo written || echo refused") == "refused", place


def test_what_a_person_does_is_in_the_ledger_by_that_name(serving: GatewayStrategy, tmp_path: Path) -> None:
    """Of a study that waits, one image is given up by a person."""
    sent = study(tmp_path / "sent", 2, 64)
    assert send(sent).returncode == 0
    waiting = json.loads(serving.run("dcmgate --json list --objects --state waiting", 120))["objects"]
    number = waiting[-1]["number"]
    serving.run(f"dcmgate show {number}", 120)
    serving.run(f"dcmgate discard {number} --reason 'sent twice' --yes", 120)
    events = json.loads(serving.run(f"dcmgate --json show {number}", 120))["objects"][0]["history"]
    given_up = [event["body"] for event in events if event["kind"] == "discarded"]
    assert given_up and given_up[0]["by"] == "engineer" and given_up[0]["reason"] == "sent twice", events
    with pacs(tmp_path / "pacs") as folder:
        assert len(arrived(folder, len(waiting) - 1, 300)) == len(waiting) - 1
    assert json.loads(serving.run("dcmgate balance --json", 120))["unaccounted"] == 0


def test_the_journal_knows_no_patient(serving: GatewayStrategy, tmp_path: Path) -> None:
    """After a study of a known patient, taken in, delivered, looked at; and after one that was refused."""
    sent = study(tmp_path / "sent", 3, 64, PatientName="Zyxwvut^Qponmlk", PatientID="PID-77531", AccessionNumber="ACC-99217",
                 StudyDescription="Kjihgfe study")
    with pacs(tmp_path / "pacs") as folder:
        assert send(sent).returncode == 0
        assert set(arrived(folder, len(sent), 300)) >= {content(path)[0] for path in sent}
    assert send(sent, called="NOBODY").returncode != 0
    assert serving.run("dcmgate list --patient PID-77531", 120)
    pattern = "|".join(SECRETS)
    assert serving.run(f"journalctl -b --no-pager -o export | grep -a -c -i -E '{pattern}' || true", 300) == "0"
    assert serving.run("journalctl -b --no-pager -t dcmgate | grep -c . || true", 120) != "0"
    assert serving.run(f"grep -r -l -i -E '{pattern}' /run/dcmgate /run/dcmgate-public 2>/dev/null || true") == ""


def test_the_journal_is_kept_and_bounded(serving: GatewayStrategy) -> None:
    assert serving.run("ls /var/log/journal") == serving.run("cat /etc/machine-id")
    text = serving.run("systemd-analyze cat-config systemd/journald.conf --no-pager")
    for line in ("Storage=persistent", "SystemMaxUse=256M", "RateLimitBurst=5000"):
        assert line in text


def test_a_message_has_a_text_that_explains_it(serving: GatewayStrategy) -> None:
    """`journalctl -x` shows the catalog's text for what a stage said when it had started."""
    explained = serving.run("journalctl -b -x --no-pager -t dcmgate MESSAGE_ID=$(journalctl --list-catalog --no-pager | "
                            "awk '/Dcmgate: a stage is ready/ { print $1 }')", 120)
    assert "has started and works by generation" in explained and "░░" in explained
