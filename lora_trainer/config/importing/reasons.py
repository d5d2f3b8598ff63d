"""Reasons why a key of another trainer is not taken."""

from __future__ import annotations

from typing import Any

from lora_trainer.messages import Message, say

EMPTY = say("Empty there: nothing to import.")
OFF = say("Switched off there, as here.")
LIKE_EMPTY = say("0 means there what it means here when nothing is given.")
NEW_SEED = say("0 means a new seed for each run there; here each run has the seed that is set, so that it can be repeated.")
ONE_CYCLE = say("One cycle there, as here.")
UNKNOWN = say("Known neither to sd-scripts nor here.")
START = say("How the other program is started; not needed here.")
WINDOW = say("Belongs to the other program's user interface.")
ITSELF = say("The trainer finds this out by itself.")
LOG = say("Every run here keeps its own log.")
NOT_YET = say("Not supported here yet.")
ONLY_STABLE_DIFFUSION = say("Belongs to models of another kind.")
SAFETENSORS = say("Files are always safetensors here.")
RESUMED = say("Every run here keeps its own state, and is resumed by its name: train --resume RUN, or the tab's run menu.")
CALCULATED = say("How it is calculated there; the result is the same.")
OTHER_NETWORK = say("This kind of network is calculated without it here.")
CONV = say("Only other kinds of networks use it, there too.")
WHOLE_MODEL = say("Training of a LoRA there does not read it: it belongs to training the whole model.")
OTHER_TRAINING = say("Training of a LoRA there does not read it: it belongs to training a text embedding.")
EXTRA_ARGUMENTS = say("Command-line arguments are not read: write each as a setting.")

_OTHER_NETWORKS = """conv_dim conv_alpha LyCORIS_preset bypass_mode constrain decompose_both dora_wd factor full_matrix rescaled
    train_norm train_on_input unit use_cp use_scalar use_tucker rank_dropout_scale"""
LYCORIS = frozenset(_OTHER_NETWORKS.split())
"""Keys of kohya_ss that its plain LoRA does not use."""
OFF_VALUES = (False, 0, 0.0, None, "", "0", "0.0", "none", "None", "False", "false", "no")

_KEYS_BY_REASON: dict[Message, str] = {
    CALCULATED: """bypass_mode""",
    OTHER_NETWORK: """rank_dropout_scale train_on_input use_scalar""",
    START: """num_cpu_threads_per_process num_processes num_machines multi_gpu gpu_ids main_process_port dynamo_backend dynamo_mode
        dynamo_use_dynamic dynamo_use_fullgraph extra_accelerate_launch_args ddp_timeout ddp_gradient_as_bucket_view
        ddp_static_graph max_data_loader_n_workers persistent_data_loader_workers lowram lowvram highvram
        disable_mmap_load_safetensors tokenizer_cache_dir config_file output_config deepspeed zero_stage offload_optimizer_device
        offload_optimizer_nvme_path offload_param_device offload_param_nvme_path zero3_init_flag zero3_save_16bit_model
        fp16_master_weights_and_gradients dataset_class skip_cache_check debug_dataset text_encoder_batch_size""",
    RESUMED: """resume save_state_on_train_end initial_epoch initial_step skip_until_initial_step""",
    WINDOW: """epoch
        model_list save_as_bool save_as file_path training_preset folders model_path config_name enable_preview enable_block_weights
        enable_base_weight ui_custom_params logging_tab create_caption create_buckets use_latent_files caption_metadata_filename
        latent_metadata_filename full_path metadata.name metadata.version metadata.author metadata.description metadata.train_type""",
    ITSELF: """sdxl sdxl_checkbox flux1_checkbox sd3_checkbox model_train_type
        use_safetensors is_valid""",
    LOG: """log_tracker_config log_config wandb_api_key wandb_run_name use_wandb""",
    WHOLE_MODEL: """block_lr learning_rate_te learning_rate_te1 learning_rate_te2 train_text_encoder fused_optimizer_groups
        diffusers_xformers""",
    OTHER_TRAINING: """init_word num_vectors_per_token template token_string use_object_template use_style_template""",
    NOT_YET: """perlin_noise optimizer_schedulefree_wrapper schedulefree_wrapper_args
        train_lora_ggpo ggpo_beta ggpo_sigma full_fp16 full_bf16 fused_backward_pass optimizer_accumulation_steps
        blocks_to_swap cpu_offload_checkpointing no_metadata training_comment metadata_title metadata_author metadata_description
        metadata_license metadata_tags metadata_usage_hint metadata_thumbnail metadata_merged_from metadata_trigger_phrase
        metadata_preprocessor metadata_is_negative_embedding weighted_captions save_state_to_huggingface
        resume_from_huggingface huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token
        huggingface_repo_visibility async_upload save_last_n_epochs save_last_n_epochs_state save_last_n_steps save_last_n_steps_state
        save_n_epoch_ratio stop_text_encoder_training stop_text_encoder_training_pct dataset_repeats cache_info optimizer_args_custom
        randomly_choice_prompt no_token_padding save_clip save_t5xxl batch_size train_dir image_folder
        model_type""",
    ONLY_STABLE_DIFFUSION: """t5xxl_lr lumina_checkbox gemma2 split_qkv apply_lg_attn_mask enable_scaled_pos_embed training_shift
        ae clip_l clip_g t5xxl t5xxl_device t5xxl_dtype t5xxl_max_token_length discrete_flow_shift guidance_scale
        model_prediction_type timestep_sampling sigmoid_scale mode_scale logit_mean logit_std weighting_scheme split_mode train_blocks
        flux1_cache_text_encoder_outputs flux1_cache_text_encoder_outputs_to_disk train_t5xxl flux_guidance enable_all_linear img_attn_dim
        img_mlp_dim img_mod_dim in_dims single_dim single_mod_dim txt_attn_dim txt_mlp_dim txt_mod_dim mem_eff_save apply_t5_attn_mask
        cpu_offload_checkpointing_flux train_double_block_indices train_single_block_indices single_blocks_to_swap double_blocks_to_swap
        sd3_cache_text_encoder_outputs sd3_cache_text_encoder_outputs_to_disk sd3_clip_l sd3_clip_l_dropout_rate sd3_clip_g_dropout_rate
        sd3_t5_dropout_rate sd3_enable_scaled_pos_embed sd3_fused_backward_pass sd3_t5xxl sd3_text_encoder_batch_size
        pos_emb_random_crop_rate clip_g_dropout_rate clip_l_dropout_rate t5_dropout_rate use_t5xxl_cache_only
        sd3_disable_mmap_load_safetensors blockwise_fused_optimizers flux_fused_backward_pass""",
}
"""One row a key: no key is in two of them, and none has an option here."""
REASONS: dict[str, Message] = {name: why for why, names in _KEYS_BY_REASON.items() for name in names.split()}


def reason_left(name: str, value: Any) -> Message:
    """Why a key without a matching option is not taken, by its name and value."""
    if value is None or value == "" or value == [] or value == {}:
        return EMPTY
    if name == "additional_parameters":
        return EXTRA_ARGUMENTS
    why = REASONS.get(name, UNKNOWN)
    is_off = not isinstance(value, (list, dict)) and any(type(value) is type(off_value) and value == off_value for off_value in OFF_VALUES)
    return OFF if is_off and why in (NOT_YET, OTHER_NETWORK, CALCULATED) else why
