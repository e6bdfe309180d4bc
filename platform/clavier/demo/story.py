"""The steps of the demo, in order, with what each one took and found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clavier.demo.client import Client, StepFailed

MATERIAL = Path(__file__).resolve().parents[3] / "examples" / "demo"
QUESTIONS_SHOWN = 3
STEP_LIMIT_S = 600.0


@dataclass
class Step:
    """One row of the table."""

    name: str
    seconds: float = 0.0
    result: str = ""


@dataclass
class Story:
    """The main job: data in, base pretrained, tuned with LoRA, judged, served, asked.

    ``suffix`` keeps the names of several demos on one platform apart; ``report`` is told of live progress.
    """

    client: Client
    suffix: str
    report: Callable[[str, dict[str, Any]], None]
    steps: list[Step] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    service_path: str = ""

    def run(self) -> dict[str, Any]:
        """Every step. Raises StepFailed at the first that does not work."""
        corpus, faq, questions = self.upload_data()
        base = self.train("pretrain the base", "demo-base", "pretrain", corpus, None)
        tuned = self.train("tune with LoRA", "demo-tuned", "sft", faq, base)
        samples = self.judge(tuned, questions)
        self.deploy(tuned)
        self.ask(samples)
        return self.facts

    def upload_data(self) -> tuple[str, str, str]:
        """Ids of the versions of corpus, training data and questions."""
        ids = []
        with self.step("upload the data") as step:
            rows = 0
            for name, file in (("corpus", "corpus.txt"), ("faq", "faq.jsonl"), ("questions", "faq_questions.jsonl")):
                dataset = self.client.upload_dataset(f"demo-{name}-{self.suffix}", MATERIAL / file)
                version = dataset["newest_version"]
                ids.append(version["id"])
                rows += version["num_samples"]
            step.result = f"3 data sets, {rows:,} rows"
        return ids[0], ids[1], ids[2]

    def train(self, title: str, name: str, recipe: str, data: str, base: str | None) -> str:
        """The id of the model version that the task has made."""
        with self.step(title) as step:
            task = self.client.post(
                "/api/v1/fine-tune-tasks",
                {
                    "name": f"{name}-{self.suffix}",
                    "train_dataset": data,
                    **({"base_model": base} if base else {}),
                    **json.loads((MATERIAL / f"{recipe}.json").read_text()),
                },
            )
            path = f"/api/v1/fine-tune-tasks/{task['id']}"
            self.client.wait_for_run(path, lambda status: self.report(title, status), limit_s=STEP_LIMIT_S)
            losses = self.losses(path)
            version = self.client.get(path)["output_version"]
            step.result = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, {version['name']}"
        key = "train" if recipe == "sft" else "pretrain"
        self.facts |= {f"{key}_seconds": step.seconds, f"{key}_loss": [losses[0], losses[-1]]}
        if recipe == "sft":
            self.facts |= {"model_version": version["id"], "model": version["name"]}
        return str(version["id"])

    def losses(self, path: str) -> list[float]:
        """The training losses that the run reported. Raises StepFailed when there are none."""
        offset, losses = 0, []
        while True:
            page = self.client.get(f"{path}/metrics", offset=offset)
            losses += [event["train/loss"] for event in page["items"] if "train/loss" in event]
            if page["next_offset"] == offset:
                break
            offset = page["next_offset"]
        if not losses:
            raise StepFailed(f"{path} reported no loss")
        return losses

    def judge(self, tuned: str, questions: str) -> list[dict[str, Any]]:
        """Base beside tuned on the questions; the per-sample results. Raises StepFailed unless the tuned is better."""
        title = "judge base and tuned"
        with self.step(title) as step:
            task = self.client.post(
                "/api/v1/evaluation-tasks",
                {"name": f"demo-{self.suffix}", "model_version": tuned, "dataset_version": questions},
            )
            path = f"/api/v1/evaluation-tasks/{task['id']}"
            self.client.wait_for_run(path, lambda status: self.report(title, status), limit_s=STEP_LIMIT_S)
            scores = self.client.get(path)["scores"]
            base, best = (scores["exact_match"][label]["value"] for label in ("base", "tuned"))
            samples = self.client.get(f"{path}/samples", offset=0)["items"]
            step.result = f"exact match {base:.2f} -> {best:.2f} on {len(samples)} questions"
        self.facts |= {"base_exact_match": base, "tuned_exact_match": best, "scores": scores}
        if best <= base:
            raise StepFailed(f"The tuned model is not better: exact match {base:.2f} -> {best:.2f}.")
        return list(samples)

    def deploy(self, tuned: str) -> None:
        """A service that answers."""
        with self.step("deploy the tuned model") as step:
            name = f"demo-{self.suffix}"
            service = self.client.post("/api/v1/services", {"name": name, "model_version": tuned})
            self.service_path = f"/api/v1/services/{service['id']}"
            self.client.wait_until_served(self.service_path, limit_s=120)
            replica = self.client.get(f"{self.service_path}/replicas")["items"][0]
            step.result = f"{name} on {replica['engine']}"
        self.facts["service"] = name

    def ask(self, samples: list[dict[str, Any]]) -> None:
        """Questions to the served model. Raises StepFailed when it answers other than it was judged."""
        with self.step("ask the served model") as step:
            shown = []
            for sample in samples[:: max(1, len(samples) // QUESTIONS_SHOWN)][:QUESTIONS_SHOWN]:
                served = self.client.chat(self.facts["service"], sample["question"]).strip()
                judged = sample["answers"]["tuned"]["text"].strip()
                if served != judged:
                    raise StepFailed(f"{sample['question']!r}: served {served!r}, judged {judged!r}")
                base = sample["answers"]["base"]["text"].strip()
                shown.append({"question": sample["question"], "base": base, "tuned": served})
            step.result = f"{len(shown)} answers, as judged"
        self.facts["questions"] = shown

    def stop_service(self) -> None:
        """Stop what was deployed, and wait until it is gone."""
        if not self.service_path:
            return
        self.client.post(f"{self.service_path}/stop")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.client.get(self.service_path)["state"] != "STOPPED":
            time.sleep(0.3)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time a step and keep it, also when it fails."""
        step = Step(name)
        self.steps.append(step)
        self.report(name, {})
        began = time.monotonic()
        try:
            yield step
        finally:
            step.seconds = round(time.monotonic() - began, 1)
