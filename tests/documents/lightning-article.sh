# An article about Lightning: what its code sets up, as recipes and commands.

#> import lightning as L
launch version

# A module, its optimizer and its schedule are keys: lr 2e-5, decay of matrices alone, a cosine by the step.
#>> class LLMFinetuner(L.LightningModule): model_name="meta-llama/Llama-3.2-1B", lr=2e-5, weight_decay=0.01, warmup_steps=100
#> optimizer = torch.optim.AdamW([{"params": decay, …}, {"params": no_decay, "weight_decay": 0.0}], lr=…, betas=(0.9, 0.95))
#> scheduler = get_cosine_schedule_with_warmup(…); "interval": "step"
launch download meta-llama/Llama-3.2-1B
launch download --dataset alpaca
launch finetune meta-llama/Llama-3.2-1B --method full --data alpaca data.style=alpaca optimizer.lr=2e-5 optimizer.weight_decay=0.01 \
  'optimizer.betas=[0.9, 0.95]' schedule.name=cosine schedule.warmup_steps=100 --dry-run

# Padding never counts, and a set of data is one key.
#> class InstructionDataModule(L.LightningDataModule): dataset_name, max_length=512, batch_size=4
#> raw = load_dataset(self.dataset_name, split="train").train_test_split(test_size=0.05)
launch prepare "$(launch download --dataset alpaca)/data/*.parquet" --kind instruct --style alpaca --seq-len 512 --validation 0.05 \
  --tokenizer "$(launch download meta-llama/Llama-3.2-1B)" --out data/alpaca
launch prepare data/alpaca --check
launch finetune meta-llama/Llama-3.2-1B --method full --data alpaca data.style=alpaca data.seq_len=512 data.validation=0.05 --dry-run

#> trainer_dev = L.Trainer(max_epochs=3, accelerator="gpu", devices=1, precision="bf16-mixed", val_check_interval=0.25)
launch finetune/llama-3.2-1b-full train.precision=bf16-mixed train.max_epochs=3 validation.every_steps=1 train.global_batch_size=16 \
  train.device=cpu --run-url runs/dev

# Two workers here; with GPUs --gpus-per-node 8.
#> fsdp_strategy = FSDPStrategy(auto_wrap_policy=None, activation_checkpointing_policy=None, cpu_offload=False)
#> trainer_prod = L.Trainer(max_epochs=3, devices=8, strategy=fsdp_strategy, precision="bf16-mixed", gradient_clip_val=1.0,
#>   accumulate_grad_batches=4, callbacks=[ModelCheckpoint(save_top_k=3, monitor="val/loss", mode="min", save_last=True),
#>   LearningRateMonitor(logging_interval="step"), EarlyStopping(monitor="val/loss", patience=3, mode="min")],
#>   logger=WandbLogger(project="llm-finetune"), log_every_n_steps=10)
#> trainer_prod.fit(model, datamodule=datamodule)
launch finetune/llama-3.2-1b-full resources.nproc_per_node=2 train.device=cpu train.precision=fp32 train.max_epochs=2 train.max_grad_norm=1.0 \
  data.seq_len=256 train.global_batch_size=8 train.micro_batch_size=1 validation.every_steps=4 checkpoint.keep_best=3 early_stopping.metric=loss \
  early_stopping.patience=3 early_stopping.mode=min metrics.trackers=[csv] --run-url checkpoints/run
launch metrics checkpoints/run --jsonl | grep '"lr"'
launch checkpoints checkpoints/run

#> trainer_prod.fit(model, datamodule=datamodule, ckpt_path="checkpoints/last.ckpt")
launch resume checkpoints/run --follow train.max_epochs=3

#> lora_config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "v_proj", "k_proj", "o_proj"])
#> self.model.print_trainable_parameters()
#> self.model.save_pretrained(f"lora-adapter-epoch{self.current_epoch}")
launch finetune meta-llama/Llama-3.2-1B --data alpaca data.style=alpaca adapter.r=16 adapter.alpha=32 adapter.dropout=0.05 \
  'adapter.targets=[q_proj, v_proj, k_proj, o_proj]' optimizer.lr=2e-4 optimizer.weight_decay=0.01 train.max_epochs=null train.max_steps=3 \
  train.device=cpu --run-url runs/lora
launch export runs/lora --to peft --out lora-adapter

#> profiler="simple"
launch metrics runs/lora --jsonl | grep '"phases"'

#> state_dict_type: FULL_STATE_DICT for portable single-file checkpoints
launch export checkpoints/run@best --to hf --out portable

#> use precision="bf16-true" rather than precision="bf16-mixed"
launch finetune/llama-3.2-1b-full train.precision=bf16-true --dry-run
