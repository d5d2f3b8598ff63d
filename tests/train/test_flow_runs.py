"""Whole short runs with the objective of rectified flow on the small model: files, previews, validation, resuming, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks import random_checkpoint
from lora_trainer import assets
from lora_trainer.api.runs import plans
from lora_trainer.api.runs.start_run import find_problems, resolve_paths
from lora_trainer.config.build import build
from lora_trainer.config.choices.prediction_hosts import prediction_warning
from lora_trainer.config.importing import import_metadata
from lora_trainer.errors import ConfigError
from lora_trainer.events import Finished, Sampled, Stepped, Validated, Warned
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.models.detection.detect import inspect
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.train.previews.preview_prompts import SampleRequest
from lora_trainer.train.previews.sampling import draw_latents
from lora_trainer.train.step.precision import choose_precision
from tests.train.resume_runs import VARIED, Killed, folder_of, resume, same, train
from tests.train.runs import events_of, small_config
from tools import build_flow_model

FLOW = {"model__prediction": "flow"}
PROMPT = "a sks crescent --w 64 --h 64 --s 3 --d 1"


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def losses(events: list[object]) -> list[float]:
    return [event.loss for event in events if isinstance(event, Stepped)]


def test_a_run_learns_draws_validates_and_its_file_says_what_the_model_predicts(tmp_path: Path):
    config = small_config(
        tmp_path,
        **FLOW,
        sample__prompts=[PROMPT, f"{PROMPT} --fs 1", f"{PROMPT} --ss heun"],
        sample__every_n_steps=4,
        sample__at_first=False,
        steps__max_train_steps=4,
        validate__fraction=0.1,
        loss__discrete_flow_shift=2.0,
    )
    events = events_of(config, tmp_path)
    assert isinstance(events[-1], Finished), events[-1]
    validated = [event.loss for event in events if isinstance(event, Validated)]
    assert len(validated) == 2 and validated[0] != validated[1] and np.isfinite(validated).all()
    last_pictures = [np.asarray(Image.open(event.path)) for event in events if isinstance(event, Sampled)]
    assert len(last_pictures) == 3 and all(picture.std() > 1 for picture in last_pictures)
    assert all((one != other).any() for one, other in itertools.combinations(last_pictures, 2)), "shift and sampler change the picture"
    told = metadata_of(tmp_path / "loras" / "small.safetensors")
    words = {"ss_flow_model": "True", "modelspec.prediction_type": "flow", "ss_discrete_flow_shift": "2.0", "ss_zero_terminal_snr": "False"}
    assert {name: told.get(name) for name in words} == words
    assert told["ss_timestep_sampling"] == "uniform" and "ss_v_parameterization" not in told
    assert told["ss_base_model_version"] == "sd_v1" and told["modelspec.architecture"] == "stable-diffusion-v1/lora"
    imported = build(import_metadata(told).values)
    assert (imported.model.prediction, imported.loss.discrete_flow_shift) == ("flow", 2.0)


@pytest.mark.slow
def test_the_small_model_of_the_noise_learns_the_flow_of_the_crescent(tmp_path: Path):
    """From a model of another objective most of what is learned is the objective itself."""
    config = small_config(
        tmp_path,
        **FLOW,
        data__batch_size=4,
        network__dim=8,
        steps__max_train_steps=120,
        validate__data_dir=str(assets.toy_pictures() / "crescent" / "val"),
        validate__every_n_epochs=0,
        save__every_n_epochs=0,
    )
    first, *_, last = (event.loss for event in events_of(config, tmp_path) if isinstance(event, Validated))
    assert last < 0.6 * first


def test_the_objective_is_another_than_that_of_the_noise_and_the_shift_changes_it(tmp_path: Path):
    runs = {"epsilon": {}, "flow": FLOW, "shifted": {**FLOW, "loss__discrete_flow_shift": 3.0}}
    found = {
        name: losses(events_of(small_config(tmp_path / name, steps__max_train_steps=2, **more), tmp_path / name))
        for name, more in runs.items()
    }
    assert len({values[0] for values in found.values()}) == 3


def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path):
    changes = {**VARIED, **FLOW, "steps__max_train_steps": 6, "loss__discrete_flow_shift": 2.5, "loss__timestep_sampling": "logit_normal"}
    del changes["loss__min_snr_gamma"]
    one, other = (small_config(tmp_path / name, **changes) for name in ("whole", "cut"))
    whole = train(one, folder_of(one))
    folder = folder_of(other)

    def kill(job, event):
        if isinstance(event, Stepped) and event.step == 4:
            raise Killed

    train(other, folder, watch=kill)
    assert losses(resume(folder)) == losses(whole)[3:]
    assert same(tmp_path / "whole" / "loras" / "small.safetensors", tmp_path / "cut" / "loras" / "small.safetensors")


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Path:
    """The small model with a header that says flow."""
    path = tmp_path_factory.mktemp("flow") / "marked.safetensors"
    save_file(load_file(assets.toy_checkpoint()), path, metadata={"modelspec.prediction_type": "flow"})
    return path


REFUSED = [
    ({"loss__min_snr_gamma": 5.0}, "loss.min_snr_gamma"),
    ({"loss__debiased_estimation_loss": True}, "loss.debiased_estimation_loss"),
    ({"loss__scale_v_pred_loss_like_noise_pred": True}, "loss.scale_v_pred_loss_like_noise_pred"),
    ({"loss__v_pred_like_loss": 0.5}, "loss.v_pred_like_loss"),
    ({"model__zero_terminal_snr": True}, "model.zero_terminal_snr"),
    ({"model__v_parameterization": True}, "model.v_parameterization"),
    ({"sample__sampler": "euler_a", "sample__prompts": [PROMPT]}, "sample.sampler"),
    ({"sample__prompts": [PROMPT, f"{PROMPT} --ss dpmsolver++"]}, "sample.prompts"),
]


@pytest.mark.parametrize(("changes", "path"), REFUSED)
def test_what_makes_no_sense_with_a_flow_is_refused_by_name_with_the_remedy(tmp_path: Path, marked: Path, changes, path):
    """By `check`, which the tab asks too, with the model named by its header and by the option; and by the run itself."""
    for model in ({"model__pretrained_model_name_or_path": str(marked)}, FLOW):
        config = small_config(tmp_path / str(len(model)), **model, **changes)
        plan = plans.check_config(config, StandaloneHost(tmp_path))
        (problem,) = plan["problems"]
        assert problem.path == path and str(problem.fix), problem
        with pytest.raises(Exception, match="flow") as caught:
            events_of(config, tmp_path / "run")
        assert path in {each.path for each in caught.value.problems}


def test_all_that_is_wrong_is_told_at_once_and_nothing_of_it_with_other_models(tmp_path: Path):
    changes = {"loss__min_snr_gamma": 5.0, "loss__debiased_estimation_loss": True, "sample__sampler": "ddpm", "sample__prompts": [PROMPT]}
    config = resolve_paths(small_config(tmp_path, **FLOW, **changes), StandaloneHost(tmp_path))
    paths = [problem.path for problem in find_problems(config, StandaloneHost(tmp_path))]
    assert paths == ["loss.min_snr_gamma", "loss.debiased_estimation_loss", "sample.sampler"]
    assert find_problems(resolve_paths(small_config(tmp_path, **changes), StandaloneHost(tmp_path)), StandaloneHost(tmp_path)) == []


def warned(config, folder: Path) -> dict[str, str]:
    plan = plans.check_config(config, StandaloneHost(folder))
    assert plan["problems"] == []
    return {warning["path"]: warning["message"].text() for warning in plan["warnings"]}


def test_offsets_are_told_to_be_needless_and_shifts_of_other_models_to_be_ignored(tmp_path: Path):
    told = warned(small_config(tmp_path, **FLOW, loss__noise_offset=0.1), tmp_path)
    assert "not needed" in told["loss.noise_offset"]
    assert not {"loss.discrete_flow_shift", "sample.flow_shift"} & told.keys()
    plain = {"loss__discrete_flow_shift": 2.0, "sample__flow_shift": 2.0, "sample__prompts": [f"{PROMPT} --fs 5"]}
    told = warned(small_config(tmp_path, **plain), tmp_path)
    assert "ignored" in told["loss.discrete_flow_shift"] and "ignored" in told["sample.flow_shift"]
    assert "--fs has no effect" in told["sample.prompts"]


def test_the_plan_and_the_badge_name_the_prediction_type(tmp_path: Path, marked: Path):
    plan = plans.check_config(small_config(tmp_path, model__pretrained_model_name_or_path=str(marked)), StandaloneHost(tmp_path))
    assert plan["model"]["prediction"] == "flow" and "modelspec.prediction_type" in str(plan["model"]["because"])


def test_each_webui_that_would_draw_it_wrong_is_told_before_the_start(tmp_path: Path):
    path, marked = tmp_path / "xl.safetensors", tmp_path / "xl-Rectified.safetensors"
    for host, family, checkpoint in itertools.product(("a1111", "forge", "reforge"), ("sd1", "sdxl"), (path, marked)):
        message = str(prediction_warning("flow", family, checkpoint, host))
        assert checkpoint.stem in message and all(name in message for name in ("Forge Neo", "reForge", "AUTOMATIC1111"))
        assert prediction_warning("v", family, checkpoint, host) is None
    assert prediction_warning("flow", "sdxl", marked, "neo") is None
    assert prediction_warning("flow", "sdxl", path, "neo") and prediction_warning("flow", "sd1", marked, "neo")
    assert prediction_warning("flow", "sdxl", path, "standalone") is None


def test_pictures_of_a_batch_are_those_drawn_alone(marked: Path):
    source, device = FileSource(marked), torch.device("cpu")
    precision = choose_precision("no", source, device)
    bundle = load(source, device, precision.base)
    assert bundle.prediction == "flow"
    requests = [SampleRequest("a red circle", width=64, height=64, seed=seed, steps=3, sampler="euler", flow_shift=2.0) for seed in (1, 2)]
    both = draw_latents(bundle, requests, precision, lambda: False)
    for latents, request in zip(both, requests, strict=True):
        (alone,) = draw_latents(bundle, [request], precision, lambda: False)
        assert torch.allclose(latents, alone, atol=1e-4)


def test_a_refusal_after_loading_names_the_options_too(tmp_path: Path):
    """A run whose checks were passed over, as one from a program of one's own."""
    with pytest.raises(ConfigError, match="min_snr_gamma"):
        events_of(small_config(tmp_path, **FLOW, loss__min_snr_gamma=5.0), tmp_path)
    assert not (tmp_path / "loras").exists() or not list((tmp_path / "loras").iterdir())


def test_no_warning_comes_for_a_plain_run_of_a_flow(tmp_path: Path):
    events = events_of(small_config(tmp_path, **FLOW, steps__max_train_steps=1), tmp_path)
    assert [str(event.message) for event in events if isinstance(event, Warned) and "flow" in str(event.message)] == []


def test_sdxl_with_the_word_in_its_path_is_trained_and_drawn_as_a_flow(tmp_path: Path):
    path = random_checkpoint.write(tmp_path / "xl-Rectified.safetensors", random_checkpoint.SHAPES["sdxl"][1], torch.float32)
    changes = {"steps__max_train_steps": 1, "sample__prompts": [PROMPT], "sample__every_n_steps": 1, "sample__at_first": False}
    config = small_config(tmp_path, model__pretrained_model_name_or_path=str(path), **changes)
    events = events_of(config, tmp_path)
    assert isinstance(events[-1], Finished) and len([event for event in events if isinstance(event, Sampled)]) == 1
    told = metadata_of(tmp_path / "loras" / "small.safetensors")
    assert (told["modelspec.prediction_type"], told["ss_base_model_version"]) == ("flow", "sdxl_base_v1-0")


@pytest.mark.slow
def test_the_script_makes_a_checkpoint_that_is_known_as_a_flow(tmp_path: Path):
    path = build_flow_model.build(tmp_path, pictures=4, steps=1)
    assert inspect(path).prediction == "flow"
    old, new = load_file(assets.toy_checkpoint()), load_file(path)
    changed = {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert old.keys() == new.keys() and changed == {"model"}
