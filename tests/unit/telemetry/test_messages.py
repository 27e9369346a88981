"""Messages with an explanation: names that never change, texts that are those of the image, words that are still said."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from appliance.telemetry.messages import MESSAGES, catalog, find

ROOT = Path(__file__).resolve().parents[3]


def test_the_catalog_of_the_image_is_the_table():
    assert (ROOT / "rootfs/usr/lib/systemd/catalog/dcmgate.catalog").read_text() == catalog()


def test_names_are_names_and_each_is_one_message():
    assert all(re.fullmatch("[0-9a-f]{32}", message.id) for message in MESSAGES)
    assert len({message.id for message in MESSAGES}) == len({message.begins for message in MESSAGES}) == len(MESSAGES)


def test_each_of_these_words_is_still_said():
    source = "".join(path.read_text() for path in (ROOT / "appliance").rglob("*.py") if path.name != "messages.py")
    assert [message.begins for message in MESSAGES if f'"{message.begins}' not in source] == []


def test_the_line_of_an_alarm_is_not_the_one_of_its_end():
    assert find("alarm: the disk is out of intake") is not find("alarm ended: the disk is out of intake")
    assert find("ready") is not None and find("nothing of note") is None


def test_journalctl_takes_it(tmp_path):
    """Where systemd is at hand: its own compiler reads the catalog whole."""
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    (folder / "dcmgate.catalog").write_text(catalog())
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    try:
        made = subprocess.run(["journalctl", "--root", str(tmp_path), "--update-catalog"], capture_output=True, text=True)
    except FileNotFoundError:
        return
    listed = subprocess.run(["journalctl", "--root", str(tmp_path), "--list-catalog"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert {line.split()[0] for line in listed.stdout.splitlines()} == {message.id for message in MESSAGES}
