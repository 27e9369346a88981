"""A text becomes a Config, or every reason why not: each with file, line, key and mend."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.config import load
from appliance.config.checks import remarks
from appliance.config.lines import find_lines
from appliance.config.settings import Config, Destination, Listener, Peer, Rule, Spool
from appliance.errors import ConfigError

SMALL = """
[[listener]]
id = "in"
[[destination]]
id = "pacs"
address = "192.0.2.1"
default = true
"""


def test_the_smallest_configuration_is_two_entries() -> None:
    config = load.parse(SMALL, "small.toml", generation=7)
    assert config.generation == 7
    assert config.listeners == (Listener(id="in"),)
    assert config.destinations == (Destination(id="pacs", address="192.0.2.1", default=True),)
    assert config.spool == Spool()


def test_values_get_the_type_of_the_table() -> None:
    config = load.parse(SMALL + """
[[peer]]
id = "ct"
idle_seconds = 60
titles = ["", "CT 1"]
addresses = ["10.0.0.0/8", "fe80::1"]
[[rule]]
id = "night"
match = { hours = "19:00-06:30", not = { modality = ["SR", "KO"] }, "0008,103E" = "*head*", SeriesNumber = "3..7" }
destinations = ["pacs"]
""", "x")
    peer = config.peers[0]
    assert isinstance(peer.idle_seconds, float) and peer.idle_seconds == 60.0
    assert peer.titles == ("", "CT 1")
    assert config.rules[0].match["not"] == {"modality": ["SR", "KO"]}


@pytest.mark.parametrize(("written", "ports"), [
    ("104", (104,)), ("[104, 11112]", (104, 11112)), ('"2104-2107"', (2104, 2105, 2106, 2107)),
    ('["104", "2104 - 2105", 9]', (104, 2104, 2105, 9)), ('"2104..2105"', (2104, 2105)),
])
def test_ports_are_numbers_lists_and_ranges(written: str, ports: tuple[int, ...]) -> None:
    assert load.parse(SMALL.replace('"in"', f'"in"\nports = {written}'), "x").listeners[0].ports == ports


# (what the small file gets added or replaced, line, key, part of the message, part of the mend)
BAD = [
    ("[[destnation]]\nid = 'x'", 8, "destnation", "no table", '"destination"'),
    ("[proxies]\nid = 'x'", 8, "proxies", "no table", "known are: listener"),
    ("[[peer]]\nid = 'x'\ntitels = ['A']", 10, "peer.x.titels", "no setting", '"titles"'),
    ("[[peer]]\nid = 'x'\npath = 'A'", 10, "peer.x.path", "no setting", "[[destination]]"),
    ("[peer]\nid = 'x'", 8, "peer", "array of tables", "[[peer]]"),
    ("[[spool]]\npath = '/x'", 8, "spool", "only one", "[spool]"),
    ("[[peer]]\ntitles = ['A']", 8, "peer[1].id", "missing", "peer1"),
    ("[[peer]]\nid = ''", 9, "peer[1].id", "empty", "peer1"),
    ("[[peer]]\nid = 'x'\n[[peer]]\nid = 'x'", 11, "peer.x.id", "already the id of another peer (line 9)", "its own"),
    ("[[peer]]\nid = 'CT 1'", 9, "peer.CT 1.id", "letters", '"CT-1"'),
    ("[[peer]]\nid = 'x'\ntitles = 'A'", 10, "peer.x.titles", "list", 'titles = ["A"]'),
    ("[[peer]]\nid = 'x'\nidle_seconds = '60'", 10, "peer.x.idle_seconds", "a number", "idle_seconds = 60"),
    ("[[peer]]\nid = 'x'\nidle_seconds = 0", 10, "peer.x.idle_seconds", "0 is too small", "at least 1 s"),
    ("[[peer]]\nid = 'x'\nidle_seconds = nan", 10, "peer.x.idle_seconds", "finite", "number"),
    ("[[peer]]\nid = 'x'\nsilence_alarm = 1", 10, "peer.x.silence_alarm", "true or false", "true"),
    ("[[peer]]\nid = 'x'\naction = 'hald'", 10, "peer.x.action", "not one of", '"hold"'),
    ("[[peer]]\nid = 'x'\ntitles = ['A', 'ABCDEFGHIJKLMNOPQ']", 10, "peer.x.titles[2]", "17 characters", "ABCDEFGHIJKLMNOP"),
    ("[[peer]]\nid = 'x'\ntitles = ['A\\B']", 10, "peer.x.titles[1]", "must not have", "backslash"),
    ("[[peer]]\nid = 'x'\ntitles = ['MÜLLER']", 10, "peer.x.titles[1]", "must not have", "ASCII"),
    ('[[peer]]\nid = "x"\ntitles = ["A\\u0007"]', 10, "peer.x.titles[1]", "control", "type it anew"),
    ("[[peer]]\nid = 'x'\ntitles = ['CT ']", 10, "peer.x.titles[1]", "begins or ends", '"CT"'),
    ("[[peer]]\nid = 'x'\naddresses = ['10.0.0.5/24']", 10, "peer.x.addresses[1]", "bits set", '"10.0.0.0/24"'),
    ("[[peer]]\nid = 'x'\naddresses = [\n'10.0.0.5',\n'ct1']", 12, "peer.x.addresses[2]", "no address", "subnet"),
    ("[[peer]]\nid = 'x'\nlisteners = ['ni']", 10, "peer.x.listeners[1]", "no listener", 'known are: in'),
    ("[[listener]]\nid = 'b'", 8, "listener.b.ports", "already that of listener \"in\"", "another port"),
    ("[[listener]]\nid = 'b'\nports = 70000", 10, "listener.b.ports", "out of range", "65535"),
    ("[[listener]]\nid = 'b'\nports = '9-5'", 10, "listener.b.ports", "backwards", '"5-9"'),
    ("[[listener]]\nid = 'b'\nports = []", 10, "listener.b.ports", "names no port", "11112"),
    ("[[listener]]\nid = 'b'\nports = [5, '4-6']", 10, "listener.b.ports[2]", "twice", "once"),
    ("[[listener]]\nid = 'b'\nports = 5\naddress = 'localhost'", 11, "listener.b.address", "not an address", "127.0.0.1"),
    ("[[listener]]\nid = 'b'\nports = 5\nmax_pdu = 200000", 11, "listener.b.max_pdu", "too large", "131072 bytes"),
    ("[[destination]]\nid = 'x'", 8, "destination.x.address", "missing", "address ="),
    ("[[destination]]\nid = 'x'\naddress = 'h:104'", 10, "destination.x.address", "no host name", "own setting"),
    ("[[destination]]\nid = 'x'\npath = '/x'\naddress = 'h'", 10, "destination.x.path", "not for", 'type = "folder"'),
    ("[[destination]]\nid = 'x'\ntype = 'folder'\naddress = 'h'\npath = '/x'", 11, "destination.x.address", "not for", "leave"),
    ("[[destination]]\nid = 'x'\ntype = 'folder'\npath = 'x/y'", 11, "destination.x.path", "whole path", "/"),
    ("[[destination]]\nid = 'x'\naddress = 'h'\nproof = 'commitment'", 11, "destination.x.proof", "later", "readback"),
    ("[[destination]]\nid = 'x'\naddress = 'h'\nhours = ['19-6']", 11, "destination.x.hours[1]", "span", "19:00-06:30"),
    ("[[destination]]\nid = 'x'\naddress = 'h'\nhours = ['25:00-06:00']", 11, "destination.x.hours[1]", "span", "19:00"),
    ("[[destination]]\nid = 'x'\naddress = 'h'\nhours = ['6:00-06:00']", 11, "destination.x.hours[1]", "same", "whole day"),
    ("[[destination]]\nid = 'x'\naddress = 'h'\nfailover = 'pac'", 11, "destination.x.failover", "no destination", '"pacs"'),
    ("[[destination]]\nid = 'x'\naddress = 'h'\nfailover = 'x'", 11, "destination.x.failover", "x → x", "none"),
    ("[[rule]]\nid = 'r'\ndestinations = ['pacs', 'paks']", 10, "rule.r.destinations[2]", "no destination", '"pacs"'),
    ("[[rule]]\nid = 'r'\nmatch = { modality = 'CT' }", 8, "rule.r", "does nothing", "destinations ="),
    ("[[rule]]\nid = 'r'\nhold = true\nmatch = { modalty = 'CT' }", 11, "rule.r.match.modalty", "no condition", '"modality"'),
    ("[[rule]]\nid = 'r'\nhold = true\nmatch = { '08,3' = 'CT' }", 11, "rule.r.match.08,3", "no tag", "keyword"),
    ("[[rule]]\nid = 'r'\nhold = true\nmatch = { modality = true }", 11, "rule.r.match.modality", "a text", '"CT*"'),
    ("[[rule]]\nid = 'r'\nhold = true\nmatch = { modality = [] }", 11, "rule.r.match.modality", "empty list", "leave"),
    ("[[rule]]\nid = 'r'\nhold = true\nmatch = { any = { x = 1 } }", 11, "rule.r.match.any", "list of tables", "any = ["),
    ("[[rule]]\nid = 'r'\nhold = true\n[rule.match]\nnot = 3", 12, "rule.r.match.not", "a table", "not ="),
    ("[[rule]]\nid = 'r'\nhold = true\n[rule.match]\nall = [{ any = [\n{ prt = 1 } ] }]", 13,
     "rule.r.match.all[1].any[1].prt", "no condition", '"port"'),
    ("[[rule]]\nid = 'r'\nhold = true\nmatch = { port = 'x' }", 11, "rule.r.match.port", "no port", "2104..2111"),
    ("[[rule]]\nid = 'r'\nhold = true\nmatch = { SeriesNumber = '7..3' }", 11, "rule.r.match.SeriesNumber", "backwards", "3.."),
    ("[[rule]]\nid = 'r'\nhold = true\nmatch = { hours = '7-9' }", 11, "rule.r.match.hours", "span", "19:00"),
    ("[[rule]]\nid = 'r'\nhold = true\nmatch = { listener = 'inn' }", 11, "rule.r.match.listener", "no listener", '"in"'),
    ("[[rule]]\nid = 'r'\nhold = true\nmatch = { calling = 'ABCDEFGHIJKLMNOPQ' }", 11, "rule.r.match.calling", "17", "is it"),
    ("[[rule]]\nid = 'r'\nhold = true\nmatch = 'CT'", 11, "rule.r.match", "a table", "match ="),
    ("[spool]\npath = 'spool'", 9, "spool.path", "whole path", "/"),
    ("[spool]\nsize = -1", 9, "spool.size", "too small", "at least 0 bytes"),
    ("[spool]\nsize = 0xffffffffffffffffffffffff", 9, "spool.size", "bounds", "at most"),
    ("[spool]\npath = '/a'\nstate = '/a/b'", 10, "spool.state", "within the spool", "another"),
    ("[spool]\nkeep_max_days = 0.5", 9, "spool.keep_max_days", "shorter", "at least keep_max_days = 1"),
    ("[spool]\nuuid = 'x'", 9, "spool.uuid", "not an identifier", "spool check"),
    ("[control]\nrun = '/" + "x" * 100 + "'", 9, "control.run", "too long", "/run/dcmgate"),
    ("[alarm]\nmail_to = ['a@b', 'ab']", 9, "alarm.mail_to[2]", "not a mail", "name@host"),
    ("[alarm]\nmail_server = 'host'", 9, "alarm.mail_server", "host:port", "127.0.0.1:25"),
    ("[alarm]\nwebhooks = ['ftp://x']", 9, "alarm.webhooks[1]", "not a URL", "https"),
    ("[alarm]\nbacklog_minutes = [15, 10, 1440]", 9, "alarm.backlog_minutes", "that grow", "15, 240"),
    ("id = 'x'\nid = 'x'", 8, "id", "cannot be understood", "twice"),
    ("port = 1 2", 8, "port", "cannot be understood", "key = value"),
    ("port = [1,\n2", 9, "2", "cannot be understood", "not closed"),
]


@pytest.mark.parametrize(("added", "line", "key", "message", "mend"), BAD, ids=[f"{b[2]}-{b[3]}" for b in BAD])
def test_each_mistake_names_file_line_key_and_mend(added: str, line: int, key: str, message: str, mend: str) -> None:
    errors = load.check(SMALL + added + "\n", "site.toml")
    assert len(errors) == 1, "one mistake is one line: " + "; ".join(map(str, errors))
    error = errors[0]
    assert (error.file, error.line, error.key) == ("site.toml", line, key)
    assert message in error.message
    assert mend in error.mend
    with pytest.raises(ConfigError, match=r"site.toml:\d+: "):
        load.parse(SMALL + added + "\n", "site.toml")


def test_no_default_destination() -> None:
    errors = load.check(SMALL.replace("default = true", "required = true"), "x")
    assert [(e.line, e.key) for e in errors] == [(4, "destination.pacs.default")]
    assert 'default = true for "pacs"' in errors[0].mend


def test_a_setting_before_any_table_says_where_it_belongs() -> None:
    errors = load.check("keep_min_hours = 3\n" + SMALL, "x")
    assert [(e.line, e.key) for e in errors] == [(1, "keep_min_hours")]
    assert "[spool]" in errors[0].mend


def test_a_ring_of_failovers_is_one_finding_however_long() -> None:
    ring = "".join(f'[[destination]]\nid = "{a}"\naddress = "h"\nfailover = "{b}"\n' for a, b in ("ab", "bc", "ca"))
    tail = '[[destination]]\nid = "d"\naddress = "h"\nfailover = "a"\n'
    errors = load.check(SMALL + tail + ring, "x")
    assert [e.key for e in errors] == ["destination.a.failover"]
    assert "a → b → c → a" in errors[0].message


def test_all_mistakes_are_reported_in_the_order_of_the_file() -> None:
    text = SMALL + "[[peer]]\nid = 'x'\ntitels = 1\nidle_seconds = 0\n[spool]\nsize = 'big'\nkeep = 1\n"
    errors = load.check(text, "x")
    assert [e.key for e in errors] == ["peer.x.titels", "peer.x.idle_seconds", "spool.size", "spool.keep"]
    assert [e.line for e in errors] == sorted(e.line for e in errors)
    with pytest.raises(ConfigError, match=r"titels.*3 more: `dcmgate config check`"):
        load.parse(text, "x")


def test_listeners_may_share_a_port_on_different_addresses() -> None:
    text = SMALL.replace('"in"', '"in"\naddress = "10.0.0.1"') + '[[listener]]\nid = "b"\naddress = "10.0.0.2"\n'
    assert load.check(text, "x") == []
    assert load.check(text.replace('"10.0.0.2"', '"::"'), "x")[0].key == "listener.b.ports"


def test_a_tag_is_judged_by_whoever_knows_the_dictionary() -> None:
    text = SMALL + "[[rule]]\nid = 'r'\nhold = true\nmatch = { SeriesDescripton = 'x' }\n"
    assert load.check(text, "x") == []
    asked: list[str] = []

    def tag_problem(name: str) -> str:
        asked.append(name)
        return 'did you mean "SeriesDescription"?'

    errors = load.check(text, "x", tag_problem=tag_problem)
    assert asked == ["SeriesDescripton"]
    assert [(e.line, e.key) for e in errors] == [(11, "rule.r.match.SeriesDescripton")]
    assert errors[0].mend == 'did you mean "SeriesDescription"?'


def test_a_file_that_is_none(tmp_path: Path) -> None:
    cases = {"missing.toml": "no such file", "folder": "cannot be read", "latin.toml": "not UTF-8", "long.toml": "longer than"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.toml").write_bytes(b"a = 1\nb = '\xfc'\n")
    (tmp_path / "long.toml").write_bytes(b"#" * (load.LARGEST_FILE + 1))
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=message) as caught:
            load.load(str(tmp_path / name))
        assert caught.value.file == str(tmp_path / name) and caught.value.mend
    with pytest.raises(ConfigError):
        load.load("nul\0byte")


def test_a_byte_order_mark_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load.load(str(tmp_path / "bom.toml")).listeners[0].id == "in"


def test_the_spool_is_found_in_a_bad_file() -> None:
    assert load.spool_path("[spool]\npath = '/srv/spool'\n[[destination]]\nport = 'x'\n") == "/srv/spool"
    assert load.spool_path("[spool]\nsize = 3x\npath = \"/srv/spool\"   # here\n[other]\npath='/no'\n") == "/srv/spool"
    assert load.spool_path("[[destination]]\npath = '/no'\n[broken\n") == Spool().path
    assert load.spool_path("[spool]\npath = 3\n") == Spool().path
    assert load.spool_path("spool = 3") == Spool().path
    spool, control = load.survivors("[spool]\nuuid = 'u'\nstate = '/s'\n[control]\nrun = '/r'\n= broken")
    assert (spool.uuid, spool.state, control.run) == ("u", "/s", "/r")


def test_remarks_name_what_is_allowed_and_perhaps_not_meant() -> None:
    config = Config(listeners=(Listener(id="in"),), destinations=(Destination(id="a", default=True, required=False),
                                                                  Destination(id="b", required=False)))
    assert [r.split(":")[0] for r in remarks(config)] == [
        'destination "b" gets nothing', "nobody can send", "no destination is required"]
    good = Config(listeners=(Listener(id="in"),), peers=(Peer(id="p"),), destinations=(Destination(id="a", default=True),),
                  rules=(Rule(id="r", destinations=("a",)),))
    assert remarks(good) == []


def test_lines_are_found_through_every_kind_of_toml() -> None:
    text = '''a.b = """
x = 1 \\""" [no]
"""
'q"' = ["]", # ]
  { k = "}", z = [1,
  2] }]
[t."d.e"]
f = \'\'\'it's \'\'\'
[[t.r]]
g = 1979-05-27 07:32:00 # time
[[t.r]]
[t.r.s]
h = 2
'''
    lines = find_lines(text)
    expected = {("a",): 1, ("a", "b"): 1, ('q"',): 4, ('q"', 0): 4, ('q"', 1): 5, ('q"', 1, "k"): 5, ('q"', 1, "z", 1): 6,
                ("t", "d.e"): 7, ("t", "d.e", "f"): 8, ("t", "r", 0): 9, ("t", "r", 0, "g"): 10, ("t", "r", 1): 11,
                ("t", "r", 1, "s", "h"): 13}
    assert {path: lines.get(path) for path in expected} == expected


# --- any text ------------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from([
    "[[listener]]", "[[peer]]", "[[destination]]", "[[rule]]", "[spool]", "[alarm]", "[control]", "[limits]", "[rule.match]",
    "[", "]", "{", "}", "=", ",", "\n", " ", '"', "'", '"""', "#", ".", "id", "ports", "titles", "match", "any", "not", "hours",
    "path", "default", "true", "1", "-1", "1e999", "nan", "0x" + "f" * 5000, "9" * 5000, "1979-13-45", '"a"', '["a"]', '"7..3"',
    '"10.0.0.1/8"', "{ any = [{}] }", "backlog_minutes", "run", "failover", "id = 'a'\n", "\\", "\0", "\ud800", "é",
])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=200) | st.lists(PIECES, max_size=40).map("".join) | st.lists(PIECES, max_size=40).map(" ".join))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    try:
        config = load.parse(text, "any.toml")
    except ConfigError as e:
        assert e.file == "any.toml" and e.line >= 1 and e.key and e.message and e.mend
        assert "\n" not in str(e)
    else:
        assert isinstance(config, Config)
    assert isinstance(load.spool_path(text), str)


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["any", "not", "modality"]), inner, max_size=3),
    max_leaves=8)
KEYS = st.sampled_from(sorted({f for kind in (Listener, Peer, Destination, Rule, Spool) for f in kind.__dataclass_fields__}))
TABLES = st.sampled_from(["listener", "peer", "destination", "rule", "spool", "alarm", "limits", "x"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(TABLES, st.one_of(VALUES, st.lists(st.dictionaries(KEYS, VALUES, max_size=4), max_size=3)), max_size=4))
def test_any_document_is_judged_without_any_other_error(document: dict[str, object]) -> None:
    from appliance.config.page import toml_value
    text = "".join(f"{key} = {toml_value(value)}\n" for key, value in document.items())
    text = text.replace("-inf", "-1.0").replace("inf", "1.0")
    for error in load.check(text, "any.toml"):
        assert 1 <= error.line <= max(1, text.count("\n")) and error.key and error.mend
