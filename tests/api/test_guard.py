"""Who may ask, and that the answer comes at once whatever the host is busy with."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request

from lora_trainer.api.routes import data_routes, file_routes, network_routes, plan_routes, run_routes, status_routes
from lora_trainer.api.routes.mount import mount
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.manager import JobManager
from tests.api.conftest import V1, Server, TestHost, small_config
from tests.jobs.works import endless_work, small_work

MODULES = (status_routes, run_routes, plan_routes, data_routes, file_routes, network_routes)
EVERY = [(method, path) for module in MODULES for method, path, _ in module.ROUTES]


@pytest.mark.parametrize(("method", "path"), EVERY)
def test_without_the_login_every_route_answers_401(server, method, path):
    server.host.password = "secret"
    address = path.replace("{run}", "moon").replace("{path:path}", "x.png").replace("{name}", "mika")
    assert server.client.request(method, address.lstrip("/"), json={}).status_code == 401
    known = server.client.request(method, address.lstrip("/"), json={}, headers={"authorization": "secret"})
    assert known.status_code != 401


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path in EVERY if method != "GET"])
def test_a_page_of_another_site_changes_nothing(server, method, path):
    address = path.replace("{run}", "moon").replace("{name}", "mika").lstrip("/")
    foreign = server.client.request(method, address, json={}, headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    for origin in (server.origin, None):
        headers = {"Origin": origin} if origin else {}
        assert server.client.request(method, address, json={}, headers=headers).status_code != 403


def test_a_page_behind_a_declared_proxy_is_the_own_page_and_no_header_of_a_proxy_is_believed(tmp_path):
    server = Server(TestHost(tmp_path, names=["https://My.Example/webui", "other.example:8443"]))
    try:
        for headers in (
            {"Origin": "https://my.example"},
            {"Host": "my.example:443", "Origin": "https://my.example"},
            {"Host": "my.example:9"},
            {"Origin": "https://other.example:8443"},
            {"Host": "my.example", "Origin": "https://my.example:8443", "Sec-Fetch-Site": "same-origin"},
        ):
            assert server.client.post("check", json={"config": {}}, headers=headers).status_code != 403, headers
        for headers in (
            {"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"},
            {"Origin": "https://evil.example", "X-Forwarded-Host": "127.0.0.1"},
            {"Host": "a.my.example"},
            {"Host": "my.example", "Origin": "http://my.example:9000"},
            {"Origin": "https://other.example"},
            {"Origin": "null"},
        ):
            assert server.client.post("check", json={"config": {}}, headers=headers).status_code == 403, headers
    finally:
        server.close()


def test_a_refused_page_is_told_how_its_address_is_allowed(server):
    refused = server.client.post("check", json={"config": {}}, headers={"Origin": "https://my.example:8443"})
    assert "--allow-host https://my.example:8443" in refused.json()["problems"][0]["fix"]
    assert "--allow-host webui.lan" in server.client.get("words", headers={"Host": "webui.lan"}).json()["problems"][0]["fix"]


def test_no_page_of_another_site_can_show_what_is_answered(server):
    for path in ("status", "words", "thumbnail", "no/such/address"):
        headers = server.client.get(path).headers
        assert headers["cross-origin-resource-policy"] == "same-origin" and headers["x-content-type-options"] == "nosniff", path


@pytest.mark.parametrize(("listen", "address"), [(False, 403), (True, 200)])
def test_addresses_name_the_server_only_when_it_listens_on_the_network(tmp_path, listen, address):
    server = Server(TestHost(tmp_path, listen=listen))
    try:
        for host in ("127.0.0.1", "localhost", "LocalHost:1", "[::1]", "[::1]:7865"):
            assert server.client.get("words", headers={"Host": host}).status_code == 200, host
        for host in ("192.168.1.2:7865", "[fe80::1]:7865", "0.0.0.0"):
            assert server.client.get("words", headers={"Host": host}).status_code == address, host
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "2130706433", "[::1", "localhost:x", "::1"):
            refused = server.client.get("words", headers={"Host": host})
            assert refused.status_code == 403 and "--allow-host" in refused.json()["problems"][0]["fix"], host
    finally:
        server.close()


@pytest.mark.parametrize(("method", "path"), EVERY)
def test_every_route_refuses_pages_of_other_sites_and_other_ports(server, method, path):
    address = path.replace("{run}", "moon").replace("{path:path}", "x.png").replace("{name}", "mika").lstrip("/")
    for site, refused in (("cross-site", True), ("same-site", True), ("same-origin", False), ("none", False)):
        answer = server.client.request(method, address, content=b"", headers={"Sec-Fetch-Site": site})
        assert (answer.status_code == 403) is refused, site


def test_a_host_s_cors_rules_hold_for_no_route_of_ours(tmp_path):
    from starlette.middleware.cors import CORSMiddleware
    from starlette.testclient import TestClient

    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
    app.add_api_route("/of-the-host", lambda: "x")
    client = TestClient(app, base_url="http://127.0.0.1")
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert client.options("/of-the-host", headers=asked).headers["access-control-allow-origin"]  # the app has started
    mount(app, TestHost(tmp_path), JobManager())
    for path in ("/status", "/runs", "/runs/moon/control", "/nothing"):
        preflight = client.options(V1 + path, headers=asked)
        assert preflight.status_code == 204
        assert not [name for name in preflight.headers if name.startswith("access-control-")]
    for headers in ({}, {"Origin": "http://evil.example"}):
        assert not [name for name in client.get(V1 + "/status", headers=headers).headers if name.startswith("access-control-")]
    assert client.options("/of-the-host", headers=asked).headers["access-control-allow-origin"]


def test_an_unknown_address_or_method_has_the_shape_of_errors(server):
    for method, path, status in (("GET", "nothing/here", 404), ("PUT", "status", 405), ("GET", "runs/a%00b", 404)):
        answer = server.client.request(method, path)
        assert answer.status_code == status and {"path", "message", "fix"} == answer.json()["problems"][0].keys()


def test_every_handler_is_a_coroutine_so_that_the_hosts_threads_are_not_needed():
    import inspect

    for module in MODULES:
        assert all(inspect.iscoroutinefunction(handler) for _, _, handler in module.ROUTES)


def test_the_status_comes_at_once_while_the_host_loads_and_every_thread_works(tmp_path):
    host = TestHost(tmp_path / "data")
    host.slow = threading.Event()
    server = Server(host)
    try:
        waiting = [threading.Thread(target=server.get, args=("options",)) for _ in range(6)]
        for thread in waiting:
            thread.start()
        for _ in range(5):
            assert server.get("status").json()["run"] is None
        assert all(thread.is_alive() for thread in waiting)  # it waited for none of them
        host.slow.set()
        for thread in waiting:
            thread.join()
    finally:
        host.slow.set()
        server.close()


def test_an_unchanged_status_is_small_and_a_changed_one_whole(server):
    server.wait_for(lambda: server.get("status").json()["model"])
    server.wait_for(lambda: server.get("status", seen=server.get("status").json()["version"]).json().keys() == {"version", "unchanged"})
    version = server.get("status").json()["version"]
    folder = RunFolder.create(server.host.paths().runs_dir, "first")
    server.manager.start(folder, endless_work)
    server.wait_for(lambda: "run" in server.get("status", seen=version).json())
    status = server.get("status").json()
    assert status["run"]["name"] == "first" and status["host"]["name"] == "standalone" and status["memory"]["total_mb"] > 0
    assert status["model"]["trainable"] is True


def test_windows_are_counted_by_the_name_that_each_gives_itself(server):
    server.get("status", client="a")
    assert server.get("status", client="b").json()["windows"] == 2
    assert server.get("status", client="a").json()["windows"] == 2


def test_routes_stand_before_an_app_that_answers_everything(tmp_path):
    app = FastAPI()

    @app.get("/{path:path}")
    def everything(path: str):
        return "the page"

    mount(app, TestHost(tmp_path), JobManager())
    mount(app, TestHost(tmp_path), JobManager())
    assert len([route for route in app.router.routes if str(route.path).startswith(V1)]) == len(EVERY)


def test_a_guard_of_the_caller_is_asked_instead_of_the_host(tmp_path):
    asked = []

    def guard(request: Request) -> bool:
        asked.append(request.url.path)
        return False

    app = FastAPI()
    mount(app, TestHost(tmp_path), JobManager(), guard)
    transport = httpx.ASGITransport(app=app)

    async def ask():
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get(V1 + "/status")

    # in a thread of its own: Playwright's tests leave a loop in this one
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(asyncio.run, ask()).result().status_code == 401
    assert asked == [V1 + "/status"]


def test_options_carry_words_bounds_and_defaults(server):
    found = server.get("options", lang="zh_CN").json()
    options = {option["path"]: option for section in found["sections"] for option in section["options"]}
    assert options["network.dim"]["type"] == "int" and options["network.dim"]["low"] == 1 and not options["network.dim"]["label"].isascii()
    assert options["optimizer.unet_lr"]["type"] == "float" and options["optimizer.unet_lr"]["optional"] is True
    assert {options[path]["type"] for path in ("data.resolution", "schedule.warmup_steps", "sample.prompts", "schedule.type")} == {
        "size",
        "steps",
        "list",
        "choice",
    }
    assert found["defaults"]["network"]["dim"] == options["network.dim"]["default"]
    assert found["defaults"]["data"]["resolution"] == 64  # the small model's own size
    assert [known["loaded"] for known in found["checkpoints"]] == [True]
    assert server.get("words", lang="zh_CN").json()["Rank"] == options["network.dim"]["label"]


def test_check_tells_the_plan_and_what_stands_in_the_way(server, pictures):
    found = server.post("check", {"config": small_config(pictures, steps__max_train_steps=0, steps__max_train_epochs=2)}).json()
    assert (found["images"], found["steps_per_epoch"], found["total_steps"], found["problems"]) == (12, 30, 60, [])
    assert found["memory"]["parts"]["model"] > 0 and found["memory"]["free_mb"] > 0
    blocked = server.post("check", {"config": small_config("/no/such", network__alpha=9999)})
    assert blocked.status_code == 400 and blocked.json()["problems"][0]["path"] == "network.alpha"
    missing = server.post("check", {"config": small_config("/no/such")}).json()
    assert missing["images"] == 0 and missing["problems"][0]["path"] == "data.train_data_dir"
    warned = server.post("check", {"config": small_config(pictures, network__alpha=64)}).json()
    assert "network.alpha" in [warning["path"] for warning in warned["warnings"]] and warned["problems"] == []


def test_the_time_is_measured_where_the_same_work_was_done_before(server, pictures):
    from lora_trainer.api.runs.step_time import work_key
    from lora_trainer.config.build import build

    def asked(**changes):
        return server.post("check", {"config": small_config(pictures, **changes)}).json()

    assert "seconds_measured" not in asked()
    folder = RunFolder.create(server.host.paths().runs_dir, "moon")
    folder.update_info(work=work_key(build(small_config(pictures))))
    Job(small_work(folder), folder).run()
    found = asked(steps__max_train_steps=100)
    assert found["seconds_measured"] is True and found["seconds"] == 1.0  # 100 steps of the 0.01 s that its events tell
    assert "seconds_measured" not in asked(data__batch_size=8)


def test_the_wizard_gives_reasons_and_puts_what_was_typed_last(server, pictures):
    body = {"config": small_config(pictures, network__dim=128), "subject": "object", "vram": 8, "typed": ["network.dim"]}
    found = server.post("wizard", body).json()
    assert found["changes"] and all(change["because"] and change["label"] for change in found["changes"])
    typed = [change["typed"] for change in found["changes"]]
    assert typed == sorted(typed) and found["plan"]["total_steps"] > 0
    assert server.post("wizard", body | {"subject": "dragon"}).status_code == 400


def test_a_config_is_written_as_toml_and_read_back(server):
    config = {"network": {"dim": 8}, "sample": {"prompts": ['a "moon"']}}
    written = server.post("config", {"config": config}).json()
    assert written["config"] == config
    assert server.post("config", {"toml": written["toml"]}).json() == written
    assert server.post("config", {"toml": "[network]\nrank = 4\n"}).json()["problems"][0]["path"] == "network.rank"
