"""Attacks on every route, by requests and by files: each is refused or answered, never by a 500, and the status comes meanwhile."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from lora_trainer.jobs.folder import RunFolder
from tests.api.conftest import V1, Server, small_config
from tests.api.test_guard import EVERY
from tests.api.test_wrong_values import WRONG, mutations

LONGEST_STATUS = 1.0
"""Seconds: a page that waits longer shows the server as gone. Nothing here may hold the interpreter that long."""
SLOWEST_ANSWER = 120
LONG, DEEP, SURROGATE = "x" * 5000, 100_000, "\\ud800"
BACKTRACKING = (
    "(([a-z_.0-9]+)+)+$X",
    "(a|a|a|_|.)*$X",
    "(.*.*.*.*.*){20}X",
    "^(_|\\w)+\\d+(\\w+_?)*=$",
    "([^X]{1,30}){1,30}X",
    "(?=(a+)+$)",
    "(a)\\1",
)
BAD_NAMES = (LONG, "a%00b", "%2e%2e", "a%2fb", "..%5cwindows", "%ed%a0%80", "nul", "CON.txt", "%0a", "a:b", "~", "%F0%9F%98%80")
FILES = "runs/moon/files/"


class Attack:
    """One request, and which answers are fit for it."""

    def __init__(self, name: str, ask: Callable[[httpx.Client], httpx.Response], *statuses: int) -> None:
        self.name, self.ask, self.statuses = name, ask, statuses

    def wrong(self, client: httpx.Client) -> str:
        """What is wrong with the answer; "" for nothing."""
        try:
            answer = self.ask(client)
        except httpx.HTTPError as error:
            return f"{self.name}: {error!r}"
        if answer.status_code >= 500 or (self.statuses and answer.status_code not in self.statuses):
            return f"{self.name}: {answer.status_code} {answer.text[:200]}"
        return "" if answer.status_code < 400 or _has_shape_of_errors(answer) else f"{self.name}: {answer.status_code} {answer.text[:200]}"


def _has_shape_of_errors(answer: httpx.Response) -> bool:
    try:
        problems = answer.json()["problems"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(problems) and all({"path", "message", "fix"} <= problem.keys() for problem in problems)


def get(path: str, *statuses: int, **options: Any) -> Attack:
    return Attack(f"GET {path[:70]} {str(options)[:90]}", lambda client: client.get(path, **options), *statuses)


def post(path: str, body: Any, *statuses: int, **options: Any) -> Attack:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Attack(f"POST {path[:40]} {content[:90]!r}", lambda client: client.post(path, content=content, **options), *statuses)


def address_of(path: str) -> str:
    return path.lstrip("/").replace("{run}", "moon").replace("{path:path}", "x.png").replace("{name}", "mika").replace("{work}", "1")


POSTS = [
    address_of(path).replace("{tool}", "resize")
    for method, path in EVERY
    if method == "POST" and not path.startswith(("/uploads", "/folders"))
]


def raw(server: Server, request: bytes) -> Callable[[httpx.Client], httpx.Response]:
    """A request that no client would send."""

    def ask(_: httpx.Client) -> httpx.Response:
        with socket.create_connection(("127.0.0.1", server.port), timeout=SLOWEST_ANSWER) as connection:
            connection.sendall(request)
            with connection.makefile("rb") as answer:
                return httpx.Response(int(answer.readline().split()[1]))

    return ask


def safetensors(path: Path, header: bytes, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    return path


def foreign_pages(server: Server) -> Iterator[Attack]:
    """Other sites' pages in this computer's browser: DNS rebinding, CSRF, other ports, proxies' headers."""
    port = server.port
    rebound = (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.168.1.2",
        "0.0.0.0",
        "[::2]",
        "",
        "2130706433",
    )
    for host in rebound:
        yield get("folders", 403, params={"path": "/root"}, headers={"Host": host})
    yield post(
        "runs/moon/name",
        {"name": "stolen"},
        403,
        headers={"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
    )
    for method, path in EVERY:
        address = address_of(path).replace("{tool}", "resize")
        for site in ("cross-site", "same-site"):
            yield Attack(
                f"{site} {method} {path}",
                lambda client, m=method, a=address, s=site: client.request(m, a, headers={"Sec-Fetch-Site": s}),
                403,
            )
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port + 1}", f"http://localhost:{port}", "http://[", "file://", "\\"):
        yield post("runs/moon/name", {"name": "stolen"}, 403, headers={"Origin": origin})
    proxied = {
        "Origin": "http://evil.example",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "host=evil.example",
        "X-Host": "evil.example",
    }
    yield post("runs/moon/name", {"name": "stolen"}, 403, headers=proxied)


def addresses() -> Iterator[Attack]:
    """Names and numbers in addresses."""
    for name in BAD_NAMES:
        yield get(f"runs/{name}")
        yield get(FILES + name, 403, 404)
        yield get(f"uploads/{name}")
    for query in ({"after": "9" * 5000}, {"after": "-1"}, {"after": "٣"}, {"limit": "x"}):
        yield get("runs/moon/events", 400, params=query)
    for offset in ("9" * 5000, "-1", "²", "9" * 11):
        yield Attack(
            f"offset {offset[:9]}",
            lambda client, o=offset: client.post("uploads/mika", params={"file": "a.png", "offset": o}, content=b"x"),
            400,
        )
    for file in (
        LONG + ".png",
        "../../a.png",
        "a/../../b.png",
        "nul.png",
        "a\0.png",
        "/etc/a.png",
        "C:\\a.png",
        "a/" * 3000 + "a.png",
        ".ssh",
    ):
        yield Attack(
            f"upload {file[:20]!r}", lambda client, f=file: client.post("uploads/mika", params={"file": f}, content=b"x"), 400, 404
        )
    for method in ("PUT", "PATCH", "TRACE", "OPTIONS"):
        yield Attack(method, lambda client, m=method: client.request(m, "status"), *((204,) if method == "OPTIONS" else (405,)))
    yield get("no/such/address", 404)
    for file in ("../x.png", "nul.png", LONG + ".png", "x.exe", ""):
        yield post("folders", b"x", 400, 404, params={"path": str(Path.cwd()), "file": file})


def single_paths(folder: Path) -> Iterator[Attack]:
    """Paths in requests: other computers, devices, what waits for ever, links to themselves."""
    network = (
        "\\\\evil.example\\share\\x.png",
        "//evil.example/share/x.png",
        "/\\evil.example\\x.png",
        "\\\\?\\C:\\x.png",
        "\\\\.\\pipe\\x",
    )
    devices = ("nul", "C:\\x\\CON.png", "COM1", "lpt9.txt", "\\??\\C:\\x", "/dev/zero", "/dev/stdin", "/proc/kmsg", "/sys/x", "conin$")
    for text in (*network, *devices):
        yield get("thumbnail", 403, params={"path": text})
        yield get("folders", 403, params={"path": text})
        yield post("folders", b"x", 403, params={"path": text, "file": "x.png"})
    for text in (network[0], devices[0]):
        yield post("caption", {"path": text, "text": "x"}, 403)
        yield post("network/info", {"file": text}, 403)
    names = (
        "pipe.png",
        "socket.png",
        "loop.png",
        "link-to-pipe.png",
        "bomb.png",
        "cut.png",
        "empty.png",
        "text.png",
        LONG,
        "~nobody-at-all/x.png",
        "",
    )
    for name in names:
        path = name if name.startswith("~") else str(folder / name)
        yield get("thumbnail", 400, 403, 404, params={"path": path})
        yield post("network/edit", {"file": str(folder / "deep.safetensors"), "preview": path, "out": "new"}, 202, 400, 403, 404)
    for name in (
        "pipe.safetensors",
        "deep.safetensors",
        "long.safetensors",
        "wrong.safetensors",
        "words.safetensors",
        "pipe.ckpt",
        "loop.png",
    ):
        yield post("network/info", {"file": str(folder / name)}, 400)
        yield post("network/settings", {"file": str(folder / name)}, 400)
    for body in ({"files": []}, {"files": ["x"] * 10_000}, {"file": "x", "out": "/"}, {"file": "x", "out": ".."}):
        yield post("network/merge", {"out": "x", **body}, 400, 404)


def bodies() -> Iterator[Attack]:
    """Bodies of every POST: deep, no JSON, no object, half characters, endless numbers."""
    wrong = (
        b"[" * DEEP,
        b'{"config":' * DEEP,
        b'{"config": {"data": ' + b"[" * 900 + b"]" * 900 + b"}}",
        b'{"config": {"data": {"trigger_word": "' + SURROGATE.encode() + b'"}}}',
        b'{"config": {"data": {"train_data_dir": "/a\\u0000b"}}}',
        b'{"config": {"seed": NaN, "x": 1e999}}',
        b'{"config": {"seed": ' + b"9" * 400 + b"}}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\xff\xfe\x00",
        b"null",
        b'"x"',
    )
    for number, path in enumerate(POSTS):
        for body in (wrong[0], wrong[2], wrong[3 + number % 8]):
            yield post(path, body, 400)
    yield post("check", b'{"x": "' + b"y" * (9 << 20) + b'"}', 413)
    for toml in (
        "a=" + "[" * DEEP,
        ".".join("a" * 20_000) + "=1",
        "#" + "x" * 3_000_000,
        "[" * 5000,
        "".join(f"[a.b{n}]\n" for n in range(3000)),
        "\\",
        'a = "\\ud800"',
    ):
        yield post("config", {"toml": toml}, 400)
    for kind in (LONG, [], {}, None, 5, True):
        yield post("wizard", {"config": {}, "subject": kind}, 400)


def patterns(pictures: Path) -> Iterator[Attack]:
    """Configs with patterns that backtrack, and texts that ours could."""
    for pattern in BACKTRACKING:
        for option in ("include", "exclude"):
            yield post("check", {"config": small_config(pictures, **{f"network__{option}": [pattern]})})
    yield post("check", {"config": small_config(pictures, network__include=["a"] * 5000)}, 400)
    yield post("check", {"config": small_config(pictures, network__include=["(" * 900 + ")" * 900, "a{99999999999}"])}, 400)
    for option in ("network__dim", "network__down_lr_weight", "data__resolution", "optimizer__unet_lr"):
        yield post("check", {"config": small_config(pictures, **{option: "9" * 1_000_000})}, 200, 400)
    for option in ("data__caption_prefix", "data__trigger_word", "data__caption_suffix"):
        yield post("batches", {"config": small_config(pictures, **{option: "9" * 20_000})}, 200, 400)
    yield post("check", {"config": small_config(pictures, optimizer__args="-" * 200_000 + "1")})


def configs(folder: Path, pictures: Path) -> Iterator[Attack]:
    """Configs with files that wait, are deep or large."""
    for name in ("pipe.toml", "deep.toml", "large.toml", "deep.json", "pipe.json", "socket.png", "loop.png"):
        for option in ("data__dataset_config", "data__in_json", "sample__prompt_file", "network__network_weights"):
            yield post("check", {"config": small_config(pictures, **{option: str(folder / name)})})
    for place in ("/proc", "/proc/self", "/sys"):
        yield post("pictures", {"config": small_config(place)}, 400, 403)
    for place in (str(folder), str(folder / "loop"), LONG, "\\\\evil.example\\share", "~nobody-at-all", "/dev", "nul"):
        for path in ("pictures", "captions", "batches"):
            yield post(path, {"config": small_config(place)})
    for option in ("model__pretrained_model_name_or_path", "model__vae", "save__output_dir", "network__base_weights", "data__mask_dir"):
        for value in (LONG, str(folder / "pipe.safetensors"), "~nobody-at-all/x", [LONG], 5, [[]], {}):
            yield post("check", {"config": small_config(pictures, **{option: value})})


def values(pictures: Path, odd: Path) -> Iterator[Attack]:
    """Bodies in which one value is of another kind, too large or too long; no run can start, since no folder is named."""
    picture, file = str(next(pictures.rglob("*.png"))), str(odd / "wrong.safetensors")
    documents: dict[str, dict[str, Any]] = {
        "caption": {"path": picture + "x", "text": "a", "instead_of": "b"},
        "captions": {"config": small_config(pictures), "epoch": 1},
        "pictures": {"config": {"data": {"train_data_dir": str(pictures), "crops": {"a.png": [0, 0, 1, 1]}, "leave_out": ["a.png"]}}},
        "batches": {"config": {}},
        "config": {"toml": "seed = 1"},
        "check": {"toml": "seed = 1"},
        "wizard": {"config": {}, "subject": "object", "vram": 8.0, "typed": ["network.dim"]},
        "runs": {"config": {}},
        "rate": {"config": {}, "steps": 10},
        "runs/moon/control": {"command": "change", "changes": {"optimizer.learning_rate": 1e-4}},
        "runs/moon/resume": {"epochs": 1, "changes": {"optimizer.learning_rate": 1e-4}},
        "runs/moon/use": {"epoch": 1, "weight": 0.8},
        "grid": {"run": "moon", "prompt": "a", "weights": [0.8], "epochs": [1], "seed": 1},
        "uploads": {"take_back": ["a.png"]},
        "network/info": {"file": file, "model": file},
        "network/settings": {"metadata": {"ss_network_dim": "4", "ss_resolution": "(64, 64)"}},
        "network/resize": {"file": file, "out": "a", "rank": 4, "conv_rank": 4, "energy": 0.5, "cut": True, "overwrite": False},
        "network/merge": {"files": [file, file], "out": "b", "weights": [1.0, 0.5], "into": file, "rank": 4},
        "network/extract": {"file": file, "tuned": file, "out": "c", "rank": 4, "energy": 0.5, "skip_rounding": True},
        "network/convert": {"file": file, "out": "d", "to": "kohya"},
        "network/edit": {"file": file, "out": "e", "named": {"title": "a"}, "words": {"a": "b"}, "removed": ["c"], "preview": picture},
    }
    for path, document in documents.items():
        for _, mutated in mutations(document, (*WRONG, 2**63 - 1, 2**63, -(2**63) - 1, LONG)):
            yield post(path, mutated)


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """Files that wait, are deep, large, cut or linked to themselves, beside one good picture."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ("pipe.png", "pipe.toml", "pipe.json", "pipe.safetensors", "pipe.ckpt", "good.txt"):
        os.mkfifo(folder / name)
    with socket.socket(socket.AF_UNIX) as bound, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # a socket's path may have 108 bytes
        bound.bind("socket.png")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "link-to-pipe.png").symlink_to(folder / "pipe.png")
    for name in ("good.png", "long.png", "other.png"):
        Image.new("RGB", (64, 64), "red").save(folder / name)
    (folder / "long.txt").write_text("word, " * 2_000_000, encoding="utf-8")
    (folder / "other.txt").write_text("{a" * 40_000, encoding="utf-8")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 1 << 30, 1 << 30) + b"\x08\x02\0\0\0\0\0\0\0")
    (folder / "deep.toml").write_text("a = " + "[" * DEEP, encoding="utf-8")
    (folder / "large.toml").write_bytes(b"#" + b"x" * 50_000_000)
    (folder / "deep.json").write_text("[" * DEEP, encoding="utf-8")
    safetensors(folder / "deep.safetensors", b'{"a": ' + b"[" * DEEP)
    safetensors(folder / "long.safetensors", b"{}", 1 << 62)
    safetensors(folder / "wrong.safetensors", b'{"a": {"dtype": 5, "shape": ["x"], "data_offsets": ["0", {}]}}')
    safetensors(folder / "words.safetensors", b'{"__metadata__": ["x"], "a": 7}')
    with suppress(OSError):  # a name that is no text
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")).write_bytes((folder / "good.png").read_bytes())
    return folder


@pytest.fixture
def watched(server: Server) -> Iterator[list[float]]:
    """How long each /status took, asked all the time in a thread of its own."""
    times: list[float] = []
    over = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=server.origin + V1, timeout=60) as client:
            while not over.wait(0.05):
                begun = time.perf_counter()
                assert client.get("status").status_code == 200
                times.append(time.perf_counter() - begun)

    thread = threading.Thread(target=watch)
    thread.start()
    yield times
    over.set()
    thread.join(60)
    assert not thread.is_alive()


KINDS: dict[str, Callable[[Server, Path, Path], Iterator[Attack]]] = {
    "pages": lambda server, odd, pictures: foreign_pages(server),
    "addresses": lambda server, odd, pictures: addresses(),
    "paths": lambda server, odd, pictures: single_paths(odd),
    "bodies": lambda server, odd, pictures: bodies(),
    "patterns": lambda server, odd, pictures: patterns(pictures),
    "files": lambda server, odd, pictures: configs(odd, pictures),
    "values": lambda server, odd, pictures: values(pictures, odd),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
@pytest.mark.parametrize("kind", KINDS)
def test_no_attack_stops_the_server_or_gets_a_500(server: Server, watched: list[float], odd_folder: Path, pictures: Path, kind: str):
    RunFolder.create(server.host.paths().runs_dir, "moon")
    assert server.post("check", {"config": small_config(pictures)}).status_code == 200, "it imports what every check needs"
    with httpx.Client(base_url=server.origin + V1, timeout=SLOWEST_ANSWER) as client:
        wrong = [attack.wrong(client) for attack in KINDS[kind](server, odd_folder, pictures)]
    assert [text for text in wrong if text] == []
    assert server.get("runs").json()[0]["name"] == "moon", "a refused request has renamed it"
    others = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # a processor that serves others too gives each a part of its time
    assert watched and max(watched) < LONGEST_STATUS * others


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_there_are_two_hundred_attacks_and_more(server: Server, odd_folder: Path, pictures: Path):
    assert sum(1 for attacks in KINDS.values() for _ in attacks(server, odd_folder, pictures)) > 350


def test_without_a_host_header_or_with_two_nothing_is_answered(server: Server):
    line = f"GET {V1}/status HTTP/1.1\r\nConnection: close\r\n".encode()
    good = f"Host: 127.0.0.1:{server.port}\r\n".encode()
    assert raw(server, line + good + b"\r\n")(server.client).status_code == 200
    for hosts in (b"", good + b"Host: evil.example\r\n", b"Host: evil.example\r\n" + good):
        assert raw(server, line + hosts + b"\r\n")(server.client).status_code in (400, 403)
