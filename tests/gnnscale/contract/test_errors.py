"""User errors carry a message, hints and a kind; errors of the system become words, whatever a library left out of them."""

import errno
import os
import pickle

import pytest

from gnnscale.contract import exit_codes
from gnnscale.contract.errors import BadFile, UserError, describe_os_error, print_error, reason_of


def test_an_error_prints_its_message_and_a_line_for_each_hint(capsys):
    print_error(UserError("x.yaml: no site", "name one", "or write one"), "gnnscale")
    assert capsys.readouterr().err == "gnnscale: x.yaml: no site\n  name one\n  or write one\n"


def test_nothing_of_an_error_is_lost_on_its_way():
    error = UserError("full", "free some space", kind="disk-full")
    assert str(error) == "full\nfree some space"
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.message, copy.hints, copy.kind) == (error.message, error.hints, error.kind)
    assert isinstance(BadFile("cut"), UserError) and BadFile("cut").kind == "data"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOENT, "No such file or directory", "a.txt"), "a.txt: no such file or directory"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "input/output error"),
        (OSError("HDF5: truncated"), "HDF5: truncated"),
        (OSError(), "OSError"),
        (PermissionError(errno.EACCES, None, "b.txt"), "b.txt: permission denied"),
    ],
)
def test_every_error_of_the_system_has_words(error, words, capsys):
    assert describe_os_error(error) == words and reason_of(error)
    print_error(error, "error")
    assert capsys.readouterr().err == f"error: {words}\n"


def test_a_signal_has_the_code_that_a_shell_reports():
    assert [exit_codes.to_exit_code(code) for code in (0, 64, -9, -15)] == [
        0,
        64,
        exit_codes.MEMORY,
        exit_codes.TERMINATED,
    ]
