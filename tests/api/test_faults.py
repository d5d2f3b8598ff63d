"""A fault of the server reads as that, in the shape of errors; what the system says of a file reads as the file's."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

FAULTS = [kind("planted") for kind in (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, MemoryError)]
FAULTS += [
    RecursionError("planted"),
    ZeroDivisionError("planted"),
    OverflowError("planted"),
    AssertionError("planted"),
    EOFError("planted"),
]
FAULTS += [UnicodeEncodeError("utf-8", "planted", 0, 1, "planted"), ImportError("planted")]
SYSTEM_FAULTS = [OSError("planted"), OSError(errno.ENOSPC, "planted", "file"), OSError(errno.EMFILE, "planted", "file")]


def raising(error: BaseException) -> Callable[[], Any]:
    def raise_it() -> Any:
        raise error

    return raise_it


@pytest.mark.parametrize("error", [*FAULTS, *SYSTEM_FAULTS], ids=lambda error: f"{type(error).__name__}-{getattr(error, 'errno', '')}")
@pytest.mark.parametrize(("lang", "words"), [("en", "the trainer has failed"), ("zh_CN", "训练器出错")])
def test_a_fault_of_the_server_is_a_500_in_the_shape_of_errors(server, monkeypatch, caplog, error, lang, words):
    monkeypatch.setattr(server.host, "checkpoints", raising(error))
    answer = server.get("options", lang=lang)
    (problem,) = answer.json()["problems"]
    assert answer.status_code == 500
    assert problem["message"].startswith(words) and type(error).__name__ in problem["message"] and "planted" in problem["message"]
    assert problem["fix"] and problem["path"] == ""
    assert [record.levelname for record in caplog.records if record.exc_info and record.exc_info[1] is error] != []
    monkeypatch.undo()
    assert server.get("options").status_code == 200


@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP, errno.ENOENT])
def test_a_file_that_the_system_refuses_is_named_and_is_the_requests_fault(server, monkeypatch, code):
    monkeypatch.setattr(server.host, "checkpoints", raising(OSError(code, "planted", "a/b.png")))
    answer = server.get("options")
    assert answer.status_code == 400
    assert answer.json()["problems"][0]["message"] == "a/b.png cannot be used (planted)."
