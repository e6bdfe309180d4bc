"""Machine words as people read them."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _


@dataclass(frozen=True, slots=True)
class Label:
    """A word, and the tone in which it is shown: good, live, wait, warn, bad or idle."""

    text: str | Promise
    tone: str


STATES: dict[str, Label] = {
    "PENDING": Label(_("Waiting"), "wait"),
    "PREPARING": Label(_("Preparing"), "live"),
    "RUNNING": Label(_("Running"), "live"),
    "STOPPING": Label(_("Stopping"), "wait"),
    "COMPLETED": Label(_("Completed"), "good"),
    "FAILED": Label(_("Failed"), "bad"),
    "STOPPED": Label(_("Stopped"), "idle"),
    "PRUNED": Label(_("Stopped early"), "idle"),
    "DRAFT": Label(_("Draft"), "idle"),
    "CREATING": Label(_("Starting"), "live"),
    "READY": Label(_("Ready"), "good"),
    "DEGRADED": Label(_("Degraded"), "warn"),
    "importing": Label(_("Importing"), "live"),
    "ready": Label(_("Ready"), "good"),
    "failed": Label(_("Failed"), "bad"),
    "running": Label(_("Running"), "live"),
    "checking": Label(_("Checking"), "live"),
    "done": Label(_("Completed"), "good"),
}
NOT_STARTED = Label(_("Not started"), "idle")

RECIPES: dict[str, str | Promise] = {
    "sft": _("Fine-tuning"),
    "preference": _("Preference tuning"),
    "reward": _("Reward model"),
    "classify": _("Classifier"),
    "seq2seq": _("Text to text"),
    "rl": _("Reinforcement learning"),
    "pretrain": _("Pretraining"),
}
METHODS: dict[str, str | Promise] = {
    "full": _("all weights"),
    "lora": _("LoRA adapter"),
    "qlora": _("LoRA on a quantized base"),
}
MODEL_TASKS: dict[str, str | Promise] = {
    "generation": _("text generation"),
    "reward": _("reward model"),
    "classification": _("classifier"),
    "seq2seq": _("text to text"),
}
SOURCES: dict[str, str | Promise] = {
    "folder": _("folder of your files"),
    "path": _("folder of the server"),
    "huggingface": _("Hugging Face"),
    "modelscope": _("ModelScope"),
    "fine_tune": _("training task"),
    "image": _("container image"),
    "export": _("export"),
    "s3": _("object storage (S3)"),
}
SCALE_ON: dict[str, str | Promise] = {
    "requests_per_second": _("requests per second"),
    "concurrency": _("requests at once"),
    "gpu_utilization": _("GPU utilization"),
}
IMAGE_SOURCES: dict[str, str | Promise] = {"tar": _("uploaded archive"), "registry": _("registry")}
KINDS: dict[str, str | Promise] = {
    "messages": _("conversations"),
    "preference": _("preferences"),
    "instruction": _("instructions"),
    "question_answer": _("questions and answers"),
    "question_reference": _("questions and references"),
    "binary_preference": _("liked and disliked replies"),
    "prompt_completion": _("prompts and completions"),
    "source_target": _("sources and targets"),
    "prompt": _("prompts"),
    "label": _("labelled texts"),
    "text": _("plain text"),
    "table": _("table"),
}
DATA_TASKS: dict[str, str | Promise] = {
    "fetch": _("Fetched"),
    "plugin": _("Made by a plugin"),
    "tokens": _("Tokens"),
    "overlap": _("Leakage and near duplicates"),
}
VERDICTS: dict[str, str | Promise] = {
    "fits": _("fits"),
    "tight": _("tight"),
    "will_not_fit": _("will not fit"),
}
SPLITS: dict[str, str | Promise] = {"train": _("Training"), "validation": _("Validation"), "test": _("Test")}
STEPS: dict[str, str | Promise] = {
    "clean": _("rows with control characters removed"),
    "deduplicate": _("repeated rows"),
    "deduplicate_near": _("rows almost the same"),
    "deidentify": _("rows with personal data replaced"),
    "drop_long": _("rows too long"),
    "rename": _("rows renamed"),
    "select": _("rows not selected"),
}
#: The knobs that most people look at; the others go by their names.
KNOBS: dict[str, str | Promise] = {
    "num_train_epochs": _("Passes over the data"),
    "learning_rate": _("Learning rate"),
    "per_device_train_batch_size": _("Batch size"),
    "max_seq_length": _("Longest sample"),
    "lora_r": _("LoRA rank"),
    "loss_type": _("Preference loss"),
    "algorithm": _("Algorithm"),
    "reward_function": _("Reward"),
    "quantization_bits": _("Bits of the base"),
}
METRICS: dict[str, str | Promise] = {
    "exact_match": _("Exact match"),
    "rouge_l": _("ROUGE-L"),
    "bleu": _("BLEU"),
}
CANDIDATES: dict[str, str | Promise] = {"base": _("Base"), "tuned": _("Tuned"), "model": _("Model")}
ROLES: dict[str, str | Promise] = {
    "owner": _("Owner"),
    "admin": _("Admin"),
    "member": _("Member"),
    "viewer": _("Viewer"),
}
RESOURCES: dict[str, str | Promise] = {
    "running_runs": _("Runs at once"),
    "cpu_milli": _("CPU cores"),
    "memory_mib": _("Memory (GiB)"),
    "gpus": _("GPUs"),
    "vgpus": _("Shares of GPUs"),
    "mig_devices": _("MIG devices"),
}
RUN_KINDS: dict[str, str | Promise] = {
    "fine_tune": _("training"),
    "evaluation": _("evaluation"),
    "model_import": _("model import"),
    "image_import": _("image import"),
    "data": _("data"),
    "replica": _("service"),
}
#: What one container may ask for; the names are those of a run's resources.
AMOUNTS: dict[str, str | Promise] = {
    "cpu_milli": _("CPU cores"),
    "memory_mib": _("Memory (GiB)"),
    "gpus": _("GPUs"),
    "gpu_cores_percent": _("Share of a GPU (%)"),
    "gpu_memory_mib": _("Memory of the share (GiB)"),
    "mig_devices": _("MIG devices"),
}
AMOUNT_UNITS = {"cpu_milli": 1000, "memory_mib": 1024, "gpu_memory_mib": 1024}
#: In what the portal shows a resource: the ledger's amount divided by this.
RESOURCE_UNITS = {"cpu_milli": 1000, "memory_mib": 1024}


def state_label(state: str | None) -> Label:
    """How a state is shown; a word that is not in the table is shown as it is."""
    if not state:
        return NOT_STARTED
    return STATES.get(state, Label(state, "idle"))
