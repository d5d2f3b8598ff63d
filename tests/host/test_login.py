import base64
from types import SimpleNamespace

import pytest

from lora_trainer.host.a1111 import A1111Host
from tests.host.data_folder import make_data
from tests.host.fake_webui import FakeWebUI


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return FakeWebUI(make_data(tmp_path_factory.mktemp("webui")))


@pytest.fixture
def options(fake, monkeypatch):
    """The host's flags, as they stand for one test."""
    fake.install(monkeypatch)
    monkeypatch.setattr(fake.shared, "cmd_opts", SimpleNamespace(**vars(fake.shared.cmd_opts)))
    return fake.shared.cmd_opts


def request(cookies=(), authorization="", app=None):
    return SimpleNamespace(cookies=dict(cookies), headers={"authorization": authorization} if authorization else {}, app=app)


def basic(account):
    return "Basic " + base64.b64encode(account.encode()).decode()


def test_without_a_login_everybody_may(options):
    assert A1111Host().is_authorized(request())
    assert A1111Host().challenge() == {}


def test_page_login_is_the_cookie_that_gradio_gave(options):
    options.gradio_auth = "mika:secret"
    app = SimpleNamespace(tokens={"token-of-mika": "mika"})
    host = A1111Host()
    assert not host.is_authorized(request(app=app))
    assert not host.is_authorized(request({"access-token": "guessed"}, app=app))
    assert host.is_authorized(request({"access-token": "token-of-mika"}, app=app))
    assert host.is_authorized(request({"access-token-unsecure": "token-of-mika"}, app=app))
    assert not host.is_authorized(request(authorization=basic("mika:secret"), app=app)), "the host's own API takes no password here"
    assert host.challenge() == {}


def test_newer_gradio_names_its_cookie_by_an_id(options):
    options.gradio_auth_path = "accounts.txt"
    host = A1111Host()
    host.app = SimpleNamespace(tokens={"t": "mika"}, cookie_id="xyz")
    assert host.is_authorized(request({"access-token-xyz": "t"}))
    assert host.is_authorized(request({"access-token-unsecure-xyz": "t"}))
    assert not host.is_authorized(request({"access-token": "t"}))


def test_api_login_is_the_basic_password(options):
    options.api_auth = "mika:secret,otto:näher:dran"
    host = A1111Host()
    assert host.is_authorized(request(authorization=basic("mika:secret")))
    assert host.is_authorized(request(authorization=basic("otto:näher:dran")))
    for wrong in ("", basic("mika:wrong"), basic("nobody:secret"), basic("mika"), "Bearer abc", "Basic !!!", "Basic " + "ÿ"):
        assert not host.is_authorized(request(authorization=wrong))
    assert not host.is_authorized(request({"access-token": "t"}, app=SimpleNamespace(tokens={"t": "mika"})))
    assert host.challenge() == {"WWW-Authenticate": "Basic"}


def test_either_login_is_enough_where_both_are_set(options):
    options.api_auth, options.gradio_auth = "robot:key", "mika:secret"
    host = A1111Host()
    host.app = SimpleNamespace(tokens={"t": "mika"})
    assert host.is_authorized(request({"access-token": "t"}))
    assert host.is_authorized(request(authorization=basic("robot:key")))
    assert not host.is_authorized(request())
    assert host.challenge() == {}, "the page has a login form of its own"


@pytest.mark.parametrize("flag", ["listen", "share", "ngrok", "server_name"])
def test_folders_are_bounded_when_the_host_listens_on_the_network(options, flag, tmp_path):
    host = A1111Host()
    assert host.paths().allowed_roots == ()
    assert host.paths().allows(tmp_path)
    setattr(options, flag, "yes")
    options.lora_trainer_allow_path = [str(tmp_path / "photos")]
    paths = host.paths()
    assert host.is_listening()
    assert paths.allows(paths.data_path / "lora_trainer" / "uploads" / "mika")
    assert paths.allows(paths.lora_dir)
    assert paths.allows(tmp_path / "photos" / "mika")
    assert not paths.allows(tmp_path / "photos-of-others")
    assert not paths.allows(tmp_path / "photos" / ".." / "secret")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to("/etc")
    assert not paths.allows(tmp_path / "photos" / "link" / "passwd")


def test_runs_stay_out_of_the_lora_folder(options):
    paths = A1111Host().paths()
    assert paths.runs_dir == paths.data_path / "lora_trainer" / "runs"
    assert paths.uploads_dir == paths.data_path / "lora_trainer" / "uploads"
    assert paths.lora_dir not in paths.runs_dir.parents


@pytest.mark.parametrize(("chosen", "language"), [("None", "en"), ("zh_CN", "zh_CN"), ("zh-Hans (Stable)", "zh_CN"), ("ja_JP", "en")])
def test_language_follows_the_hosts_localization(fake, options, chosen, language):
    fake.data["localization"] = chosen
    assert A1111Host().language() == language
    del fake.data["localization"]


def accepted(*hosts):
    return [host for host in hosts if A1111Host().web_names().accepts(host)]


def test_the_names_of_the_host_are_its_addresses_its_own_and_those_of_its_flags(options, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Studio.fritz.box")
    hosts = ("localhost:7860", "127.0.0.1", "[::1]:7860", "10.0.0.2:7860", "studio:7860", "studio.local:7860", "studio.fritz.box")
    assert accepted(*hosts) == list(hosts)
    others = ("webui.lan:7860", "my.example", "own.example", "evil.example", "studio.evil.example", "10.0.0.2.evil.example", "")
    assert accepted(*others) == []
    options.server_name = "webui.lan"
    options.lora_trainer_allow_host = ["https://my.example/webui"]
    options.ngrok, options.ngrok_options = "token", {"domain": "own.example"}
    assert accepted(*others) == ["webui.lan:7860", "my.example", "own.example"]
    assert A1111Host().web_names().flag == "--lora-trainer-allow-host" and A1111Host().paths().allow_flag == "--lora-trainer-allow-path"


def test_tunnels_whose_names_nobody_can_point_elsewhere_are_names_of_the_host(options):
    tunnels = (
        "abc.gradio.live",
        "x.ngrok-free.app",
        "a-b-c.trycloudflare.com",
        "pod-7860.proxy.runpod.net",
        "x-7860-colab.googleusercontent.com",
    )
    assert accepted(*tunnels) == list(tunnels)
    assert accepted("gradio.live.evil.example", "evilgradio.live", "gradio.live.") == []


@pytest.mark.parametrize("flag", ["gradio_auth", "gradio_auth_path", "api_auth"])
def test_behind_a_login_every_name_is_one_of_the_host(options, flag):
    assert accepted("webui.lan:7860") == []
    setattr(options, flag, "mika:secret")
    assert accepted("webui.lan:7860", "") == ["webui.lan:7860"]
