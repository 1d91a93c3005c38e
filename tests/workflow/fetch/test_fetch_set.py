"""Published files arrive whole or not at all, whatever the server does and whenever the download is killed."""

import hashlib
import io
import lzma
import os
import random
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from gnnscale.contract.errors import BadFile, UserError
from tests.support.corpus import ENV, ROOT
from tests.support.file_server import HTML, proxying, serving
from workflow.config.published_files import PublishedFile, PublishedSet
from workflow.fetch import download, fetch_set, http_ranges, partial_file

CONTENT = random.Random(0).randbytes(1_000_003)
RANGE = 1 << 16


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Short waits, and ranges so small that a small file has many."""
    monkeypatch.setattr(download, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(partial_file, "RANGE_BYTES", RANGE)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with serving() as made:
        made.files["a.h5"] = CONTENT
        yield made


def md5(content):
    return hashlib.md5(content).hexdigest()


def published(server, *names, checksum=True, becomes=None, size=None):
    """Describe files of the server; `becomes` unpacks the first."""
    listed = [
        PublishedFile(
            *(name, f"{server.url}/{name}", 0.001, size),
            md5=md5(server.files.get(name, b"")) if checksum else "",
            becomes=becomes or "",
        )
        for name in names or ("a.h5",)
    ]
    return PublishedSet("toy", "https://example.org/toy", "a test", tuple(listed))


def fetch(made, folder, report=lambda transfer: None):
    fetch_set.fetch(made, folder, report)


def names_in(folder):
    return {path.name for path in folder.iterdir()} - {fetch_set.LOCK_NAME}


def fails(made, folder, *words, kind=UserError):
    with pytest.raises(kind) as told:
        fetch(made, folder)
    for word in words:
        assert word in str(told.value), str(told.value)
    assert not any((folder / file.final_name).exists() for file in made.files)
    return str(told.value)


# ------------------------------------------------------------------------------------------------------ what arrives
@pytest.mark.parametrize("odd", ["", "no-ranges", "busy", "too-much"])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_file_arrives_as_it_is(server, tmp_path, odd, checksum):
    server.odd["a.h5"] = odd
    fetch(published(server, checksum=checksum), tmp_path)
    assert (tmp_path / "a.h5").read_bytes() == CONTENT and names_in(tmp_path) == {"a.h5"}


def test_many_files_and_ranges_of_one_side_by_side(server, tmp_path):
    server.files |= {f"{k}.h5": random.Random(k).randbytes(RANGE * k + 1) for k in range(5)}
    seen = []
    fetch(published(server, *server.files), tmp_path, lambda transfer: seen.append(transfer.received))
    assert all((tmp_path / name).read_bytes() == content for name, content in server.files.items())
    assert server.asked["a.h5"] == 1 + -(-len(CONTENT) // RANGE) and seen == sorted(seen)
    fetch(published(server, *server.files), tmp_path)
    assert server.asked["a.h5"] == 1 + -(-len(CONTENT) // RANGE), "nothing is fetched twice"


def test_a_redirect_is_followed(server, tmp_path):
    server.files["moved.h5"], server.odd["moved.h5"] = b"a.h5", "redirect"
    made = published(server, "moved.h5")
    fetch(made._replace(files=(made.files[0]._replace(md5=md5(CONTENT)),)), tmp_path)
    assert (tmp_path / "moved.h5").read_bytes() == CONTENT


def test_the_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch):
    with proxying() as (proxy, passed):
        monkeypatch.setenv("http_proxy", proxy)
        fetch(published(server), tmp_path)
    assert (tmp_path / "a.h5").read_bytes() == CONTENT
    assert set(passed) == {f"{server.url}/a.h5"} and len(passed) == server.asked["a.h5"]


def test_a_connection_that_is_cut_again_and_again_is_continued(server, tmp_path):
    server.cut_after["a.h5"] = 30_000
    fetch(published(server), tmp_path)
    assert (tmp_path / "a.h5").read_bytes() == CONTENT
    assert server.sent["a.h5"] < len(CONTENT) + 2 * RANGE, "each byte is sent once"


# ----------------------------------------------------------------------------------------------------------- unpacking
def pack(members, mode="w"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            else:
                member.type, member.linkname = tarfile.SYMTYPE, content
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return packed.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_becomes_a_folder(server, tmp_path, mode):
    server.files["t.tar"] = pack({"deep/0.extxyz": CONTENT, "README": b"x"}, mode)
    fetch(published(server, "t.tar", becomes="t"), tmp_path)
    assert (tmp_path / "t" / "deep" / "0.extxyz").read_bytes() == CONTENT and names_in(tmp_path) == {"t"}


@pytest.mark.parametrize("by_hand", [False, True])
def test_xz_becomes_the_file_in_it(server, tmp_path, by_hand):
    server.files["1000.xz"] = lzma.compress(CONTENT)
    if by_hand:
        (tmp_path / "1000.xz").write_bytes(server.files["1000.xz"])
    fetch(published(server, "1000.xz", becomes="1000.hdf5"), tmp_path)
    assert (tmp_path / "1000.hdf5").read_bytes() == CONTENT
    assert (server.asked["1000.xz"] == 0) == by_hand and (tmp_path / "1000.xz").exists() == by_hand


@pytest.mark.parametrize(
    "members", [{"../evil": b"x"}, {"/evil": b"x"}, {"a/../../evil": b"x"}, {"link": "/etc"}], ids=str
)
def test_an_archive_that_leads_outside_is_refused(server, tmp_path, members):
    server.files["t.tar"] = pack({"good": b"x"} | members)
    fails(published(server, "t.tar", becomes="t"), tmp_path / "in", "path outside of it")
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.xz"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_archive_that_is_cut_off_is_told(server, tmp_path, name, share):
    whole = lzma.compress(CONTENT) if name == "t.xz" else pack({"a": CONTENT}, "w:gz" if "gz" in name else "w")
    server.files[name] = whole[: int(share * len(whole))] or b"?"
    fails(published(server, name, becomes="t"), tmp_path, f"{name}: cannot be unpacked", kind=BadFile)


# ------------------------------------------------------------------------------------------------------------- faults
@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ("lies", "after 1,000,003 bytes; this server cannot continue"),
        ("lies-in-ranges", "at byte 1,000,003 of 1,100,003"),
        ("html", "sends a web page in place of the file"),
        ("challenge", "sends 202 Accepted in place of the file"),
        ("html-as-file", "checksum (md5) is"),
        ("loop", "sends us on in a circle"),
        ("wrong-range", "were asked for, and the server sends"),
        ("forbidden", "answers 403 Forbidden: it may ask for a login"),
        ("gone", "answers 404 Not Found"),
        ("down", "answers 503 Service Unavailable; given up after 6 tries"),
    ],
)
def test_what_a_server_does_wrong_is_told(server, tmp_path, odd, words):
    server.odd["a.h5"] = odd
    made = published(server)
    told = fails(made, tmp_path, words, server.url)
    assert len(told.splitlines()) <= 4
    server.odd.clear()
    fetch(made, tmp_path)
    assert (tmp_path / "a.h5").read_bytes() == CONTENT, "the same command goes on when the server is in order"


def test_a_web_page_is_found_without_a_checksum_too(server, tmp_path):
    server.odd["a.h5"] = "html-as-file"
    fails(published(server, checksum=False), tmp_path, "web page in place of the file")


def test_a_file_of_unknown_size_needs_a_checksum(server, tmp_path):
    """Where the connection just ends, nothing else shows that all of it came."""
    server.odd["a.h5"] = "no-size"
    fails(published(server, checksum=False), tmp_path, "nothing shows when the file is whole")
    server.cut_after["a.h5"] = 1000
    fails(published(server), tmp_path, "checksum (md5) is")
    server.cut_after.clear()
    fetch(published(server), tmp_path)
    assert (tmp_path / "a.h5").read_bytes() == CONTENT


def test_a_wrong_checksum_is_told_and_fetched_anew(server, tmp_path):
    made = published(server)
    server.files["a.h5"] = CONTENT[:-1] + b"?"
    fails(made, tmp_path, md5(CONTENT), md5(server.files["a.h5"]), "https://example.org/toy")
    assert names_in(tmp_path) == set(), "a file of wrong content is not kept"
    server.files["a.h5"] = CONTENT
    fetch(made, tmp_path)


def test_another_size_than_published_is_told_before_it_is_fetched(server, tmp_path):
    fails(published(server, size=77), tmp_path, "1,000,003 bytes; 77 are published")
    assert server.asked["a.h5"] == 1 and server.sent["a.h5"] <= 1


def test_a_file_that_changes_meanwhile_is_not_mixed(server, tmp_path):
    server.odd["a.h5"] = "changes"
    fails(published(server, checksum=False), tmp_path, "another one than when the download began")
    assert names_in(tmp_path) == set()


def test_a_fault_of_one_file_does_not_stop_the_others(server, tmp_path):
    server.files |= {"b.h5": b"b", "c.h5": b"c"}
    server.odd |= {"a.h5": "gone", "c.h5": "forbidden"}
    made = published(server, "a.h5", "b.h5", "c.h5")
    with pytest.raises(UserError) as told:
        fetch(made, tmp_path)
    assert "2 files could not be fetched" in str(told.value) and "404" in str(told.value) and "403" in str(told.value)
    assert names_in(tmp_path) == {"b.h5"}


def test_no_network_is_told_at_once(tmp_path, monkeypatch):
    file = PublishedFile("a.h5", "http://nowhere.invalid/a.h5", 0.001)
    made = PublishedSet("toy", "page", "a test", (file,) * 3)
    told = fails(made, tmp_path, "nowhere.invalid: cannot be reached from", kind=http_ranges.NoNetwork)
    assert len(told.splitlines()) == 1
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    told = fails(made, tmp_path, "through the proxy 127.0.0.1:9 (connection refused)", kind=http_ranges.NoNetwork)
    assert "secret" not in told


def test_a_proxy_that_refuses_is_told(tmp_path, monkeypatch):
    file = PublishedFile("a.h5", "https://nowhere.invalid/a.h5", 0.001)
    with proxying() as (proxy, _):
        monkeypatch.setenv("https_proxy", proxy)
        made = PublishedSet("toy", "page", "a test", (file,))
        fails(made, tmp_path, "nowhere.invalid: the proxy http://127.0.0.1:", "refuses", kind=http_ranges.NoNetwork)


def test_an_encrypted_connection_is_not_left():
    handler = http_ranges.NoDowngrade()
    request = http_ranges.urllib.request.Request("https://a.org/x")
    with pytest.raises(UserError, match="not encrypted"):
        handler.redirect_request(request, None, 302, "", {}, "http://a.org/x")
    assert handler.redirect_request(request, None, 302, "", {}, "https://b.org/x").full_url == "https://b.org/x"


def test_a_full_disk_is_told_before_anything_is_fetched(server, tmp_path):
    made = published(server)
    fails(made._replace(files=(made.files[0]._replace(gigabytes=1e9),)), tmp_path, "GB are free", "--to DIR")
    assert not server.asked


def test_a_file_that_lies_there_is_checked(server, tmp_path):
    (tmp_path / "a.h5").write_bytes(CONTENT[:1000])
    with pytest.raises(UserError, match=r"a\.h5 is not the published file: .*md5"):
        fetch(published(server), tmp_path)
    assert (tmp_path / "a.h5").read_bytes() == CONTENT[:1000], "what somebody put there is not touched"


def test_two_at_a_time_are_refused(server, tmp_path):
    def again(transfer):
        with pytest.raises(UserError, match="another `data fetch`"):
            fetch(published(server), tmp_path)

    fetch(published(server), tmp_path, again)


# ----------------------------------------------------------------------------------------------------------- is killed
PROGRAM = """
import sys
from pathlib import Path
from workflow.config.published_files import PublishedFile, PublishedSet
from workflow.fetch import fetch_set, partial_file
partial_file.RANGE_BYTES = {RANGE}
file = PublishedFile("a.h5", "{url}/a.h5", 0.001, None, "{md5}")
fetch_set.fetch(PublishedSet("toy", "page", "test", (file,)), Path("{folder}"), lambda transfer: None)
"""


@pytest.mark.parametrize("checksum", [True, False])
def test_a_killed_download_continues(server, tmp_path, checksum):
    """No byte of a finished range is fetched again, and nothing is seen under the final name before the end."""
    server.seconds_per_block = 0.02
    made = published(server, checksum=checksum)
    text = PROGRAM.format(RANGE=RANGE, url=server.url, md5=made.files[0].md5, folder=tmp_path)
    process = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, env=os.environ | ENV)
    while server.sent["a.h5"] < 600_000:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names_in(tmp_path) == {".a.h5.part", ".a.h5.ranges"}
    server.seconds_per_block, before = 0.0, server.sent["a.h5"]
    fetch(made, tmp_path)
    assert (tmp_path / "a.h5").read_bytes() == CONTENT and names_in(tmp_path) == {"a.h5"}
    assert server.sent["a.h5"] - before < len(CONTENT) - 300_000


def test_a_range_whose_line_was_being_written_counts_as_missing(tmp_path):
    """A kill may leave 65536 of 655360."""
    remote = http_ranges.RemoteFile("url", len(CONTENT), True, "")
    with partial_file.PartialFile(tmp_path / "a.h5", remote) as part:
        part.finish_range(2 * RANGE)
    with open(part.record, "a") as record:
        record.write(str(RANGE))
    missing = partial_file.PartialFile(tmp_path / "a.h5", remote).missing_ranges()
    assert (RANGE, 2 * RANGE) in missing and (2 * RANGE, 3 * RANGE) not in missing


def test_a_file_that_changed_since_the_kill_begins_anew(server, tmp_path):
    made = published(server, checksum=False)
    remote = http_ranges.ask(made.files[0].url, "page")
    with partial_file.PartialFile(tmp_path / "a.h5", remote._replace(tag='"old"')) as part:
        part.write(b"?" * RANGE, 0)
        part.finish_range(0)
    fetch(made, tmp_path)
    assert (tmp_path / "a.h5").read_bytes() == CONTENT


def test_a_kill_while_unpacking_leaves_nothing_under_the_final_name(server, tmp_path):
    server.files["t.tar"] = pack({"a": CONTENT})
    (tmp_path / ".t.unpacking").mkdir()
    (tmp_path / ".t.unpacking" / "half").write_bytes(b"x")
    fetch(published(server, "t.tar", becomes="t"), tmp_path)
    assert names_in(tmp_path) == {"t"} and [path.name for path in (tmp_path / "t").iterdir()] == ["a"]


def test_the_commands_for_another_machine_do_the_same(server, tmp_path):
    made = published(server)
    commands = fetch_set.curl_commands(made, tmp_path / "a b")
    subprocess.run(["bash", "-ec", "\n".join(commands)], check=True, capture_output=True)
    assert (tmp_path / "a b" / "a.h5").read_bytes() == CONTENT and HTML not in CONTENT
    fetch(made, tmp_path / "a b")
