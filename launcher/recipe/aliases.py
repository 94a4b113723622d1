"""Other trainers' names for the keys of a recipe, so that an unknown key can be answered with the right one.

Data only. A name is looked up with its sections first (`train.max_norm`), then alone (`max_norm`). From the public
options of LitGPT, Lightning, torchtitan, nanoGPT-like scripts and Hugging Face's Trainer and model configs.
"""

from __future__ import annotations

from launchyard.launcher.recipe.hints import Vocabulary

_OURS_TO_THEIRS: dict[str, str] = {
    "name": "run_name experiment_name job_name exp_name",
    "resources.nodes": "num_nodes nnodes n_nodes",
    "resources.gpus_per_node": "devices gpus num_gpus n_gpus gpus_per_machine",
    "resources.nproc_per_node": "num_proc n_procs workers num_processes",
    "resources.time_limit": "walltime time_limit",
    "train.max_time": "max_time",
    "model.preset": "model_name model.name model.flavor model.size model_type model.model_name size",
    "model.init_from": "initial_checkpoint_dir checkpoint_dir pretrained_model_name_or_path model_name_or_path "
    "base_model base_model_path initial_load_path load_from pretrained hf_assets_path",
    "model.dim": "hidden_size n_embd d_model embedding_dimensions embed_dim model_dim hidden_dim",
    "model.n_layers": "num_hidden_layers n_layer num_layers depth layers num_hidden_layers",
    "model.n_heads": "num_attention_heads n_head num_heads heads",
    "model.n_kv_heads": "num_key_value_heads n_query_groups num_kv_heads",
    "model.ffn_dim": "intermediate_size ffn_hidden_size mlp_dim d_ff n_inner",
    "model.max_seq_len": "max_position_embeddings n_positions context_length",
    "model.rope_fraction": "rotary_pct rotary_percentage partial_rotary_factor",
    "model.rope_theta": "rope_base rotary_emb_base",
    "model.norm_eps": "layer_norm_eps rms_norm_eps layer_norm_epsilon norm_epsilon",
    "model.parallel_residual": "use_parallel_residual",
    "model.tie_embeddings": "tie_word_embeddings",
    "model.head_dim": "head_size kv_channels",
    "model.activation": "hidden_act activation_function hidden_activation",
    "model.window": "sliding_window sliding_window_size",
    "model.attention_softcap": "attn_logit_softcapping attention_logit_softcapping",
    "model.logit_softcap": "final_logit_softcapping",
    "model.head_bias": "lm_head_bias",
    "model.moe.n_experts": "num_experts num_local_experts n_routed_experts n_expert",
    "model.moe.top_k": "num_experts_per_tok n_expert_per_token",
    "model": "model_config",
    "tokenizer": "tokenizer_dir tokenizer_path model.tokenizer_path model.tokenizer data.tokenizer tokenizer_name",
    "data.source": "dataset train_data_path data_path dataset_path training.dataset_path data_dir train_file data.path",
    "data.mixture": "datasets mix dataset_weights data_mixture mixture_weights sources train_data data.sources",
    "data.mask_prompt": "mask_input train_on_inputs train_on_prompt mask_inputs",
    "data.seq_len": "block_size max_seq_length sequence_length seq_length tokens_per_sample train.seq_len "
    "training.seq_len model.block_size max_length seqlen",
    "data.validation": "val_data_path val_split_fraction validation_split val_fraction",
    "train.global_batch_size": "train_batch_size batch_size_total",
    "train.micro_batch_size": "batch_size local_batch_size per_device_train_batch_size device_batch_size",
    "train.max_steps": "steps num_steps total_steps max_iters train_iters training.steps iters",
    "train.max_tokens": "num_tokens token_budget total_tokens",
    "train.max_epochs": "epochs num_epochs num_train_epochs",
    "train.max_grad_norm": "max_norm gradient_clip_val clip_grad grad_clip max_gradient_norm gradient_clipping",
    "train.max_grad_value": "clip_value gradient_clip_value clip_grad_value max_value",
    "train.dropout": "dropout resid_pdrop attn_pdrop embd_pdrop attention_dropout hidden_dropout model.dropout",
    "train.label_smoothing": "label_smoothing label_smoothing_factor",
    "train.z_loss": "z_loss z_loss_weight z_loss_multiplier softmax_auxiliary_loss auxiliary_loss_multiplier",
    "train.ema_decay": "ema ema_beta ema_decay",
    "train.precision": "dtype mixed_precision bf16 fp16 mixed_precision_param",
    "train.seed": "seed random_seed",
    "train.device": "device accelerator",
    "optimizer.lr": "lr learning_rate max_lr peak_lr",
    "optimizer.betas": "beta1 beta2 adam_beta1 adam_beta2",
    "optimizer.eps": "adam_epsilon adam_eps",
    "optimizer.weight_decay": "weight_decay wd",
    "optimizer.name": "optim optimizer_type optimizer_name optimizer.type optimizer.class_path",
    "optimizer.beta2_decay": "rms_decay decay_rate",
    "optimizer.low_memory": "low_memory_optimizer",
    "optimizer.groups": "param_groups parameter_groups",
    "schedule.decay_share": "decay_ratio lr_decay_frac",
    "schedule.power": "lr_power poly_power",
    "schedule.warmup_steps": "lr_warmup_steps warmup_iters warmup_ratio lr_warmup_fraction num_warmup_steps warmup",
    "schedule.min_lr": "min_learning_rate final_lr lr_min min_lr_factor",
    "schedule.name": "lr_scheduler_type decay_type lr_schedule",
    "schedule": "lr_scheduler scheduler",
    "parallel.dp_shard": "data_parallel_shard_degree fsdp shard_degree",
    "parallel.cp": "context_parallel context_parallel_size context_parallel_degree cp_size sequence_parallel_size",
    "parallel.tp": "tensor_parallel tensor_parallel_size tensor_parallel_degree tensor_model_parallel_size tp_size",
    "parallel.shard_level": "ddp_sharding_level zero_stage zero_optimization.stage sharding_strategy",
    "parallel.cpu_offload": "offload_params fsdp_offload_params offload",
    "parallel.dp_replicate": "data_parallel_replicate_degree replicas",
    "parallel.activation_checkpointing": "activation_checkpoint gradient_checkpointing recompute "
    "activation_checkpoint.mode",
    "parallel.compile": "compile torch_compile training.compile",
    "parallel": "parallelism strategy",
    "adapter": "peft lora peft_config adapter_config",
    "adapter.r": "lora_r lora_rank rank",
    "adapter.alpha": "lora_alpha",
    "adapter.dropout": "lora_dropout",
    "adapter.targets": "target_modules lora_target_modules lora_modules",
    "adapter.trained": "modules_to_save",
    "adapter.ranks": "rank_pattern",
    "adapter.alphas": "alpha_pattern",
    "adapter.layers": "layers_to_transform",
    "adapter.exclude": "exclude_modules",
    "adapter.quantize": "quantize load_in_4bit load_in_8bit",
    "metrics.trackers": "logger logger_name report_to loggers trackers log_to enable_tensorboard enable_wandb",
    "metrics.project": "project wandb_project project_name experiment wandb.project",
    "profile": "profiler profiling",
    "profile.memory": "profile_memory enable_memory_snapshot profiling.enable_memory_snapshot",
    "profile.shapes": "record_shapes",
    "profile.stacks": "with_stack",
    "watchdog.step_seconds": "watchdog_timeout hang_timeout train_timeout_seconds comm.train_timeout_seconds",
    "watchdog.slow_seconds": "init_timeout_seconds comm.init_timeout_seconds timeout",
    "checkpoint.every_steps": "save_interval save_steps save_every checkpoint_interval checkpoint.interval "
    "every_n_train_steps",
    "checkpoint.keep": "save_total_limit keep_latest_k",
    "checkpoint.keep_best": "save_top_k",
    "checkpoint.best_metric": "monitor metric_for_best_model",
    "checkpoint.best_mode": "greater_is_better",
    "early_stopping.patience": "early_stopping_patience",
    "early_stopping": "early_stop earlystopping",
    "checkpoint.async_save": "async_mode async_checkpoint",
    "validation.every_steps": "eval_interval eval_steps eval_every val_check_interval eval.interval validation.freq",
    "validation.every_epochs": "check_val_every_n_epoch eval_epochs validation_epochs",
    "validation.sets": "val_dataloaders val_datasets eval_datasets eval_dataset",
    "validation.max_batches": "eval_iters limit_val_batches max_eval_batches eval.max_iters validation.steps",
    "validation.at_start": "initial_validation",
    "validation": "eval evaluation",
    "train": "training trainer",
}
_ADVICE: dict[str, str] = {
    "gradient_accumulation_steps": "it follows: train.global_batch_size / (train.micro_batch_size x workers)",
    "out_dir": "the place of a run is no part of a recipe; use --run-url URL",
    "resume": "a run goes on with: launch resume RUN",
    "parallel.pp": "blocks are not pipelined; parallel.tp, parallel.cp and FSDP (parallel.dp_shard) cut a model",
    "cluster": "the place is no part of a recipe; use --cluster NAME",
}
_ADVICE |= dict.fromkeys(
    ("grad_accum_steps", "gradient_accumulation_iters", "accumulate_grad_batches", "gradient_accumulation"),
    _ADVICE["gradient_accumulation_steps"],
)
_ADVICE |= dict.fromkeys(
    ("pp", "pipeline_parallel", "pipeline_parallel_size", "pipeline_parallel_degree"), _ADVICE["parallel.pp"]
)
_ADVICE |= dict.fromkeys(("output_dir", "run_url", "run_dir", "save_dir", "dump_folder"), _ADVICE["out_dir"])
_ADVICE |= dict.fromkeys(("resume_from_checkpoint", "ckpt_path"), _ADVICE["resume"])
RECIPE_VOCABULARY = Vocabulary(
    moved={theirs: ours for ours, names in _OURS_TO_THEIRS.items() for theirs in names.split()}, advice=_ADVICE
)
_NOT_HERE = (
    "access_key secret_key secret key access_key_id secret_access_key aws_access_key_id aws_secret_access_key "
    "aws_session_token session_token token password client_kwargs account_key connection_string credentials"
)
CLUSTER_VOCABULARY = Vocabulary(
    moved={
        "type": "scheduler",
        "backend": "scheduler",
        "env": "environment",
        "run_root": "storage",
        "root": "storage",
        "gpus_per_node": "node.gpus",
        "gpus": "node.gpus",
        "cpus": "node.cpus",
        "memory": "node.memory",
        "bucket": "storage.url",
        "endpoint": "storage.endpoint_url",
        "endpoint_url": "storage.endpoint_url",
        "storage.endpoint": "storage.endpoint_url",
        "storage.retry": "storage.retry_minutes",
    },
    advice=dict.fromkeys(
        _NOT_HERE.split(),
        "no secrets here, a plan is stored in plain text; put it into a credentials file and name that in "
        "storage.credentials_file and storage.profile, or export it where you launch",
    ),
)
