"""Rendered jobs: manifests against JobSet's schema, scripts by a shell; no cluster is here."""

import copy
import dataclasses
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from cm3jax import presets
from cm3jax.config import MeshConfig, TrainConfig
from cm3jax.errors import UserError
from cm3jax.training.metrics import MetricsLog
from launch import cli, jobs, submit

SCHEMA = json.loads((Path(__file__).parent / "schemas/jobset.v1alpha2.schema.json").read_text())
REVISION = "0123456789abcdef0123456789abcdef01234567"
EXPERIMENT = presets.load_experiment("cm3leon_7b")
BUCKET = "gs://mine/cm3jax"
GKE_TPU = submit.Options(
    "gke-tpu", 64, 4, BUCKET, accelerator="tpu-v5p-slice", topology="8x8x4", restarts=7
)
GKE_GPU = submit.Options("gke-gpu", 2, 8, BUCKET, accelerator="nvidia-h100-80gb")
TPU_VM = submit.Options("tpu-vm", 16, 4, BUCKET, accelerator="v5p-128", zone="us-east5-a")
SLURM = submit.Options("slurm", 4, 8)
ALL = (GKE_TPU, GKE_GPU, TPU_VM, SLURM)


def strict(schema: dict) -> dict:
    """The schema with unknown fields forbidden, as `kubectl --validate=strict` does."""
    schema = copy.deepcopy(schema)

    def close(node):
        if isinstance(node, dict):
            if "properties" in node and "additionalProperties" not in node:
                node["additionalProperties"] = False
            for value in node.values():
                close(value)

    close(schema)
    return schema


def manifest(options: submit.Options, experiment=EXPERIMENT) -> dict:
    return yaml.safe_load(submit.render(experiment, options, REVISION))


def check(candidate: dict) -> None:
    jsonschema.Draft7Validator(strict(SCHEMA)).validate(candidate)


@pytest.mark.parametrize("options", [GKE_TPU, GKE_GPU], ids=lambda o: o.cluster)
@pytest.mark.parametrize("name", ["cm3leon_7b", "miniature/decoder"])
def test_manifests_follow_the_published_schema(options, name):
    experiment = presets.load_experiment(name)
    rows = dataclasses.replace(experiment.data, batch=2048)
    check(manifest(options, dataclasses.replace(experiment, data=rows)))


def test_the_schema_sees_mistakes():
    wrong = manifest(GKE_GPU)
    wrong["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        check(wrong)
    wrong = manifest(GKE_GPU)
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] = "2"
    with pytest.raises(jsonschema.ValidationError, match="not of type 'integer'"):
        check(wrong)


def test_a_manifest_says_what_the_job_needs():
    made = manifest(GKE_TPU)
    assert made["spec"]["failurePolicy"] == {"maxRestarts": 7}
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (64, 64, 0)
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 300
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "8x8x4",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables == {
        "CM3JAX_REVISION": REVISION,
        "JAX_COMPILATION_CACHE_DIR": f"{BUCKET}/compiled",
        "JAX_COORDINATOR_ADDRESS": "cm3leon-7b-worker-0-0.cm3leon-7b:8476",
        "JAX_NUM_PROCESSES": "64",
    }
    (script,) = container["args"]
    assert "'.[tpu,store]'" in script
    assert f"--workdir {BUCKET}/runs/cm3leon_7b" in script
    assert f"checkouts/{REVISION}.tar.gz | tar" in pod["initContainers"][0]["args"][0]
    gpu = manifest(GKE_GPU)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert gpu["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert "'.[cuda,store]'" in gpu["containers"][0]["args"][0]


@pytest.mark.parametrize("options", ALL, ids=lambda o: o.cluster)
def test_scripts_are_what_a_shell_can_read(options):
    strange = dataclasses.replace(EXPERIMENT, workdir="runs/it's mine")
    text = submit.render(strange, options, REVISION)
    assert REVISION in text
    if options.cluster.startswith("gke"):
        pod = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
        (text,) = pod["spec"]["containers"][0]["args"]
    read = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert read.returncode == 0, read.stderr
    (command,) = re.findall("python -m launch.train cm3leon_7b [^&\n]*", text)
    if options.cluster in ("slurm", "tpu-vm"):  # quoted once more
        command = command.replace(shlex.quote("'")[1:-1], "'").removesuffix("'")
    words = shlex.split(command)
    assert words[-2:] == ["--workdir", "runs/it's mine"]


def test_slurm_asks_for_what_the_job_needs():
    text = submit.render(EXPERIMENT, SLURM, REVISION)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert asked["nodes"] == "4"
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "8"
    assert asked["signal"] == "TERM@300"
    assert "requeue" in asked
    assert "'.[cuda]'" in text
    assert "gs://" not in text


@pytest.mark.parametrize(
    ("cluster", "target", "nodes", "devices", "accelerator", "topology"),
    [
        ("gke-tpu", "v5p-256", 64, 4, "tpu-v5p-slice", "4x8x8"),
        ("gke-tpu", "ironwood-64", 8, 4, "tpu7x", "2x4x4"),  # a chip is two devices
        ("tpu-vm", "v5p-256", 64, 4, "v5p-512", ""),  # its type counts cores
        ("tpu-vm", "v6e-16", 4, 4, "v6e-16", ""),
        ("gke-gpu", "h200-64", 8, 8, "nvidia-h200-141gb", ""),
        ("slurm", "h200-64", 8, 8, "", ""),
    ],
)
def test_a_job_is_for_what_was_planned(cluster, target, nodes, devices, accelerator, topology):
    options = submit.Options(cluster, target=target, bucket=BUCKET, zone="us-east5-a")
    assert (options.nodes, options.devices) == (nodes, devices)
    assert (options.accelerator, options.topology) == (accelerator, topology)
    text = submit.render(EXPERIMENT, options, REVISION)
    size = target.rpartition("-")[2]
    platform = "gpu" if "h200" in target else "tpu"
    assert f"--mesh.fsdp {size} --mesh.platform {platform}" in text
    fraction = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert (fraction in text) == (platform == "gpu")
    # Compiler flags are those of `launch.env`, under which `plan` compiled and `train` runs.
    assert f"launch.train {EXPERIMENT.name}" in text
    assert "LIBTPU_INIT_ARGS" not in text
    assert "XLA_FLAGS" not in text


def test_a_target_and_what_contradicts_it_are_refused():
    with pytest.raises(UserError, match="--target v5p-256 is no machine of --cluster slurm; give "):
        submit.Options("slurm", target="v5p-256")
    with pytest.raises(UserError, match=r"--nodes 3 is not that of --target h200-64, 8; leave it"):
        submit.Options("slurm", nodes=3, target="h200-64")
    fixed = dataclasses.replace(EXPERIMENT, mesh=MeshConfig(data=1, fsdp=32))
    with pytest.raises(UserError, match="does not fit h200-64; choose sizes whose product is 64"):
        submit.render(fixed, submit.Options("slurm", target="h200-64"), REVISION)


def two_slices(**mesh) -> dict:
    options = submit.Options("gke-tpu", bucket=BUCKET, target="v6e-256", slices=2)
    experiment = dataclasses.replace(EXPERIMENT, mesh=MeshConfig(**mesh))
    return manifest(options, experiment)


def test_each_slice_is_a_job_of_the_set_and_machines_count_through_them():
    made = two_slices(data=2, fsdp=32, tensor=8)
    check(made)
    (workers,) = made["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert (workers["replicas"], job["parallelism"], job["completions"]) == (2, 64, 64)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"
    (container,) = pod["containers"]
    variables = {each["name"]: each.get("value", each) for each in container["env"]}
    assert variables["JAX_NUM_PROCESSES"] == "128"
    assert variables["MEGASCALE_NUM_SLICES"] == "2"
    # The first machine of the first slice, which jax's own address names with its port.
    first = variables["MEGASCALE_COORDINATOR_ADDRESS"]
    assert variables["JAX_COORDINATOR_ADDRESS"] == f"{first}:{jobs.PORT}"
    place = variables["MEGASCALE_SLICE_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert place == "metadata.labels['jobset.sigs.k8s.io/job-index']"
    (script,) = container["args"]
    assert "--mesh.data 2 --mesh.fsdp 32 --mesh.tensor 8 --mesh.platform tpu" in script
    # What Kubernetes makes of the script, and then a shell.
    (line,) = re.findall("export JAX_PROCESS_ID=.*", script.replace("$$", "$"))
    machine = {"MEGASCALE_SLICE_ID": "1", "JOB_COMPLETION_INDEX": "3"}
    command = ["bash", "-euc", f'{line}; echo "$JAX_PROCESS_ID"']
    assert subprocess.run(command, env=machine, capture_output=True).stdout == b"67\n"


def test_slices_that_no_job_can_have_are_refused():
    with pytest.raises(UserError, match=r"between 2 slices, .* --mesh\.data 2 --mesh\.fsdp 256\.$"):
        two_slices(data=1, fsdp=-1)
    with pytest.raises(UserError, match="--cluster tpu-vm has no slices; give --cluster gke-tpu"):
        dataclasses.replace(TPU_VM, slices=2)
    for nodes in (3, 2):
        with pytest.raises(UserError, match=f"--nodes {nodes} makes no 2 slices"):
            dataclasses.replace(GKE_TPU, nodes=nodes, slices=2)
    with pytest.raises(UserError, match="--slices 0 must be at least 1"):
        dataclasses.replace(GKE_TPU, slices=0)


def test_options_turn_the_default_into_the_experiment():
    mine = dataclasses.replace(
        EXPERIMENT,
        seed=7,
        mesh=MeshConfig(fsdp=64),
        cm3=dataclasses.replace(EXPERIMENT.cm3, mask_retrieved=False),
        decode=dataclasses.replace(EXPERIMENT.decode, temperature_range=(0.5, 1.0)),
    )
    words = jobs.overrides(mine, EXPERIMENT)
    assert cli.parse_experiment(["cm3leon_7b", *words], "") == mine
    assert jobs.overrides(EXPERIMENT, EXPERIMENT) == []


def test_a_job_keeps_the_curriculum_that_the_experiment_has():
    """An option takes its column out, unless the column is given, too."""
    usual = presets.load_experiment("miniature/decoder")
    mine = dataclasses.replace(
        usual,
        retrieval=dataclasses.replace(usual.retrieval, documents=1),
        cm3=dataclasses.replace(usual.cm3, vary_documents=False),
    )
    words = jobs.command_options(mine, usual)
    assert cli.parse_experiment(["miniature/decoder", *words], "") == mine
    words = ["--retrieval.documents", "1", "--cm3.no-vary-documents"]
    plain = cli.parse_experiment(["miniature/decoder", *words], "")
    assert plain.curriculum.documents == plain.curriculum.vary_documents == ()
    words = jobs.command_options(plain, usual)
    assert cli.parse_experiment(["miniature/decoder", *words], "") == plain


@pytest.fixture
def supervised(tmp_path):
    """The script of a pod around a training of 3 steps that does `program`."""

    def start(program: str) -> subprocess.Popen:
        experiment = dataclasses.replace(
            EXPERIMENT, workdir=str(tmp_path), train=TrainConfig(steps=3)
        )
        script = jobs.Job(experiment, GKE_GPU, REVISION).supervised
        first, _, rest = script.partition("\n")
        assert first.startswith("python -m launch.train cm3leon_7b ")
        (tmp_path / "train.py").write_text(program)
        python = shlex.quote(sys.executable)
        script = f"set -e\n{python} {tmp_path}/train.py &\n" + rest.replace(
            "python -c", python + " -c"
        )
        return subprocess.Popen(["bash", "-c", script])

    return start


@pytest.mark.slow  # it waits for shells; the other tests read the script
def test_a_pod_succeeds_only_when_the_last_step_is_done(supervised, tmp_path):
    MetricsLog(tmp_path, 0).write({"step": 2})
    assert supervised("").wait(60) != 0  # it was told to stop: exit code 0, but not finished
    MetricsLog(tmp_path, 2).write({"step": 3})
    assert supervised("").wait(60) == 0
    assert supervised("raise SystemExit(2)").wait(60) == 2


def test_a_pod_passes_the_request_to_stop_on(supervised, tmp_path):
    program = (
        "import pathlib, signal, sys, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "def stop(*_):\n    (here / 'saved').touch()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "(here / 'started').touch()\n"
        "time.sleep(60)\n"
    )
    process = supervised(program)
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) != 0
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cluster": "gke-tpu"}, "--cluster gke-tpu also needs --bucket, --accelerator, --topo"),
        ({"cluster": "tpu-vm", "bucket": BUCKET}, "also needs --accelerator, --zone"),
        ({"bucket": "mine"}, "--bucket mine is no bucket"),
        ({"nodes": 0}, "must be at least 1"),
    ],
)
def test_refuses_what_would_not_run(fields, said):
    with pytest.raises(UserError, match=said):
        submit.Options(**fields)


def test_only_commits_are_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "_ROOT", tmp_path)
    with pytest.raises(UserError, match="no git checkout"):
        submit.commit()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a"]
    (tmp_path / "file").write_text("one")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    assert re.fullmatch("[0-9a-f]{40}", submit.commit())
    (tmp_path / "file").write_text("two")
    with pytest.raises(UserError, match="file differs from the last commit"):
        submit.commit()


def test_the_command_writes_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(submit, "commit", lambda: REVISION)
    out = tmp_path / "train.sbatch"
    corpus = tmp_path / "it's/corpus"
    words = ["quickstart", "--data.corpus", str(corpus), "--nodes", "2", "--out", str(out)]
    with pytest.raises(UserError, match=r"is not there, and the job would end at once"):
        submit.run(words)
    assert not out.exists()
    (corpus / "train").mkdir(parents=True)
    (corpus / "train/manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"data.batch=8 cannot be cut into 16 equal shares"):
        submit.run(words)
    with pytest.raises(UserError, match=r"does not fit the job's devices; .* product is 16"):
        submit.run([*words, "--mesh.fsdp", "3"])
    assert not out.exists()
    submit.run([*words, "--data.batch", "16", "--train.steps", "7"])
    assert "launch.train quickstart --data.corpus " in out.read_text()
    assert str(out) in capsys.readouterr().out
