"""sd-scripts' command lines are read as words: variables and conditions of the file itself are understood, nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.config.importing import Imported, import_file, import_text
from lora_trainer.errors import ConfigError

BAT = r"""@echo off
rem accelerate launch train_network.py --network_dim 99
set MODEL=D:\models\my model.safetensors
set "DIM=16"
call venv\Scripts\activate.bat
if exist fast.txt set LR=1e-3
accelerate launch --num_cpu_threads_per_process 8 sdxl_train_network.py ^
  --pretrained_model_name_or_path="%MODEL%" --train_data_dir="D:\pics\new" ^
  --output_dir="%USERPROFILE%\out" --output_name="vase" ^
  --network_module=networks.lora --network_dim=%DIM% --network_alpha 8 ^
  --network_train_unet_only --unet_lr=2e-4 --learning_rate=%LR% --max_train_epochs=10 ^
  --resolution=1024,1024 --optimizer_type=Adafactor ^
  --optimizer_args scale_parameter=False relative_step=False
pause
"""
SH = """#!/bin/bash
export MODEL="/models/base.safetensors"  # it's; here
dim=32; alpha=16
DIR="/data/my pics"
extArgs=()
if [[ $dim == 32 ]]; then
  extArgs+=("--clip_skip 2")
else
  extArgs+=("--v2")
fi
empty=""
if [[ $empty ]]; then extArgs+=("--lowram"); fi
if [ -f x.txt ]; then extArgs+=("--save_state"); fi
ARGS=(
  --network_args conv_dim=4 "conv_alpha=2"
  --caption_extension=".txt"
)
accelerate launch --num_cpu_threads_per_process 1 train_network.py \\
    --pretrained_model_name_or_path=$MODEL --train_data_dir="$DIR" --output_dir=$HOME/out \\
    --output_name='my lora' --network_module=networks.lora --network_dim $dim --network_alpha=${alpha} \\
    --seed $(touch made-by-the-import) --optimizer_args "weight_decay=0.1" "betas=.9,.99" \\
    --learning_rate=1e-4 --max_train_steps=1000 "${ARGS[@]}" ${extArgs[@]} --save_every_n_epochs=1 2>&1 | tee log.txt
"""
PS1 = """# LoRA script { by } someone
$model = "./sd-models/model.ckpt" # base model | it's
$dir = './my pics'
$network_module = "lycoris.kohya"
$network_weights = ""
$dim = 32
$unet_only = 0
$noise_offset = 0
$algo = "loha"
.\\venv\\Scripts\\activate
$ext_args = [System.Collections.ArrayList]::new()
if ($unet_only) {
  [void]$ext_args.Add("--network_train_unet_only")
}
else {
  [void]$ext_args.Add("--clip_skip=2")
}
if ($network_weights) {
  [void]$ext_args.Add("--network_weights=" + $network_weights)
}
if ($network_module -eq "lycoris.kohya") {
  [void]$ext_args.Add("--network_args")
  [void]$ext_args.Add("algo=$algo")
}
if ($noise_offset -ne 0) { [void]$ext_args.Add("--noise_offset=$noise_offset") }
if (Test-Path x) { $ext_args += "--save_state" }
$more = @("--max_grad_norm", "0.5")
accelerate launch --num_cpu_threads_per_process=8 "./sd-scripts/train_network.py" `
  --pretrained_model_name_or_path=$model `
  --train_data_dir=$dir --network_module=$network_module --network_dim=$dim `
  --learning_rate="1e-4" --max_train_epochs 10 --wandb_api_key="secret123" `
  --xformers @more $ext_args
Write-Output "done"
"""
CLEAR = "depends on what the file does not tell"


def reason(found: Imported, key: str) -> str:
    """The reason for which the key was left; "" where it was taken."""
    return next((left.why.text() for left in found.left if left.key == key), "")


def script(folder: Path, name: str, text: str) -> Imported:
    """The import of a script that lies in `folder`."""
    (folder / name).write_text(text, encoding="utf-8")
    return import_file(folder / name)


def test_a_batch_file_is_read_with_its_variables(tmp_path: Path):
    found = script(tmp_path, "train.bat", BAT)
    config = found.config
    assert found.kind == "command"
    assert (config.model.pretrained_model_name_or_path, config.data.train_data_dir) == (r"D:\models\my model.safetensors", r"D:\pics\new")
    assert (config.network.dim, config.network.alpha, config.optimizer.unet_lr, config.optimizer.text_encoder_lr) == (16, 8.0, 2e-4, 0.0)
    assert (config.optimizer.type, config.optimizer.args) == ("AdaFactor", "scale_parameter=False relative_step=False")
    assert CLEAR in reason(found, "output_dir") and CLEAR in reason(found, "learning_rate")
    assert len(found.taken) + len(found.left) == found.keys == 15
    assert not {"optimizer.learning_rate", "network.dim", "network.alpha"} & {filled.path for filled in found.filled}


def test_a_shell_script_is_read_with_its_lists_and_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = script(tmp_path, "train.sh", SH)
    config = found.config
    assert (config.model.pretrained_model_name_or_path, config.data.train_data_dir) == ("/models/base.safetensors", "/data/my pics")
    assert (config.network.dim, config.network.alpha, config.network.conv_dim, config.network.conv_alpha) == (32, 16.0, 4, 2.0)
    assert (config.model.clip_skip, config.save.output_name, config.save.every_n_epochs) == (2, "my lora", 1)
    assert config.optimizer.args == "weight_decay=0.1 betas=.9,.99" and config.data.caption_extension == ".txt"
    assert {left.key for left in found.left if CLEAR in left.why.text()} == {"output_dir", "seed", "save_state"}
    assert not (tmp_path / "made-by-the-import").exists()


def test_a_powershell_script_is_read_with_its_lists_and_conditions(tmp_path: Path):
    found = script(tmp_path, "train.ps1", PS1)
    config = found.config
    assert (config.model.pretrained_model_name_or_path, config.data.train_data_dir) == ("./sd-models/model.ckpt", "./my pics")
    assert (config.network.type, config.network.dim, config.model.clip_skip) == ("loha", 32, 2)
    assert (config.optimizer.max_grad_norm, config.memory.attention, config.optimizer.text_encoder_lr) == (0.5, "xformers", None)
    assert CLEAR in reason(found, "save_state") and "noise_offset" not in {one.key for one in (*found.taken, *found.left)}
    assert "secret123" not in str(found.to_json())


def test_pasted_arguments_are_read_with_and_without_a_command():
    line = "accelerate launch train_network.py --network_module networks.lora --network_dim=8 --text_encoder_lr 1e-5 5e-6\n"
    for text in (line, line.partition(".py ")[2], line.replace(" --", "\n--"), "!" + line):
        config = import_text(text).config
        assert (config.network.dim, config.optimizer.text_encoder_lr, config.steps.max_train_steps) == (8, (1e-5, 5e-6), 1600)


@pytest.mark.parametrize("text", [BAT, SH, PS1])
def test_a_pasted_script_means_what_its_file_means(text: str, tmp_path: Path):
    name = {BAT: "a.bat", SH: "a.sh", PS1: "a.ps1"}[text]
    assert import_text(text).config == script(tmp_path, name, text).config


def test_a_pasted_line_with_a_path_of_windows_keeps_its_backslashes():
    config = import_text(r'python train_network.py --network_dim 8 --train_data_dir="D:\pics\new" --output_dir E:\out').config
    assert (config.data.train_data_dir, config.save.output_dir) == (r"D:\pics\new", r"E:\out")


def test_settings_in_a_file_that_the_command_names_are_not_guessed():
    found = import_text("accelerate launch train_network.py --config_file a.toml --output_name x\n")
    assert "a.toml" in reason(found, "config_file") and found.filled == ()


def test_several_commands_and_commands_of_other_trainings_are_told():
    text = "python train_db.py --learning_rate 1e-5 --max_train_steps 5\npython train_network.py --network_dim 8\n"
    notes = [note.text() for note in import_text(text).notes]
    assert any("2 training commands" in note for note in notes) and any("train_db.py does not train a LoRA" in note for note in notes)


def test_a_script_without_a_training_command_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="known kind"):
        script(tmp_path, "start.sh", "echo hello\npython webui.py --listen\n")
