"""Merging an adapter and writing GGUF: what comes out computes what went in, or the run fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.programs.lib.artifacts import model_facts
from runner.programs.lib.events import ProgramError
from runner.programs.lib.model import load_causal_model
from runner.programs.lib.render import Renderer
from runner.programs.models import export_model
from runner.programs.models.export_model import compare
from runner.programs.serve import cpu
from runner.programs.serve.modelfile import modelfile_of
from runner.programs.serve.readiness import Endpoint, ServerClient, wait_until_healthy
from runner.programs.serve.settings import Settings
from tests.programs.recipes import events_of, make_context
from tests.programs.servers import QUESTIONS, comparable, evaluated, served
from tests.programs.tiny_models import write_tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base"), "qwen2")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA with random weights: it changes every answer."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model: Any = get_peft_model(load_causal_model(base, torch.float32, torch.device("cpu")), config)
    model.save_pretrained(folder)
    Renderer.from_folder(base).save(base, folder)
    return folder


def export(run_folder: Path, **parameters: Any) -> Path:
    export_model.main(make_context(run_folder, parameters))
    return run_folder / "output" / "model"


def test_merged_weights_answer_as_base_with_adapter_and_differ_from_the_base(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    made = export(tmp_path / "run", model=str(base), adapter=str(adapter), form="merged")
    manifest = json.loads((tmp_path / "run/output/MANIFEST.json").read_text())
    assert manifest["metrics"]["merge/greedy_agreement"] == 1.0
    assert manifest["metrics"]["merge/kl_divergence"] < 1e-6
    facts = manifest["facts"]
    assert (facts["format"], facts["task"]) == ("full", "generation")
    assert facts["render_hash"] == model_facts(base)["render_hash"]
    assert facts["fingerprint"] != model_facts(base)["fingerprint"]
    probe = [torch.tensor(Renderer.from_folder(made).encode_prompt([{"role": "user", "content": "Paris?"}]))]
    ours, theirs = (
        export_model.logits_of(load_causal_model(folder, torch.float32, torch.device("cpu")).eval(), probe)
        for folder in (made, base)
    )
    assert compare(ours, theirs).divergence > 0.01
    assert not (made / "adapter_config.json").exists()
    assert [event["name"] for event in events_of(tmp_path / "run", "phase")] == ["load", "merge", "compare"]


def test_a_merge_that_changes_the_answers_fails_and_says_how_much(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = export_model.logits_of
    calls: list[int] = []

    def drifting(model: Any, probes: Any) -> Any:
        calls.append(1)
        return [
            logits + (0.5 * torch.randn_like(logits) if len(calls) == 2 else 0) for logits in original(model, probes)
        ]

    monkeypatch.setattr(export_model, "logits_of", drifting)
    with pytest.raises(ProgramError) as refused:
        export(tmp_path / "run", model=str(base), adapter=str(adapter), form="merged")
    assert refused.value.code == "merge_differs"
    assert "KL divergence" in str(refused.value)
    assert not (tmp_path / "run/output/MANIFEST.json").exists()


def test_a_full_model_has_nothing_to_merge(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ProgramError) as refused:
        export(tmp_path / "run", model=str(base), adapter=None, form="merged")
    assert refused.value.code == "nothing_to_merge"


def test_an_adapter_becomes_one_gguf_file_with_weights_and_template(base: Path, adapter: Path, tmp_path: Path) -> None:
    made = export(tmp_path / "run", model=str(base), adapter=str(adapter), form="gguf", precision="f32")
    facts = json.loads((tmp_path / "run/output/MANIFEST.json").read_text())["facts"]
    assert (facts["format"], facts["precision"]) == ("gguf", "f32")
    assert sorted(path.name for path in made.iterdir()) == ["Modelfile", "model.gguf"]
    from gguf import GGUFReader

    reader = GGUFReader(made / "model.gguf")
    template = reader.fields["tokenizer.chat_template"].contents()
    assert "<|im_start|>" in str(template)
    assert len(reader.tensors) > 20


def test_the_gguf_file_answers_in_llama_cpp_as_the_merged_model_does(base: Path, adapter: Path, tmp_path: Path) -> None:
    made = export(tmp_path / "run", model=str(base), adapter=str(adapter), form="gguf", precision="f32")
    parameters = {"model": str(base), "served_name": "tiny@1", "context_tokens": 256, "parallel": 1}
    client = ServerClient(Endpoint(unix=str(tmp_path / "s.sock")), "key")
    # The name keeps the server alive: it ends when its last reference goes.
    server = cpu.start_server(
        Settings.from_parameters(parameters), client, cpu.GgufFiles(made / "model.gguf", None, is_exact=True)
    )
    try:
        wait_until_healthy(make_context(tmp_path / "serving", parameters), client, 60.0, lambda: None)
        told = {question: served(client, question) for question in QUESTIONS}
    finally:
        del server
    merged = export(tmp_path / "merged", model=str(base), adapter=str(adapter), form="merged")
    # llama.cpp alone takes a typed special token for a real one; our servers do not.
    plain = [question for question in QUESTIONS if "<|" not in question]
    for folder, is_same in ((merged, True), (base, False)):
        answers = dict(zip(QUESTIONS, evaluated(folder, None), strict=True))
        assert ([told[question] for question in plain] == [comparable(answers[q]) for q in plain]) is is_same


def test_the_modelfile_writes_the_chat_only_where_it_is_the_models_own(base: Path, tmp_path: Path) -> None:
    text = modelfile_of(Renderer.from_folder(base))
    assert text.startswith("FROM ./model.gguf\n")
    assert 'TEMPLATE """{{- range .Messages }}<|im_start|>' in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    odd = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    other = write_tiny_model(tmp_path / "odd", "qwen2", odd)
    assert "No TEMPLATE" in modelfile_of(Renderer.from_folder(other))
