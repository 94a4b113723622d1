# A skill for LitGPT.

#> pip install 'litgpt[extra]'
launch version

#> litgpt download list
launch models

#>> litgpt download meta-llama/Meta-Llama-3-8B
#> litgpt download microsoft/phi-2
#> litgpt download google/gemma-2b
launch download meta-llama/Meta-Llama-3-8B
launch download microsoft/phi-2
launch download google/gemma-2b

#> llm = LLM.load("microsoft/phi-2")
#> result = llm.generate("What is the capital of France?", max_new_tokens=50, temperature=0.7)
"${PYTHON[@]}" - <<'PYTHON'
from launchyard import load

llm = load("microsoft/phi-2")
print(llm.generate("What is the capital of France?", max_new_tokens=50, temperature=0.7))
PYTHON

# Its two rows, and more of them.
#>> Save as data/my_dataset.json
"${PYTHON[@]}" - <<'PYTHON'
import json

rows = [
    {"instruction": "What is the capital of France?", "input": "", "output": "The capital of France is Paris."},
    {"instruction": "Translate to Spanish: Hello, how are you?", "input": "", "output": "Hola, ¿cómo estás?"},
]
rows += [{"instruction": f"Say {n}.", "input": "", "output": f"{n}."} for n in range(60)]
json.dump(rows, open("data/my_dataset.json", "w"))
PYTHON

#> litgpt finetune meta-llama/Meta-Llama-3-8B --data JSON --data.json_path data/my_dataset.json --train.max_steps 1000
#> --train.learning_rate 2e-5 --train.micro_batch_size 1 --train.global_batch_size 16
launch finetune meta-llama/Meta-Llama-3-8B --method full --data data/my_dataset.json data.style=alpaca optimizer.lr=2e-5 \
  train.micro_batch_size=1 train.global_batch_size=16 train.max_epochs=null train.max_steps=2 train.device=cpu

#> litgpt finetune_lora microsoft/phi-2 --data JSON --data.json_path data/my_dataset.json --lora_r 16 --lora_alpha 32
#> --lora_dropout 0.05 --train.max_steps 1000 --train.learning_rate 1e-4
launch finetune microsoft/phi-2 --data data/my_dataset.json data.style=alpaca adapter.r=16 adapter.alpha=32 adapter.dropout=0.05 \
  train.max_epochs=null train.max_steps=2 optimizer.lr=1e-4 train.device=cpu --run-url out/finetune metrics.trackers=[tensorboard]

#> tail -f out/finetune/logs.txt
launch logs out/finetune

#> tensorboard --logdir out/finetune/lightning_logs
find out/finetune -name 'events.out.tfevents*' | grep .

#> litgpt finetune_lora microsoft/phi-2 --data JSON --data.json_path data/my_dataset.json --lora_r 16 --lora_alpha 32
#> --lora_dropout 0.05 --lora_query true --lora_key false --lora_value true --lora_projection true --lora_mlp false
#> --lora_head false
launch finetune microsoft/phi-2 --data data/my_dataset.json data.style=alpaca adapter.r=16 adapter.alpha=32 adapter.dropout=0.05 \
  'adapter.targets=[query, value, projection]' --dry-run

#> litgpt finetune_lora microsoft/phi-2 --data JSON --data.json_path data/my_dataset.json --lora_r 16 --train.epochs 3
#> --train.learning_rate 1e-4 --train.micro_batch_size 4 --train.global_batch_size 32 --out_dir out/phi2-lora
launch finetune microsoft/phi-2 --data data/my_dataset.json data.style=alpaca adapter.r=16 train.max_epochs=3 optimizer.lr=1e-4 \
  train.micro_batch_size=4 train.global_batch_size=32 train.device=cpu --run-url out/phi2-lora

#> litgpt merge_lora out/phi2-lora/final --out_dir out/phi2-merged
launch merge out/phi2-lora --out out/phi2-merged

#> python scripts/prepare_dataset.py --source_path data/my_corpus.txt --checkpoint_dir checkpoints/tokenizer
#> --destination_path data/pretrain --split train,val
launch prepare data/my_corpus.txt --tokenizer "$(launch download microsoft/phi-2)" --validation 0.05 --out data/pretrain

# Its YAML, as the section of a recipe.
#>> model_name: pythia-160m, block_size: 2048, vocab_size: 50304, n_layer: 12, n_head: 12, n_embd: 768,
#> rotary_percentage: 0.25, parallel_residual: true, bias: true
mkdir -p config
cat > config/pythia-160m.yaml <<'YAML'
name: pythia-160m
model:
  model_name: pythia-160m
  block_size: 2048
  vocab_size: 50304
  n_layer: 12
  n_head: 12
  n_embd: 768
  rotary_percentage: 0.25
  parallel_residual: true
  bias: true
data: {source: data/pretrain, seq_len: 2048}
train: {max_tokens: 10_000_000_000}
YAML
launch models config/pythia-160m.yaml

#> litgpt pretrain --config config/pythia-160m.yaml --data.data_dir data/pretrain --train.max_tokens 10_000_000_000
launch config/pythia-160m.yaml data.source=data/pretrain train.max_tokens=10_000_000_000 --dry-run
launch pretrain/pythia-160m data.source=data/pretrain $SHAPE train.max_tokens=null $TINY

#> litgpt pretrain --config config/pythia-1b.yaml --data.data_dir data/pretrain --devices 8 --train.max_tokens 100_000_000_000
launch pythia-1b --cluster slurm --gpus-per-node 8 data.source=data/pretrain train.max_tokens=100_000_000_000 --dry-run

#>> sbatch --nodes=8 --gpus-per-node=8 pretrain_script.sh
#> litgpt pretrain --config config/pythia-1b.yaml --data.data_dir /shared/data/pretrain --devices 8 --num_nodes 8
#> --train.global_batch_size 512 --train.max_tokens 300_000_000_000
launch pythia-1b --cluster slurm --nodes 8 --gpus-per-node 8 train.global_batch_size=512 train.max_tokens=300_000_000_000 --dry-run | tee sbatch.txt
grep -q 'srun' sbatch.txt

#> llm = LLM.load("out/phi2-merged")
#> llm = LLM.load("out/phi2-lora/final")
#> print(llm.generate("What is machine learning?"))
#> for token in llm.generate("Explain quantum computing", stream=True): print(token, end="", flush=True)
#> prompts = ["Hello", "Goodbye", "Thank you"]
#> results = [llm.generate(p) for p in prompts]
"${PYTHON[@]}" - <<'PYTHON'
from launchyard import load

load("out/phi2-merged")
llm = load("out/phi2-lora")
print(llm.generate("What is machine learning?", max_new_tokens=8))
for piece in llm.generate("Explain quantum computing", stream=True, max_new_tokens=8):
    print(piece, end="", flush=True)
print(llm.generate(["Hello", "Goodbye", "Thank you"], max_new_tokens=8))
PYTHON

#> litgpt convert_lit_checkpoint out/phi2-lora/final --dtype bfloat16 --quantize bnb.nf4
#> litgpt convert_lit_checkpoint out/phi2-lora/final --quantize bnb.nf4-dq
launch export out/phi2-lora --to hf --dtype bfloat16 --out out/phi2-bf16
launch export out/phi2-lora --to gguf --dtype Q8_0 --out models/phi2-q8.gguf
launch generate out/phi2-lora --weights nf4 --prompt 'What is machine learning?' --max-new-tokens 8

#> python scripts/convert_lit_checkpoint.py --checkpoint_path out/phi2-lora/final --output_path models/phi2.gguf
#> --model_name microsoft/phi-2
launch export out/phi2-lora --to gguf --out models/phi2.gguf
launch generate models/phi2.gguf --prompt 'What is machine learning?' --max-new-tokens 8

#> @app.post("/generate")
#> def generate(prompt: str, max_tokens: int = 100): …
#> uvicorn api:app --host 0.0.0.0 --port 8000
launch serve out/phi2-lora --host 127.0.0.1 --port 0 --json > served.json & server=$!
served served.json
url=$("${PYTHON[@]}" -c 'import json; print(json.load(open("served.json"))["url"])')
"${PYTHON[@]}" -c 'import sys, urllib.request as r; print(r.urlopen(r.Request(sys.argv[1], method="POST")).read())' "$url/generate?prompt=Hello&max_tokens=8"
kill $server

# Out of memory.
#> litgpt finetune_lora
#> --train.gradient_accumulation_iters 4
launch finetune microsoft/phi-2 --data data/my_dataset.json data.style=alpaca parallel.activation_checkpointing=full --dry-run

#> --train.micro_batch_size 1 --train.global_batch_size 32 --train.gradient_accumulation_iters 32
launch finetune microsoft/phi-2 --data data/my_dataset.json data.style=alpaca train.micro_batch_size=1 train.global_batch_size=32 --dry-run

#> ls checkpoints/
launch download meta-llama/Meta-Llama-3-8B
launch inspect meta-llama/Meta-Llama-3-8B

#>> --lora_r 8 --lora_query true --lora_value true --lora_projection false --lora_mlp false
launch finetune microsoft/phi-2 --data data/my_dataset.json data.style=alpaca adapter.r=8 'adapter.targets=[query, value]' --dry-run

# Hardware.
#> GPU: NVIDIA (CUDA 11.8+), AMD (ROCm), Apple Silicon (MPS)
launch doctor
