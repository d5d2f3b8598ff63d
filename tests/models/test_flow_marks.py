"""By which marks a model is known to be one of rectified flow, and what a user may say about it."""

from __future__ import annotations

import json

import pytest

from lora_trainer.config.build import build
from lora_trainer.errors import ModelError
from lora_trainer.models.detection.detect import inspect, inspect_with_flags
from lora_trainer.models.files import diffusers_folder
from tests.models.test_detect import ZERO, V, header, sparse

__all__ = ["header"]

HEADERS = [
    {"modelspec.prediction_type": "flow"},
    {"modelspec.prediction_type": "Rectified Flow"},
    {"modelspec.prediction_type": "rectified_flow"},
    {"modelspec.predict_key": "flow-matching"},
    {"ss_flow_model": "True"},
    {"ss_flow_model": "True", "modelspec.prediction_type": "epsilon"},
]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("words", HEADERS, ids=str)
def test_a_header_tells_it(tmp_path, header, family, words):
    facts = inspect(sparse(tmp_path / "a.safetensors", header(family), words))
    assert (facts.prediction, facts.sure, facts.detected.is_marked, facts.zero_terminal_snr) == ("flow", True, True, False)
    assert facts.native_size == {"sd1": 512, "sdxl": 1024}[family]


@pytest.mark.parametrize("place", ["XL-Rectified-Flow.safetensors", "RECTIFIED/model.safetensors", "my rectified ones/b/model.safetensors"])
def test_the_word_in_the_path_tells_it_of_sdxl_alone_as_forge_neo_reads_it(tmp_path, header, place):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = inspect(sparse(path, header("sdxl")))
    assert facts.prediction == "flow" and "rectified" in str(facts.reason)
    assert inspect(sparse(path, header("sd1"))).prediction == "epsilon"


def test_the_word_in_the_path_wins_over_marks_that_a_model_kept_from_another(tmp_path, header):
    path = tmp_path / "rectified.safetensors"
    assert inspect(sparse(path, header("sdxl"), {"modelspec.prediction_type": "epsilon"})).prediction == "flow"
    path.with_suffix(".yaml").write_text("target: x.EpsScaling\n", encoding="utf-8")
    assert inspect(path).prediction == "flow"
    facts = inspect(sparse(path, {**header("sdxl"), **V, **ZERO}))
    assert (facts.prediction, facts.zero_terminal_snr) == ("flow", False)


def test_a_folder_with_a_scheduler_of_flow_matching_is_one(tmp_path):
    def told(scheduler: dict[str, object]) -> str:
        (tmp_path / "scheduler").mkdir(exist_ok=True)
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler), encoding="utf-8")
        return diffusers_folder.scheduler_prediction(tmp_path)[0]

    assert told({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}) == "flow"
    assert told({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}) == "flow"
    assert told({"_class_name": "EulerDiscreteScheduler"}) == "epsilon"
    assert told({"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction"}) == "v_prediction"


def told_by(path, **options):
    return inspect_with_flags(path, build({"model": options}).model)


def test_a_user_says_it_where_the_file_does_not_also_against_epsilon_in_its_header(tmp_path, header):
    for words in (None, {"modelspec.prediction_type": "epsilon"}):
        path = sparse(tmp_path / "a.safetensors", header("sdxl"), words)
        facts = told_by(path, prediction="flow")
        assert (facts.prediction, facts.sure, str(facts.reason)) == ("flow", True, "you said so")
    assert told_by(path, prediction="flow", v_parameterization=False).prediction == "flow"
    rectified = sparse(tmp_path / "rectified.safetensors", header("sdxl"))
    assert told_by(rectified, prediction="epsilon").prediction == "epsilon"
    assert told_by(rectified, prediction="v", zero_terminal_snr=True).zero_terminal_snr


@pytest.mark.parametrize(
    ("marks", "words", "options", "path", "message"),
    [
        (V, {}, {"prediction": "flow"}, "model.prediction", "prediction says otherwise"),
        ({}, {"modelspec.prediction_type": "flow"}, {"prediction": "epsilon"}, "model.prediction", "predicts flow"),
        ({}, {"modelspec.prediction_type": "flow"}, {"v_parameterization": True}, "model.v_parameterization", "v_parameterization says"),
        ({}, {}, {"prediction": "flow", "v_parameterization": True}, "model.v_parameterization", "is to predict flow"),
        ({}, {}, {"prediction": "v", "v_parameterization": False}, "model.v_parameterization", "is to predict v"),
        ({}, {}, {"prediction": "flow", "zero_terminal_snr": True}, "model.zero_terminal_snr", "rectified flow"),
        ({}, {"ss_flow_model": "true"}, {"zero_terminal_snr": True}, "model.zero_terminal_snr", "rectified flow"),
    ],
)
def test_what_contradicts_is_refused_with_its_option(tmp_path, header, marks, words, options, path, message):
    file = sparse(tmp_path / "a.safetensors", {**header("sdxl"), **marks}, words)
    with pytest.raises(ModelError, match=message) as caught:
        told_by(file, **options)
    assert caught.value.problems[0].path == path and str(caught.value.problems[0].fix)


def test_sdxl_with_the_vae_of_32_channels_is_refused_by_name(tmp_path, header):
    shapes = header("sdxl")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    with pytest.raises(ModelError, match="Mugen"):
        inspect(sparse(tmp_path / "a.safetensors", {**shapes, first: [shapes[first][0], 32, 3, 3]}))
