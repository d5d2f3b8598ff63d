"""Pictures, captions, folders and uploads over the routes."""

import base64
import io
import shutil

from PIL import Image

from tests.api.conftest import small_config

ONE = "10_sks crescent"


def asked(pictures, **changes):
    return {"config": small_config(pictures, **changes)}


def test_a_folder_is_read_with_verdicts_crops_and_groups(server, pictures):
    folder = next(pictures.iterdir())
    Image.new("RGB", (20, 20)).save(folder / "tiny.png")
    Image.effect_noise((128, 64), 90).save(folder / "wide.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    found = server.post("pictures", asked(pictures, data__enable_bucket=False)).json()
    assert found["counts"] == {"all": 15, "used": 13, "needs_look": 2, "cropped": 1, "left_out": 0, "captions": 12, "without": 1}
    by_name = {picture["name"]: picture for picture in found["pictures"]}
    assert by_name["wide.png"]["crop"] == [0.25, 0.0, 0.75, 1.0] and by_name["wide.png"]["kept"] == 0.5
    assert by_name["broken.png"]["usable"] is False and by_name["broken.png"]["reason"]
    assert by_name["tiny.png"]["notes"] == ["too-small"]
    assert found["buckets"] == [{"width": 64, "height": 64, "count": 13}] and found["understood"]
    assert found["trigger"] == {"tokens": 1, "warning": ""}


def test_left_out_and_held_back_pictures_are_not_counted(server, pictures):
    key = server.post("pictures", asked(pictures)).json()["pictures"][0]["key"]
    found = server.post("pictures", asked(pictures, data__leave_out=[key], validate__fraction=0.25)).json()
    assert found["counts"]["left_out"] == 1 and found["validation"] == {"count": 3, "source": "held"}
    assert found["counts"]["used"] == 8


def test_a_validation_folder_is_counted_apart(server, pictures, toy_pictures):
    held = toy_pictures / "crescent" / "val"
    found = server.post("pictures", asked(pictures, validate__data_dir=str(held))).json()
    assert found["validation"] == {"count": 12, "source": "folder"} and found["counts"]["used"] == 12


def test_pictures_are_shown_although_a_rate_is_mistyped(server, pictures):
    answer = server.post("pictures", asked(pictures, optimizer__learning_rate="fast", data__batch_size=0, validate__fraction=3))
    assert answer.status_code == 200 and answer.json()["counts"]["used"] == 12


def test_a_changed_folder_is_read_again(server, pictures):
    body = asked(pictures)
    assert server.post("pictures", body).json()["counts"]["used"] == 12
    folder = next(pictures.iterdir())
    next(folder.glob("*.png")).unlink()
    assert server.post("pictures", body).json()["counts"]["used"] == 11
    caption = next(folder.glob("*.png")).with_suffix(".txt")
    caption.write_text("something new", encoding="utf-8")
    assert "something new" in [picture["caption"] for picture in server.post("pictures", body).json()["pictures"]]


def test_what_is_wrong_with_the_folder_stands_at_its_field(server, tmp_path):
    for folder in (tmp_path / "missing", "", tmp_path):
        answer = server.post("pictures", asked(folder))
        problem = answer.json()["problems"][0]
        assert answer.status_code == 400 and problem["path"] == "data.train_data_dir" and problem["fix"], folder


def test_an_ordinary_word_is_a_poor_trigger(server, pictures):
    def warning(word):
        return server.post("pictures", asked(pictures, data__trigger_word=word)).json()["trigger"]["warning"]

    assert "ordinary" in warning("girl") and "ordinary" in warning("solo")
    assert warning("sks") == warning("ohwx") == warning("mika_v7") == "" and warning("") == ""
    assert "tokens long" in warning("a very long trigger of many words zxqj")


def test_captions_are_shown_as_the_model_reads_them_in_that_epoch(server, pictures):
    folder = next(pictures.iterdir())
    first, second = sorted(folder.glob("*.txt"))[:2]
    first.write_text("red, green, blue, white, black", encoding="utf-8")
    second.unlink()
    settings = {"data__shuffle_caption": True, "data__class_tokens": "moon"}

    def read(epoch):
        return server.post("captions", asked(pictures, **settings) | {"epoch": epoch}).json()

    found = read(1)
    by_stem = {picture["name"].rpartition(".")[0]: picture for picture in found["pictures"]}
    parts = by_stem[first.stem]["parts"]
    assert parts[0] == {"text": "sks", "kind": "trigger", "before": ""}
    assert sorted(part["text"] for part in parts[1:]) == ["black", "blue", "green", "red", "white"]
    assert {part["kind"] for part in parts[1:]} == {"shuffled"}
    assert by_stem[first.stem]["tokens"] == 11 and by_stem[first.stem]["limit"] == 75
    assert by_stem[second.stem]["parts"] == [parts[0], {"text": "moon", "kind": "class", "before": " "}]
    assert found["line"] == "11 of 12 have captions · 1 will use: sks moon"
    orders = {
        tuple(part["text"] for part in {p["key"]: p for p in read(epoch)["pictures"]}[by_stem[first.stem]["key"]]["parts"])
        for epoch in range(1, 6)
    }
    assert len(orders) > 1
    assert found == read(1)
    assert found["tags"][0] == {"text": "sks", "count": 12, "kind": "trigger"}


def test_captions_are_shown_as_they_grow_with_all_their_lines_and_their_own_limit(server, pictures):
    folder = next(pictures.iterdir())
    for text in folder.glob("*.txt"):
        text.write_text("a,b;;;c , {d|d}\n", encoding="utf-8")
    first = sorted(folder.glob("*.txt"))[0]
    first.write_text("one\n\n two\n", encoding="utf-8")
    settings = {"data__enable_wildcard": True, "data__secondary_separator": ";;;", "model__max_token_length": 150}

    def read(epoch, **more):
        return server.post("captions", asked(pictures, **settings, **more) | {"epoch": epoch}).json()["pictures"]

    def joined(picture):
        return "".join(part["before"] + part["text"] for part in picture["parts"])

    by_stem = {picture["name"].rpartition(".")[0]: picture for picture in read(1)}
    lines = by_stem.pop(first.stem)
    assert (lines["raw"], lines["limit"]) == ("one\ntwo", 150) and joined(lines) in ("sks, one", "sks, two")
    assert {joined(picture) for picture in by_stem.values()} == {"sks, a,b,c , d"}
    growing = {"data__token_warmup_step": 0.9, "data__token_warmup_min": 0, "steps__max_train_epochs": 2, "data__batch_size": 4}
    lengths = [sorted(len(picture["parts"]) for picture in read(epoch, **growing)) for epoch in (1, 2)]
    assert lengths[0][0] == 1 and lengths[0][-1] < 4 and lengths[1][-1] == 4  # the trigger alone at first, all at last


def test_a_caption_is_written_beside_its_picture_and_taken_back(server, pictures):
    picture = sorted(next(pictures.iterdir()).glob("*.png"))[0]
    caption = picture.with_suffix(".txt")
    old = caption.read_text(encoding="utf-8")
    answer = server.post("caption", {"path": str(picture), "text": "一个 new caption"}).json()
    assert answer["old"] == old and caption.read_text(encoding="utf-8") == "一个 new caption"
    server.post("caption", {"path": str(picture), "text": answer["old"]})
    assert caption.read_text(encoding="utf-8") == old.strip()
    caption.unlink()
    answer = server.post("caption", {"path": str(picture), "text": "first"}).json()
    assert caption.read_text(encoding="utf-8") == "first" and answer["old"] == ""
    server.post("caption", {"path": str(picture), "text": ""})
    assert not caption.exists()


def test_undo_of_a_caption_leaves_one_that_was_changed_again(server, pictures):
    picture = sorted(next(pictures.iterdir()).glob("*.png"))[0]
    caption = picture.with_suffix(".txt")
    old = server.post("caption", {"path": str(picture), "text": "first"}).json()["old"]
    caption.write_text("second, by hand", encoding="utf-8")
    undo = {"path": str(picture), "text": old, "instead_of": "first"}
    assert server.post("caption", undo).json()["written"] is False
    assert caption.read_text(encoding="utf-8") == "second, by hand"
    assert server.post("caption", undo | {"instead_of": "second, by hand"}).json()["written"] is True
    assert caption.read_text(encoding="utf-8") == old.strip()


def test_only_captions_of_pictures_are_written(server, pictures):
    for path in (pictures / "none.png", pictures, "/etc/passwd", ""):
        assert server.post("caption", {"path": str(path), "text": "x"}).status_code in (400, 404), path


def test_thumbnails_are_small_jpegs_made_once(server, pictures):
    folder = next(pictures.iterdir())
    Image.effect_noise((900, 600), 90).save(folder / "big.png")
    answer = server.get("thumbnail", path=str(folder / "big.png"), size=128)
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (128, 85)
    again = server.client.get(
        "thumbnail", params={"path": str(folder / "big.png"), "size": 128}, headers={"If-None-Match": answer.headers["etag"]}
    )
    assert again.status_code == 304 and again.content == b""
    Image.effect_noise((600, 900), 90).save(folder / "big.png")
    changed = server.get("thumbnail", path=str(folder / "big.png"), size=128)
    assert Image.open(io.BytesIO(changed.content)).size == (85, 128)
    assert server.get("thumbnail", path=str(folder / "none.png")).status_code == 404
    assert server.get("thumbnail", path=str(next(folder.glob("*.txt")))).status_code == 400


def test_folders_are_walked_with_their_pictures_counted(server, pictures):
    found = server.get("folders", path=str(pictures)).json()
    assert found["folders"] == [{"name": next(pictures.iterdir()).name, "path": str(next(pictures.iterdir())), "pictures": 12}]
    assert found["parent"] == str(pictures.parent) and (found["pictures"], found["samples"]) == (0, [])
    inner = next(pictures.iterdir())
    (inner / ".hidden.png").write_bytes(b"")
    shown = server.get("folders", path=str(inner)).json()
    assert shown["pictures"] == 12 and len(shown["samples"]) == 6
    assert set(shown["samples"]) <= {str(path) for path in inner.glob("[!.]*.png")}
    assert server.get("folders").json()["path"] == "" and server.get("folders").json()["roots"]
    assert server.get("folders", path=str(pictures / "none")).status_code == 404


def test_dropped_pictures_are_stored_and_those_that_are_there_named(server, pictures):
    picture = next(pictures.rglob("*.png")).read_bytes()

    def send(name, content, **query):
        return server.client.post("uploads/mika", params={"file": name, **query}, content=content)

    first = send("ü 1.png", picture).json()
    assert first["bytes"] == len(picture) and first["duplicate"] is False
    assert send("ü 1.png", picture).json() | {"duplicate": True} == first | {"duplicate": True}
    other = send("ü 1.png", picture + b"x").json()
    assert other["path"].endswith("ü 1 (2).png")
    assert send("10_sks girl/2.png", picture).status_code == 200
    stored = server.get("uploads/mika").json()
    assert [file["name"] for file in stored["files"]] == ["10_sks girl/2.png", "ü 1 (2).png", "ü 1.png"]
    assert stored["folder"] == first["folder"] == str(server.host.paths().uploads_dir / "mika")


def test_an_upload_that_was_cut_off_goes_on_where_it_ended(server, pictures):
    picture = next(pictures.rglob("*.png")).read_bytes()
    part = server.host.paths().uploads_dir / "mika" / "1.png.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(picture[:100])
    assert server.get("uploads/mika").json()["parts"] == [{"name": "1.png", "bytes": 100}]
    server.client.post("uploads/mika", params={"file": "1.png", "offset": 100}, content=picture[100:])
    assert (part.parent / "1.png").read_bytes() == picture and not part.exists()
    too_far = server.client.post("uploads/mika", params={"file": "2.png", "offset": 100}, content=b"x")
    assert too_far.status_code == 400


def test_upload_names_lead_nowhere_else(server):
    for name in (
        "../x.png",
        "a/../../x.png",
        "/etc/x.png",
        "CON.png",
        "a\\..\\x.png",
        "x.exe",
        "x.py",
        "",
        ".",
        "nul/x.png",
        "x.png\0.txt",
    ):
        answer = server.client.post("uploads/mika", params={"file": name}, content=b"x")
        assert answer.status_code == 400 and answer.json()["problems"][0]["path"] == "file", name
    for name in ("..", "CON", "a:b"):
        assert server.client.post(f"uploads/{name.replace('..', '%2e%2e')}", params={"file": "x.png"}, content=b"x").status_code in (
            400,
            404,
            405,
        )
    assert not server.host.paths().uploads_dir.exists()


def test_nothing_outside_the_allowed_folders_is_read_or_written_when_others_can_reach_it(closed_server, tmp_path, toy_pictures):
    server = closed_server
    outside = shutil.copytree(toy_pictures / "crescent" / "train", tmp_path / "elsewhere")
    inside = shutil.copytree(toy_pictures / "crescent" / "train", tmp_path / "data" / "pictures")
    (inside / "way out").symlink_to(outside)
    picture = next(outside.rglob("*.png"))
    paths = [str(outside), str(inside / ".." / ".." / "elsewhere"), str(inside / "way out")]
    refused = [server.post("pictures", asked(path)) for path in paths]
    refused += [server.post(route, asked(outside)) for route in ("captions", "check", "runs")]
    refused += [server.post("wizard", asked(outside) | {"subject": "style"})]
    refused += [server.post("runs", asked(inside, save__output_dir=str(outside)))]
    refused += [server.post("runs", asked(inside, model__pretrained_model_name_or_path=str(outside / "x.safetensors")))]
    elsewhere = {"network__network_weights": "x.safetensors", "sample__prompt_file": "prompts.txt", "log__logging_dir": "logs"}
    refused += [server.post("runs", asked(inside, **{option: str(outside / name)})) for option, name in elsewhere.items()]
    refused += [server.get("folders", path="/"), server.get("thumbnail", path=str(picture))]
    refused += [server.post("caption", {"path": str(picture), "text": "x"})]
    for answer in refused:
        assert answer.status_code == 403 and answer.json()["problems"][0]["fix"], answer.url
    assert server.post("pictures", asked(inside)).status_code == 200
    assert server.get("folders").json()["roots"] == [{"name": str(tmp_path / "data"), "path": str(tmp_path / "data")}]
    top = server.get("folders", path=str(tmp_path / "data")).json()
    assert top["parent"] == ""


def test_the_first_batches_are_drawn_as_they_will_be_trained(server, pictures):
    found = server.post("batches", asked(pictures, data__flip_aug=True)).json()
    assert base64.b64decode(found["png"]).startswith(b"\x89PNG") and len(found["batches"]) == 6
    assert all(picture["caption"].startswith(("a sks", "sks")) for batch in found["batches"] for picture in batch["pictures"])
    assert server.post("batches", asked("/no/such/folder")).status_code == 400
