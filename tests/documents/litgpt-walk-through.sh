# A walk-through of LitGPT: pretraining, finetuning, use.

#> pip install 'litgpt[all]'
#> git clone https://github.com/Lightning-AI/litgpt.git && cd litgpt && pip install -e '.[all]'
launch version

#> litgpt pretrain list
launch models

#>> litgpt download list | grep TinyLlama
launch models | grep -i tinyllama

#> litgpt download TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T --tokenizer_only true
launch download TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T --tokenizer-only

# A set of data is fetched by a word of its own.
#> litgpt pretrain tiny-llama-1.1b --data OpenWebText --tokenizer_dir TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T
launch fetch-corpus openwebtext
launch pretrain/tiny-llama-1.1b data.mixture=null data.source=openwebtext data.validation=0.05 tokenizer=TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T \
  $SHAPE model.n_kv_heads=2 $TINY train.max_tokens=null

#> litgpt pretrain --help
launch --help
launch keys train
launch help data.source

#> litgpt download list
launch models

#> litgpt download microsoft/phi-2
#> ls -lh checkpoints/microsoft/phi-2/
ls -lh "$(launch download microsoft/phi-2)"

#> litgpt download meta-llama/Llama-2-7b-hf --access_token ...
launch download --help | grep HF_TOKEN

#>> litgpt chat microsoft/phi-2
echo 'Why are LLMs so useful?' | launch chat microsoft/phi-2 --style phi-2 --max-new-tokens 8

#> litgpt chat microsoft/phi-2 --multiline true
printf 'Why are LLMs\nso useful?\n.\n' | launch chat microsoft/phi-2 --multiline --style phi-2 --max-new-tokens 8

#>> litgpt finetune_lora microsoft/phi-2 --config config_hub/finetune/phi-2/lora.yaml --train.max_steps 5
launch download --dataset alpaca
launch finetune/phi-2/lora --run-url out/finetune/lora-phi-2 train.max_epochs=null train.max_steps=5 train.precision=fp32 train.device=cpu

#> litgpt finetune_lora microsoft/phi-2 --config https://raw.githubusercontent.com/…/lora.yaml --train.max_steps 5
launch "file://$RECIPES/finetune/phi-2/lora.yaml" train.max_epochs=null train.max_steps=5 --dry-run

#> litgpt finetune_lora --help
launch finetune --help
launch keys adapter

#> litgpt chat out/finetune/lora-phi-2/final/
echo 'Why are LLMs so useful?' | launch chat out/finetune/lora-phi-2 --max-new-tokens 8

# With less memory.
#> litgpt chat microsoft/phi-2 --precision bf16-true
echo 'Why are LLMs so useful?' | launch chat microsoft/phi-2 --weights bf16 --style phi-2 --max-new-tokens 8

#> from litgpt import LLM
#> llm = LLM.load("microsoft/phi-2")
#> text = llm.generate("What do Llamas eat?", top_k=1, max_new_tokens=30)
#> llm = LLM.load("path/to/my/local/checkpoint")
"${PYTHON[@]}" - <<'PYTHON'
from launchyard import load

llm = load("microsoft/phi-2")
print(llm.generate("What do Llamas eat?", top_k=1, max_new_tokens=30))
llm = load("out/finetune/lora-phi-2")
PYTHON

# Its tasks want data of the hub; these lie beside.
#> litgpt evaluate microsoft/phi-2 --batch_size 16 --tasks "hellaswag,gsm8k,truthfulqa_mc2,mmlu,winogrande,arc_challenge"
launch evaluate microsoft/phi-2 --tasks our_choice,our_rolling,our_until --include tasks --limit 4 --batch-tokens 4096

#> litgpt serve microsoft/phi-2
#> requests.post("http://127.0.0.1:8000/predict", json={"prompt": "Fix typos in the following sentence: Exampel input"})
launch serve microsoft/phi-2 --port 0 --json > served.json & server=$!
served served.json
"${PYTHON[@]}" - <<'PYTHON'
import json, urllib.request

url = json.load(open("served.json"))["url"] + "/predict"
body = json.dumps({"prompt": "Fix typos in the following sentence: Exampel input", "max_new_tokens": 8}).encode()
request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request))["output"])
PYTHON
kill $server

# One command: config and tokenizer come along, and the files are safetensors.
#>> litgpt convert_from_litgpt microsoft/phi-2 out/converted_model/
#> cp checkpoints/microsoft/phi-2/config.json out/converted_model/config.json
#> state_dict = torch.load('out/converted_model/model.pth')
#> model = AutoModel.from_pretrained("microsoft/phi-2", state_dict=state_dict)
#> model.save_pretrained("out/converted_model/")
#> ls -lh out/converted_model
#> cp checkpoints/microsoft/phi-2/tokenizer* out/converted_model
launch export microsoft/phi-2 --to hf --out out/converted_model
ls -lh out/converted_model
"${PYTHON[@]}" - <<'PYTHON'
from transformers import AutoModelForCausalLM

AutoModelForCausalLM.from_pretrained("out/converted_model")
PYTHON

#> lm_eval --model hf --model_args pretrained="out/converted_model" --tasks "hellaswag,…" --device "cuda:0" --batch_size 4
launch evaluate out/converted_model --tasks our_choice --include tasks --limit 4 --device cpu
