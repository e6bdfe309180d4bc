"""Own code in real processes: what a script finds, and what is said when it fails."""

from __future__ import annotations

import json

import pytest

from clavier.files.models import StoredFile
from clavier.runs.outputs import read_log, read_metrics
from clavier.runs.queries import progress
from finetune_app.custom import create_custom_fine_tune_task
from tests.engine import assert_consistent, make_real_engine
from tests.worlds import put_tree

pytestmark = pytest.mark.django_db(transaction=True)

LOOK = """
import json, os, sys
from pathlib import Path
found = {"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}
found["config"] = json.loads(Path(os.environ["CLAVIER_CONFIG"]).read_text())
Path("made-here.txt").write_text("the copy of the code may be changed")
found["can_write_data"] = os.access(sys.argv[1], os.W_OK)
Path(os.environ["CLAVIER_OUTPUT_DIR"], "found.json").write_text(json.dumps(found))
Path(os.environ["CLAVIER_CHECKPOINT_DIR"], "state.txt").write_text("step 1")
"""


@pytest.fixture
def engine(monkeypatch, home):
    return make_real_engine(monkeypatch, home)


@pytest.fixture
def run(engine, alice, spooled):
    """Runs a script of Alice's to its end."""

    def run_script(script: str, command: str = "python train.py", **more):
        put_tree(alice, spooled, {"code/train.py": script, "model/weights.txt": "w"})
        task = create_custom_fine_tune_task(
            actor=alice, name="mine", command=command, code_folder="private/code", model_folder="private/model",
            output_folder="private/out", **more,
        )  # fmt: skip
        return engine.finish(task.run)

    return run_script


def test_a_script_finds_its_folders_values_and_nothing_of_the_platform(run, home):
    value = "$(touch /tmp/canary)`id`;|&"
    ended = run(
        LOOK,
        "python3 train.py ${model_dir} --out=${output_dir}",
        hyperparameters={"learning_rate": "1e-4", "prompt": value, "save_strategy": "steps", "save_steps": 1},
        checkpoint_folder="private/ckpt",
        environment={"MY_MODE": "fast"},
    )
    assert ended.state == "COMPLETED", (ended.message, read_log(ended.pk).data)
    private = home / "files" / str(ended.tenant_id) / str(ended.created_by_id) / "private"
    found = json.loads((private / "out" / "found.json").read_text())
    root = home / "runs" / str(ended.pk)
    assert found["argv"][:2] == [f"{private}/model", f"--out={root}/output"]
    assert found["argv"][2:6] == ["--learning_rate", "1e-4", "--prompt", value]
    assert found["cwd"] == f"{root}/work/code"
    assert (found["env"]["MY_MODE"], found["env"]["HP_PROMPT"]) == ("fast", value)
    assert found["config"]["commonHyperParameters"][0] == {"name": "learning_rate", "value": "1e-4"}
    assert "SECRET_KEY" not in found["env"]
    assert "PYTHONPATH" not in found["env"]
    assert not found["can_write_data"]
    assert (private / "ckpt" / "state.txt").read_text() == "step 1"
    assert not (private / "code" / "made-here.txt").exists()
    row = StoredFile.objects.get(path="out/found.json")
    assert row.size_bytes == (private / "out" / "found.json").stat().st_size
    assert_consistent()


def test_a_link_in_the_output_does_not_come_along(run, home):
    ended = run(
        "import os\n"
        "out = os.environ['CLAVIER_OUTPUT_DIR']\n"
        "os.symlink('/etc/passwd', out + '/secret')\n"
        "os.symlink('/etc', out + '/etc')\n"
        "os.mkfifo(out + '/pipe')\n"
        "open(out + '/good', 'w').write('1')\n"
    )
    assert ended.state == "COMPLETED", ended.message
    assert set(StoredFile.objects.filter(path__startswith="out/").values_list("path", flat=True)) == {"out/good"}


def test_printed_dictionaries_and_bars_become_metrics_and_progress(run):
    ended = run(
        "import os, sys\n"
        "for step in range(1, 4):\n"
        "    sys.stderr.write(f'\\r {step * 10}%|## | {step}/10 [00:01<00:09,  1.00it/s]')\n"
        "    print({'loss': 3.0 / step, 'learning_rate': 1e-4, 'epoch': step / 10}, flush=True)\n"
        "open(os.environ['CLAVIER_OUTPUT_DIR'] + '/model', 'w').write('1')\n"
    )
    events, end = read_metrics(ended.pk)
    losses = [(event["step"], event["train/loss"]) for event in events if event["kind"] == "metric"]
    assert losses == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert progress(ended.pk)["progress"]["step"] == 3
    assert read_metrics(ended.pk, end) == ([], end)
