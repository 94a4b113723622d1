"""`launch new`: what it writes can be planned and trained as it stands, fits the place, and replaces nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launchyard.errors import UserError
from launchyard.host.processes import python_argv
from launchyard.launcher.backends.cluster import Cluster, load_cluster
from launchyard.launcher.backends.offer import Offer
from launchyard.launcher.backends.ray.site import offers as ray_offers
from launchyard.launcher.backends.slurm.site import gpu_kind
from launchyard.launcher.backends.slurm.site import offers as slurm_offers
from launchyard.launcher.cli.main import main
from launchyard.launcher.new.draft import FILLED, draft_recipe
from launchyard.launcher.new.place import Spot, distinct, gpu_bytes_of, this_machine
from launchyard.launcher.new.text import commented
from launchyard.launcher.new.wishes import Wishes, parse_budget
from launchyard.launcher.recipe.bundled import recipe_folder
from launchyard.launcher.recipe.load import load_recipe
from launchyard.model.weights.hf_export import save_hf
from launchyard.run.rundir import RunDir
from launchyard.training.data.prepare.prepare import prepare
from tests.launcher.backends.slurm.conftest import slurm as slurm
from tests.support.fake_ray import FakeRay
from tests.support.fake_slurm import FakeSlurm
from tests.support.small_runs import write_chunks
from tests.support.tiny_models import byte_tokenizer, llama, random_model, weights_of

HERE = ("--yes", "--cluster", "local")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, novel: str, tokenizer_file: str) -> Path:
    folder = tmp_path_factory.mktemp("new")
    (folder / "novel.txt").write_text(novel[:60_000])
    prepare([str(folder / "novel.txt")], tokenizer=tokenizer_file, out=str(folder / "data"), validation=0.1)
    return folder


class Desk:
    """A person's folder with prepared data, its text, and rows; `launch` runs in the process of the test."""

    def __init__(self, folder: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.here, self._capsys = folder, capsys
        for name in ("data", "novel.txt"):
            (folder / name).symlink_to(prepared / name)
        rows = [{"instruction": f"say {n}", "output": f"{n}, as you said"} for n in range(40)]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def __call__(self, *words: str, code: int = 0) -> str:
        """What is printed; on standard output alone where all is well."""
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(words)
        said = self._capsys.readouterr()
        assert end.value.code == code, said.out + said.err
        return said.out if code == 0 else said.out + said.err

    def files(self) -> set[str]:
        return {path.name for path in self.here.iterdir()}


@pytest.fixture
def desk(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    for kind in ("STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Desk(tmp_path / "work", prepared, capsys)


# -- what is written -------------------------------------------------------------------------------------------------
def test_the_recipe_trains_as_it_stands(desk: Desk) -> None:
    found = json.loads(desk("new", "novels", "--data", "data", "--budget", "3steps", "--json", *HERE))
    assert found["files"] == [str(desk.here / "novels.yaml")]
    assert {one["level"] for one in found["findings"]} <= {"ok", "warning"} and found["findings"]
    assert found["next"] == ["launch novels.yaml --dry-run", "launch novels.yaml"]
    small = ("train.global_batch_size=2", "train.micro_batch_size=2", "metrics.prometheus=false")
    desk("novels.yaml", "--run-url", "run", *small)
    assert [row["step"] for row in RunDir(str(desk.here / "run")).rows("steps")] == [1, 2, 3]


def test_every_section_has_a_reason_and_editors_a_schema(desk: Desk) -> None:
    desk("new", "novels", "--data", "novel.txt", "--tokenizer", "data/tokenizer", *HERE)
    text = (desk.here / "novels.yaml").read_text()
    assert f"$schema={recipe_folder() / 'recipe.schema.json'}" in text.splitlines()[2]
    for key, section in yaml.safe_load(text).items():
        written = re.search(rf"^(#.*\n)?{key}:.*\n(  .*\n)*", text, re.MULTILINE)
        assert written is not None and "#" in written[0], key
        assert key != "data" or section["validation"] > 0, "of text a part is held out"


def test_text_has_a_tokenizer_and_a_time_its_end(desk: Desk) -> None:
    desk("new", "novels", "--data", "novel.txt", "--budget", "36h", *HERE)
    recipe = yaml.safe_load((desk.here / "novels.yaml").read_text())
    assert recipe["tokenizer"] == str(recipe_folder() / "quickstart/tokenizer.json")
    assert recipe["model"]["vocab_size"] == 2048 if "preset" in recipe["model"] else True
    assert recipe["train"]["max_time"] == "1-12:00:00"


def test_nothing_is_replaced(desk: Desk) -> None:
    (desk.here / "mine.yaml").write_text("# mine\n")
    assert "mine.yaml: there already" in desk("new", "mine", "--data", "data", *HERE, code=2)
    assert (desk.here / "mine.yaml").read_text() == "# mine\n"
    desk("new", "mine", "--data", "data", "--force", *HERE)
    assert "max_tokens" in (desk.here / "mine.yaml").read_text()


def test_a_finetuning(desk: Desk) -> None:
    config = llama(vocab_size=300, padded_vocab_size=300, max_seq_len=256)
    save_hf(weights_of(random_model(config)), config, str(desk.here / "model"))
    byte_tokenizer(desk.here / "model/tokenizer.json")
    settings = {"eos_token": "<|endoftext|>", "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    (desk.here / "model/tokenizer_config.json").write_text(json.dumps(settings))
    words = ("--task", "finetune", "--model", "model", "--data", "rows.jsonl", "--json", *HERE)
    plan = json.loads(desk("new", "tuned", *words, "--method", "full"))["plan"]
    assert plan["batch"]["seq_len"] == 256, "no longer than the model's own"
    recipe = yaml.safe_load((desk.here / "tuned.yaml").read_text())
    assert recipe["train"]["max_epochs"] == 3 and "adapter" not in recipe


MISTAKES = {
    "no data": ((), "--data is missing"),
    "data not there": (("--data", "nothing"), "--data: nothing does not exist"),
    "data of no kind": (("--data", "picture.png"), "picture.png is of no known kind"),
    "a tokenizer not there": (("--data", "novel.txt", "--tokenizer", "none"), "--tokenizer: no tokenizer at none"),
    "a preset misspelt": (("--data", "data", "--model", "pythia-14"), "did you mean pythia-14m?"),
    "a model too large": (("--data", "data", "--model", "llama-3.1-405b"), "does not fit: a worker needs about"),
    "bare tokens": (("--data", "bare"), "--model is missing: the data does not say how many ids"),
    "no model": (("--task", "finetune", "--data", "rows.jsonl"), "--model is missing"),
    "no budget": (("--data", "data", "--budget", "soon"), "'soon' is no budget; such are 30m"),
    "no place": (("--data", "data", "--cluster", "moon"), "--cluster moon: no such cluster"),
    "no name": (("--data", "data", "--cluster", "local", "a/b"), "unexpected extra argument"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named, and nothing is written."""
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    words, said = MISTAKES[mistake]
    (desk.here / "picture.png").write_bytes(b"\x89PNG")
    write_chunks(desk.here / "bare", [np.arange(500) % 97])
    before = desk.files()
    assert said in desk("new", "x", *words, "--yes", code=2)
    assert desk.files() == before


# -- a terminal ------------------------------------------------------------------------------------------------------
def typed(answers: list[str], *words: str) -> str:
    """What a person sees who gives these answers, each when a question waits."""
    argv = [*python_argv(sys.executable), "-m", "launchyard", *words]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(argv[0], argv)
    seen, left = b"", list(answers)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        ready, _, _ = select.select([terminal], [], [], 0.3)
        try:
            got = os.read(terminal, 4096) if ready else b""
        except OSError:
            break
        seen += got
        if not ready and left and seen.rstrip().endswith(b":"):
            os.write(terminal, f"{left.pop(0)}\n".encode())
    os.waitpid(child, 0)
    os.close(terminal)
    return seen.decode()


def test_a_person_is_asked_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    seen = typed(["", "novels", "", "nothing", "data", "1 fortnight", "5steps"], "new")
    assert "--data: nothing does not exist" in seen and "'1 fortnight' is no budget" in seen
    assert "✓ wrote    novels.yaml" in seen and "launch novels.yaml --dry-run" in seen
    assert load_recipe("novels.yaml").recipe.train.max_steps == 5


# -- schedulers ------------------------------------------------------------------------------------------------------
def test_a_partition_becomes_a_cluster(desk: Desk, slurm: FakeSlurm) -> None:
    words = ("--data", "data", "--cluster", "site", "--partition", "spot", "--nodes", "2", "--gpu-memory", "40GB")
    found = json.loads(desk("new", "x", *words, "--yes", "--no-job", "--json"))
    assert found["files"][1] == str(desk.here.parent / "config/launchyard/clusters/site.yaml")
    assert "#SBATCH --partition=spot" in found["plan"]["script"] and "#SBATCH --nodes=2" in found["plan"]["script"]
    assert found["next"][1] == "launch x.yaml --cluster site"
    assert next(one for one in found["findings"] if one["what"] == "partition")["level"] == "ok"
    cluster = load_cluster("site")
    assert (cluster.node.gpus, cluster.node.cpus) == (2, 8) and cluster.section("slurm").time_limit == "1-00:00:00"
    again = desk("new", "y", "--data", "data", "--cluster", "site", "--yes", "--no-job")
    assert "site.yaml" not in again, "a cluster that has a file is used as it is"
    wrong = desk("new", "z", "--data", "data", "--cluster", "other", "--partition", "gpu", "--yes", code=2)
    assert "there are: batch, spot, prod" in wrong


def test_a_partition_that_is_down_is_not_offered(slurm: FakeSlurm) -> None:
    slurm.partition("spot", State="DOWN")
    assert [(one.part, one.default, one.nodes, one.gpus) for one in slurm_offers(None)] == [
        ("batch", True, 4, 2),
        ("prod", False, 4, 2),
    ]
    slurm.fail("sinfo", stderr="slurm_load_partitions: Unable to contact slurm controller")
    assert slurm_offers(None) == []


def test_kinds_of_nodes_in_one_partition_have_names_of_their_own() -> None:
    offers = [Offer("slurm", part, "", 1, gpus=gpus) for part, gpus in (("gpu", 8), ("cpu", 0), ("gpu", 4))]
    assert [(one.part, one.gpus) for one in distinct(offers)] == [("gpu", 8), ("cpu", 0), ("gpu:2", 4)]


def test_a_ray_becomes_a_cluster(desk: Desk, tmp_path: Path) -> None:
    ray = FakeRay(tmp_path / "ray")
    try:
        (offer,) = ray_offers(ray.address)
        assert (offer.nodes, offer.cpus, offer.gpus, offer.memory) == (2, 2, 0, 4 << 30)
        words = ("--data", "data", "--address", ray.address, "--cluster", "./here.yaml", "--nodes", "2", "--no-job")
        assert "launch x.yaml --cluster here.yaml" in desk("new", "x", *words, "--yes")
        assert load_cluster("./here.yaml").section("ray").address == ray.address
    finally:
        ray.close()


# -- sizes -----------------------------------------------------------------------------------------------------------
def spot(gigabytes: float, *, gpus: int = 2) -> Spot:
    facts: dict[str, Any] = {"name": "s", "scheduler": "slurm", "node": {"gpus": gpus, "cpus": 8}}
    return Spot(Cluster(**facts), "a site", gpus, "h100", int(gigabytes * 2**30), bf16=True, has_gpus=True)


def test_what_fits(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan never fills a worker, whatever its memory; with less of it come smaller pieces, then savings."""
    monkeypatch.chdir(prepared)
    wishes = Wishes("x", "pretrain", ("data",), parse_budget("100M"), model="pythia-160m", nodes=2)
    batches, saved = [], []
    for gigabytes in (80, 4, 2.5, 1.5, 1):
        draft = draft_recipe(wishes, spot(gigabytes))
        assert draft.plan.memory["total"] <= FILLED * gigabytes * 2**30
        batches.append(draft.plan.batch.micro_batch_size)
        saved.append(draft.raw.get("parallel", {}).get("activation_checkpointing", "none"))
        assert draft.plan.batch.global_batch_size % draft.plan.world_size == 0
    plain = [batch for batch, saving in zip(batches, saved, strict=True) if saving == "none"]
    assert plain == sorted(plain, reverse=True) and len(set(plain)) > 2
    assert saved == sorted(saved, key=lambda one: one == "full") and "full" in saved
    with pytest.raises(UserError, match="does not fit"):
        draft_recipe(wishes, spot(0.2))


def test_a_shape_follows_the_budget(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared)
    sizes = []
    for budget in ("10M", "500M", "4B", "40B"):
        wishes = Wishes("x", "pretrain", ("data",), parse_budget(budget))
        sizes.append(draft_recipe(wishes, spot(80)).plan.n_params)
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


def test_this_machine_is_described() -> None:
    here = this_machine()
    assert not here.scheduled and here.title.startswith("this machine: ") and here.memory


@given(
    st.recursive(
        st.one_of(st.integers(), st.booleans(), st.text("ab: #'\"-é", max_size=60), st.sampled_from([1e-5, 0.1, 3e9])),
        lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=5), inner, min_size=1, max_size=4),
        max_leaves=12,
    ).filter(lambda value: isinstance(value, dict)),
    st.text("why # : not", min_size=1),
)
def test_comments_change_no_value(value: dict[str, Any], reason: str) -> None:
    reasons = dict.fromkeys(value, reason)
    assert yaml.safe_load("\n".join(commented(value, reasons))) == value


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("30m", "seconds", 1800), ("8h", "seconds", 28800), ("2 d", "seconds", 172800), ("10B", "tokens", 1e10),
        ("500M tokens", "tokens", 5e8), ("1_000steps", "steps", 1000),
        ("0.5 epochs", "epochs", 0.5), ("3e9", "tokens", 3e9),
    ],
)  # fmt: skip
def test_budgets(text: str, unit: str, amount: float) -> None:
    found = parse_budget(text)
    assert (found.unit, found.amount) == (unit, amount)


@pytest.mark.parametrize("text", ["", "0steps", "-3h", "much", "3 weeks"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ValueError, match="such are 30m"):
        parse_budget(text)


def test_the_kind_of_gpus() -> None:
    assert [gpu_kind(gres) for gres in ("gpu:h100:8(S:0-1),nvme:1", "gpu:2", "(null)")] == ["h100", "", ""]
    known = {"a100-80gb": 80, "nvidia_a100_80gb_pcie": 80, "a100": 40, "NVIDIA H100": 80, "h200": 141, "tpu": None}
    assert {kind: gpu_bytes_of(kind) for kind in known} == {kind: n and n << 30 for kind, n in known.items()}
