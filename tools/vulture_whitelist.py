"""Names that look unused to vulture, each with who uses it. Read by `standalone.py tool vulture`, never run."""

# read by name: getattr, TOML, JSON
_.block_dims  # config/checks/network_checks.py and adapters/layer_selection.py read these three with getattr
_.block_alphas
_.conv_block_alphas
_.image_dir  # key of a table [[data.subsets]], read from the table (config/subsets.py)
_.fidelity  # grid/record.py writes all scores into the grid's JSON
_.paused_because  # part of a run's status in JSON; javascript/outcome.js shows it
_.state_count  # saved and restored by its name, see the table at the end of train/progress.py

# called or read by a library
_.http_error_308  # urllib's name for the handler of this redirect (models/files/hub.py)
_.find_class  # overrides pickle.Unpickler (models/files/pickled.py)
_.persistent_load  # overrides pickle.Unpickler
return_dict  # argument of diffusers' schedulers, passed to ours too (train/previews/sampling.py)
_._scale  # torch's GradScaler creates this tensor and the next one again when they are None (train/trainer.py)
_._growth_tracker
stamps  # part of the key of lru_cache (host/a1111/facts.py)

# read or called by the WebUI
xs  # arguments with which the X/Y/Z plot calls an axis (host/a1111/axes.py)
opt
_.dtype_vae  # modules.devices (host/a1111/lease.py)
_.cached_c  # modules.processing's caches of encoded prompts (host/a1111/model.py)
_.cached_uc
_.cached_hr_c
_.cached_hr_uc
_.override_settings  # fields of modules.processing's request (host/a1111/preview.py)
_.override_settings_restore_afterwards
_.script_args
_.stopping_generation  # modules.shared.state
_.current_lora_hash  # fields of Forge's model (host/forge/engine.py)
_.forge_objects
_.forge_objects_after_applying_lora
_.do_not_save_to_config  # keeps a Gradio component out of the WebUI's ui-config.json

_.middleware_stack  # Starlette's: the WebUI's app puts its middleware together again
_.status_code  # Starlette's response
_.distilled_cfg_scale  # Forge Neo reads the shift of rectified flow from it (host/a1111/preview.py)
output_size  # diffusers' name of an argument that its blocks pass

# used by tests only
_.step_memory  # tests look at the parts of one phase
_.replay_count  # tests count the replays of CUDA graphs, which nothing else shows
_.model_channels  # tests compare what detection reads off a file with what was written
_.text_layers
_.samples_dir  # tests put previews into a run's folder
HalfWeights  # bfloat16 weights with stochastic rounding: waits for full fine-tuning (docs/memory.md)
complete_checkpoint  # a whole checkpoint from its parts: waits for full fine-tuning
_.programs  # adapters/files/naming.py: who writes each prefix, for whoever reads the table; a test counts the rows
