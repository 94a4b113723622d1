# The LightGPT model card.

#> python -m venv ./.venv
#> source ./.venv/bin/activate
#> pip install -r requirements.txt
launch version

# Suggested pretraining configurations; model_sizing.ipynb
#> | Small | 50,257 | 1024 | 16 | 24 | 353M | 7B |
#> | Medium | 50,257 | 2048 | 32 | 32 | 1.7B | 34B |
#> | Large | 100,275 | 4096 | 64 | 32 | 6.8B | 132B |
#> | X-large | 100,275 | 4096 | 64 | 64 | 13B | 262B |
#> | XX-large | 200,017 | 8192 | 128 | 64 | 53B | 1T |
#> | XXX-large | 200,017 | 8192 | 128 | 128 | 105B | 2T |
for size in small medium large xl xxl xxxl; do launch models nope-gpt-$size; done
for size in small xxxl; do launch pretrain/nope-gpt-$size --cluster slurm --dry-run; done

#>> python pretrain.py
#> | --dataset_subset | "sample-10BT" |
#> | --token_encoding | "r50k_base" |
#> | --dataset_path | "./datasets" |
#> | --num_dataset_processes | 8 |
fineweb=$(launch fetch-corpus fineweb --max-bytes 10GB)
tokenizer=$(launch download TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T --tokenizer-only)
launch prepare "$fineweb/sample/10BT/*.parquet" --tokenizer "$tokenizer" --validation 0.05 --workers 2 --out data/fineweb
launch pretrain/nope-gpt-small --run-url runs/pretrain data.source=data/fineweb $SHAPE $TINY train.max_tokens=null

#> python pretrain.py --embedding_dimensions=4096 --num_attention_heads=64 --num_hidden_layers=48 --feed_forward_ratio=4
launch pretrain/nope-gpt-small --dry-run data.source=data/fineweb model.dim=4096 model.n_heads=64 model.n_layers=48 model.ffn_dim=16384

#> python pretrain.py --batch_size=32 --learning_rate=0.01 --gradient_accumulation_steps=128
launch pretrain/nope-gpt-small --dry-run data.source=data/fineweb train.micro_batch_size=32 optimizer.lr=0.01 train.global_batch_size=4096

# Two workers here; with GPUs --gpus-per-node 8.
#> torchrun --standalone --nnodes=1 --nproc-per-node=8 pretrain.py --batch_size=16 --gradient_accumulation_steps=128
launch pretrain/nope-gpt-small --cluster slurm --gpus-per-node 8 --dry-run train.micro_batch_size=16 train.global_batch_size=2048
launch pretrain/nope-gpt-small --run-url runs/two data.source=data/fineweb $SHAPE $TINY train.max_tokens=null resources.nproc_per_node=2

# Each argument of the table that is not above.
#> --tokens_per_sample 1024 --samples_per_epoch 4096 --num_epochs 1686 --learning_rate 1e-2 --rms_decay -0.8
#> --low_memory_optimizer --max_gradient_norm 1.0 --eval_interval 10 --dropout 0.1 --activation_checkpointing
#> --ddp_sharding_level 2 --checkpoint_interval 20 --checkpoint_path ./checkpoints/checkpoint.pt
#> --run_dir_path ./runs/pretrain --device cuda --seed 42
launch pretrain/nope-gpt-small --run-url runs/all data.source=data/fineweb $SHAPE train.max_tokens=null train.max_epochs=1 \
  data.seq_len=1024 train.global_batch_size=4 train.micro_batch_size=2 optimizer.lr=1e-2 optimizer.beta2_decay=-0.8 optimizer.low_memory=true \
  train.max_grad_norm=1.0 validation.every_steps=10 train.dropout=0.1 parallel.activation_checkpointing=full \
  parallel.shard_level=2 checkpoint.every_steps=20 train.device=cpu train.seed=42 metrics.trackers=[tensorboard]

#> --resume
launch resume runs/all --follow train.max_epochs=2

#> tensorboard --logdir=./runs
find runs/all -name 'events.out.tfevents*' | grep .
launch report runs/all

# Instruction-tuning: its table of arguments.
#> --base_model_path ./checkpoints/checkpoint.pt --max_tokens_per_sample 1024 --mask_input --batch_size 1
#> --gradient_accumulation_steps 64 --learning_rate 5e-4 --rms_decay -0.8 --optimizer_low_memory --rank 8 --alpha 1.0
#> --dropout 0.05 --num_epochs 4 --activation_checkpointing --eval_interval 1 --checkpoint_interval 1
#> --checkpoint_path ./checkpoints/lora_instruction.pt --run_dir_path ./runs/instruction-tune --device cuda --seed 42
launch download --dataset alpaca
launch finetune runs/pretrain --data alpaca --run-url runs/instruction-tune data.seq_len=1024 data.style=chatml data.mask_prompt=true \
  train.micro_batch_size=1 train.global_batch_size=16 optimizer.name=adafactor optimizer.betas=null optimizer.lr=5e-4 optimizer.beta2_decay=-0.8 \
  optimizer.low_memory=true adapter.r=8 adapter.alpha=1.0 adapter.scaling=alpha adapter.dropout=0.05 train.max_epochs=1 \
  parallel.activation_checkpointing=full train.device=cpu train.seed=42

#> python generate.py --top_k=500 --top_p=0.9
#> --checkpoint_path --max_tokens 1000 --context_length 1024 --temperature 1.0 --device cuda --seed 42
launch generate runs/pretrain --prompt 'Emma' --top-k 500 --top-p 0.9 --max-new-tokens 20 --context-length 1024 --temperature 1.0 --device cpu --seed 42

#> --lora_path ./checkpoints/lora_instruction.pt
launch generate runs/instruction-tune --prompt 'Emma' --max-new-tokens 10

# A search ends where the model's context does.
#> python beam_search.py --beam_width=16 --num_candidates=3
#> --max_tokens 100 --context_length 1024
launch generate runs/pretrain --prompt 'Emma' --beam-width 16 --candidates 3 --max-new-tokens 20
