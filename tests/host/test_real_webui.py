"""A real WebUI from the outside: as the tab, the page's buttons and other programs use it. Only where LORA_TRAINER_WEBUI_DIR names one."""

import base64
import io
import json
import re
import statistics
import threading
import time
import urllib.parse
import urllib.request

import pytest
from PIL import Image

from lora_trainer import assets
from lora_trainer.api.routes import data_routes, file_routes, plan_routes, run_routes, status_routes
from tests.host import real_webui as real
from tests.host.contract import wait_for
from tests.host.contract_runs import few_pictures

pytestmark = pytest.mark.needs_webui
V1 = "/lora-trainer/v1"
TAG = re.compile("<lora:[^>]+>")
PROMPT = "a red circle on a black background"


def config(name, count, **more):
    pictures = assets.toy_pictures() / "crescent" / "train"
    return {
        "data": {"train_data_dir": str(pictures), "resolution": 64, "batch_size": 2, "enable_bucket": False},
        "network": {"dim": 4, "alpha": 4},
        "steps": {"max_train_steps": count},
        "save": {"output_name": name},
    } | more


@pytest.fixture
def host(real_webui):
    yield real_webui
    if (run := real_webui.get(f"{V1}/status")["run"]) and run["state"] not in ("finished", "stopped", "failed"):
        real_webui.post(f"{V1}/runs/{run['id']}/control", {"command": "stop-discard"})
        wait_for(lambda: state(real_webui) in ("finished", "stopped", "failed"), 60)


def picture(answer):
    return Image.open(io.BytesIO(base64.b64decode(answer))).convert("RGB").tobytes()


def state(host):
    return host.get(f"{V1}/status")["run"]["state"]


def train(host, *words, **more):
    return host.post(f"{V1}/runs", {"config": config(*words, **more)})["run"]


def ended(host, run, seconds=300):
    wait_for(lambda: host.get(f"{V1}/runs/{run}")["state"] in ("finished", "stopped", "failed"), seconds)
    return host.get(f"{V1}/runs/{run}")


def events(host, run, kind=None):
    found = host.get(f"{V1}/runs/{run}/events?after=0")["events"]
    return [event for event in found if kind in (None, event["event"])]


def clean_weights(host):
    """The hash of all weights after a picture without a network, which takes off what the one before has left."""
    host.draw("a red circle")
    return host.get("/lora-trainer-probe/weights")


def stepped(host, run):
    return len(events(host, run, "stepped"))


def test_preview_of_a_run_is_what_txt2img_draws_with_the_saved_file(host, webui_data):
    sample = {"prompts": [f"{PROMPT} --w 64 --h 64 --d 7 --l 5 --s 6"], "every_n_steps": 6, "sampler": "euler"}
    run = train(host, "pixels", 6, sample=sample, optimizer={"learning_rate": 0.02})
    assert ended(host, run)["state"] == "finished", events(host, run)[-1]
    runs = webui_data / "lora_trainer" / "runs"
    first, last = (runs / run / event["path"] for event in events(host, run, "sampled"))
    plain = host.draw(PROMPT, seed=7)
    trained = host.draw(f"{PROMPT}<lora:pixels:1>", seed=7)
    assert Image.open(first).convert("RGB").tobytes() == plain.tobytes()
    assert Image.open(last).convert("RGB").tobytes() == trained.tobytes()
    assert plain.tobytes() != trained.tobytes()
    files = sorted(path.name for path in (webui_data / "models" / "Lora").glob("pixels*"))
    assert "pixels.safetensors" in files and "pixels-000001.safetensors" in files
    assert (runs / run / "events.jsonl").exists()


def test_stop_works_at_once_while_forty_five_pictures_wait_and_all_of_them_come(host):
    before, pictures, threads = clean_weights(host), [], []
    host.post("/sdapi/v1/options", {"lora_trainer_let_generations_through": False})
    try:
        run = train(host, "crowd", 2000)
        wait_for(lambda: stepped(host, run) > 2, 120)
        for seed in range(45):
            threads.append(threading.Thread(target=lambda seed=seed: pictures.append(host.draw("a red circle", seed=seed, steps=2))))
            threads[-1].start()
        wait_for(lambda: host.get(f"{V1}/status")["host"]["waiting"] >= 35, 60)
        assert not pictures
        begin = time.monotonic()
        host.post(f"{V1}/runs/{run}/control", {"command": "stop"}, timeout=2)
        wait_for(lambda: state(host) == "stopped", 10)
        assert time.monotonic() - begin < 2
        assert len(pictures) < 20
        for thread in threads:
            thread.join(600)
        assert len(pictures) == 45
    finally:
        host.post("/sdapi/v1/options", {"lora_trainer_let_generations_through": True})
    assert clean_weights(host) == before


def test_page_answers_while_a_picture_is_let_through(host):
    run = train(host, "polite", 2000)
    wait_for(lambda: stepped(host, run) > 2, 120)
    drawn = []
    thread = threading.Thread(target=lambda: drawn.append(host.draw("a red circle")))
    thread.start()
    wait_for(lambda: drawn, 60)
    seen = stepped(host, run)
    wait_for(lambda: stepped(host, run) > seen, 60)
    host.post(f"{V1}/runs/{run}/control", {"command": "stop-discard"})
    assert ended(host, run)["state"] == "stopped"


def test_second_start_is_refused_with_the_name_of_the_run(host):
    run = train(host, "only-one", 2000)
    with pytest.raises(urllib.request.HTTPError) as refused:
        train(host, "another", 5)
    problems = json.loads(refused.value.read())["problems"]
    assert refused.value.code == 409
    assert run in json.dumps(problems)
    host.post(f"{V1}/runs/{run}/control", {"command": "stop-discard"})


def test_reload_ui_in_the_middle_of_a_run_finds_the_run_again(host):
    before = clean_weights(host)
    run = train(host, "reloaded", 60)
    wait_for(lambda: stepped(host, run) > 2, 120)
    times = host.lines().count("Startup time")
    host.post("/lora-trainer-probe/reload-ui")
    wait_for(lambda: host.lines().count("Startup time") == times + 1, 120)
    assert host.get(f"{V1}/status")["run"]["id"] == run
    assert "Traceback" not in host.lines().rsplit("Restarting UI", 1)[1]
    assert ended(host, run)["state"] == "finished"
    assert stepped(host, run) == 60
    assert clean_weights(host) == before


def plot_arguments(script, chosen):
    """The script's own values with the chosen ones, by label: hosts differ in how many there are, and in their order.

    A text field and a list of choices share a label; the list comes second and stays empty.
    """
    left = dict(chosen)
    return [left.pop(field["label"], [] if field["label"].endswith(" values") else field["value"]) for field in script["args"]]


def test_own_axes_draw_the_grid_that_the_recipe_names(host, webui_data, tmp_path):
    loras = webui_data / "models" / "Lora"
    data = {"train_data_dir": str(few_pictures(tmp_path) / "train"), "resolution": 64, "enable_bucket": False}
    run = train(host, "axes", 0, data=data, steps={"max_train_epochs": 2}, optimizer={"learning_rate": 0.01})
    assert ended(host, run)["state"] == "finished"
    assert (loras / "axes-000002.safetensors").exists()
    script = next(script for script in host.get("/sdapi/v1/script-info") if script["name"] == "x/y/z plot" and not script["is_img2img"])
    types = next(field["choices"] for field in script["args"] if field["label"] == "X type")
    chosen = {"X type": types.index("[LoRA Trainer] Epoch"), "X values": "1-2", "Draw legend": False, "Include Sub Images": True}
    chosen |= {"Y type": types.index("[LoRA Trainer] Weight"), "Y values": "0, 1", "Z type": 0}
    plot = plot_arguments(script, chosen)
    settings = {"prompt": f"{PROMPT} <lora:axes-NUM:STRENGTH>", "seed": 7, "width": 64, "height": 64, "steps": 4, "cfg_scale": 5}
    answer = host.post(
        "/sdapi/v1/txt2img", settings | {"sampler_name": "Euler", "script_name": "x/y/z plot", "script_args": plot}, timeout=300
    )
    texts = json.loads(answer["info"])["infotexts"]
    cell = {tag: picture(image) for image, text in zip(answer["images"], texts, strict=True) for tag in TAG.findall(text)}
    plain = host.draw(PROMPT, seed=7, steps=4).tobytes()
    assert cell["<lora:axes-000001:0>"] == cell["<lora:axes-000002:0>"] == plain
    assert len({cell["<lora:axes-000001:1>"], cell["<lora:axes-000002:1>"], plain}) == 3, "both epochs drew the same picture"


ROUTES = [
    (method, path) for module in (status_routes, run_routes, plan_routes, data_routes, file_routes) for method, path, _ in module.ROUTES
]


def addresses():
    return [(method, V1 + path.replace("{run}", "r").replace("{path:path}", "p").replace("{name}", "n")) for method, path in ROUTES]


@pytest.fixture(scope="module")
def guarded(webui_tree, webui_data, webui_python):
    """Starts a WebUI with a login."""
    running = []

    def start(*flags, **more):
        running.append(real.start(webui_tree, webui_data, webui_python, *flags, **more))
        return running[-1]

    yield start
    for host in running:
        host.stop()


def test_page_login_guards_every_route_of_ours(guarded):
    host = guarded("--gradio-auth", "mika:secret")
    assert len(ROUTES) > 20
    for method, address in addresses():
        assert host.status_of(address, method=method)[0] == 401, f"{method} {address}"
    form = urllib.parse.urlencode({"username": "mika", "password": "secret"}).encode()
    with urllib.request.urlopen(host.url + "/login", form) as answer:
        cookies = [cookie.split(";")[0] for cookie in answer.headers.get_all("Set-Cookie")]
    token = next(cookie for cookie in cookies if cookie.startswith("access-token-unsecure"))
    assert host.status_of(f"{V1}/status", {"Cookie": token})[0] == 200
    assert host.status_of(f"{V1}/status", {"Cookie": f"{token.partition('=')[0]}=guessed"})[0] == 401


def test_api_login_guards_every_route_of_ours(guarded):
    host = guarded("--api-auth", "robot:key")
    for method, address in addresses():
        status, headers = host.status_of(address, method=method)
        assert status == 401, f"{method} {address}"
        assert headers["www-authenticate"] == "Basic"
    assert real.RealWebUI(host.url, login="robot:key").get(f"{V1}/status")["host"]["name"] in ("a1111", "forge")
    assert real.RealWebUI(host.url, login="robot:wrong").status_of(f"{V1}/status")[0] == 401


def test_folders_outside_the_data_folder_are_refused_on_the_network(guarded, tmp_path):
    host = guarded("--listen", "--lora-trainer-allow-path", str(assets.toy_pictures()))
    for folder, status in ((tmp_path, 403), (assets.toy_pictures(), 200)):
        assert host.status_of(f"{V1}/folders?path={urllib.parse.quote(str(folder))}")[0] == status
    with pytest.raises(urllib.request.HTTPError) as refused:
        host.post(f"{V1}/runs", {"config": config("outside", 5, save={"output_dir": str(tmp_path)})})
    assert refused.value.code == 403


TIMED = ("load scripts", "create ui", "gradio launch", "app_started_callback")


@pytest.mark.slow
def test_start_takes_at_most_a_third_of_a_second_longer(webui_tree, webui_python):
    """By the host's own numbers, scripts to launch, median of five with and five without, in turn.

    The launch counts too: Python's one full collection, 0.3 s among that many objects, falls either into it or into "create ui".
    """
    data, seconds = real.scratch(webui_tree), {True: [], False: []}
    for _ in range(5):
        for present in (True, False):
            real.place_extension(data) if present else real.remove_extension(data)
            host = real.start(webui_tree, data, webui_python)
            records = host.get("/internal/profile-startup")["records"]
            host.stop()
            seconds[present].append(sum(records.get(name, 0) for name in TIMED))
    real.remove(data)
    more = statistics.median(seconds[True]) - statistics.median(seconds[False])
    assert more <= 0.3, f"start with {seconds[True]}, without {seconds[False]}: {more:+.3f} s"
