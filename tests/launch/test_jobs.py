"""Rendered jobs are run by a shell whose `gcloud`, `srun` and `python` write down what they get."""

import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cm3jax.errors import UserError
from cm3jax.presets import load_experiment
from launch import job_gke, submit
from launch.job_inputs import require_inputs

REVISION = "0123456789abcdef0123456789abcdef01234567"
EXPERIMENT = load_experiment("cm3leon_7b")
TPU_VM = submit.Options("tpu-vm", 1, 4, "gs://b", accelerator="v5p-8", zone="us-east5-a")
SLURM = submit.Options("slurm", 2, 8, cpus=12, partition="gpu", account="lab-7")
GKE = submit.Options("gke-tpu", 1, 4, "gs://b", accelerator="tpu-v5p-slice", topology="2x2x1")

RECORD = """#!/usr/bin/env bash
printf '%s\\0' "$(basename "$0")" "$@" >"$CALLS/$(date +%s%N)-$$"
"""
STUBS = {
    "gcloud": """
case "$*" in
  *"tpu-vm describe"*) cat "$HOME/vm" ;;
  *"tpu-vm create"*) echo READY >"$HOME/vm" ;;
  *"tpu-vm delete"*) rm -f "$HOME/vm" ;;
  *"tpu-vm ssh"*) for word; do case "$word" in --command=*) bash -c "${word#--command=}" ;; esac
    done ;;
  *"storage cp"*) cat >/dev/null ;;
  *"storage cat"*) tar -cz -T /dev/null ;;
esac
""",
    "git": "tar -c -T /dev/null\n",
    "python3": '[ "$2" != venv ] || mkdir -p "$3"\n',
    "python": """
case "$1" in
  -m) sleep "${SLEEP:-0}" && exit "${TRAINED:-0}" ;;
  *) exit "${LEFT:-0}" ;;
esac
""",
    "pip": "",
    "curl": 'case "$*" in *endpoints) echo a:b:10.0.0.1 ;; *) echo 0 ;; esac\n',
    "scontrol": "echo node-1\n",
    "srun": 'while [[ "$1" = --* ]]; do shift; done; SLURM_PROCID=0 SLURM_LOCALID=0 exec "$@"\n',
}


# A shell cannot trap what is ignored when it starts, as in a test run in the background.
HEEDING = (
    "import os, signal, sys\n"
    "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
    "    signal.signal(number, signal.SIG_DFL)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


class Machine:
    """A folder in which scripts run with the stubs alone, and what the stubs were called with."""

    def __init__(self, path: Path):
        self.path, self.calls_path = path / "here", path / "calls"
        for folder in (self.path, self.calls_path, path / "bin"):
            folder.mkdir()
        for name, body in STUBS.items():
            stub = path / "bin" / name
            stub.write_text(RECORD + body)
            stub.chmod(0o755)
        system = "/usr/local/bin:/usr/bin:/bin"
        self.environment = {"PATH": f"{path / 'bin'}:{system}", "HOME": str(self.path)}
        self.environment |= {"CALLS": str(self.calls_path)}

    def start(self, script: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", HEEDING, "bash", "-c", script, "job.sh"],
            cwd=self.path,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, **variables: str) -> tuple[int, str]:
        process = self.start(script, **variables)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def calls(self, *first: str) -> list[list[str]]:
        """All calls so far that begin with these words, in order."""
        every = [p.read_text().split("\0")[:-1] for p in sorted(self.calls_path.iterdir())]
        return [call for call in every if call[: len(first)] == list(first)]

    @property
    def vm(self) -> Path:
        return self.path / "vm"


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def in_job(machine: Machine) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(machine.path),
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_NTASKS": "16",
    }


def as_kubernetes_reads(text: str, variables: dict[str, str]) -> str:
    """A field after `$(NAME)` was replaced and `$$` became `$`."""

    def value(found: re.Match) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, text)


def run_pod(machine: Machine, text: str) -> tuple[int, str]:
    pod = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (checkout,), (train,) = pod["initContainers"], pod["containers"]
    variables: dict[str, str] = {}
    for each in train["env"]:
        variables[each["name"]] = as_kubernetes_reads(each["value"], variables)
    (machine.path / "checkout").mkdir()
    scripts = [as_kubernetes_reads(one["args"][0], variables) for one in (checkout, train)]
    here = str(machine.path / "checkout")
    both = "\n".join(
        re.sub(r"(?<= )/checkout$", here, script, flags=re.MULTILINE) for script in scripts
    )
    return machine.run(both, **variables, JOB_COMPLETION_INDEX="0")


HOSTILE = ["$(touch {})", "'; touch {}; '", '"; touch {}; "', "`touch {}`", "$(JAX_PROCESS_ID)$$ #"]


@pytest.mark.parametrize("words", HOSTILE)
@pytest.mark.parametrize("options", [TPU_VM, SLURM, GKE], ids=lambda o: o.cluster)
def test_values_are_words_and_never_commands(options, words, machine, tmp_path):
    canary = tmp_path / "canary"
    value = words.format(canary)
    bucket = f"gs://b/{value}"
    fields = {"bucket": bucket, "zone": value, "accelerator": value}
    options = dataclasses.replace(options, **fields)
    data = dataclasses.replace(EXPERIMENT.data, corpus=f"{bucket}/corpus")
    text = submit.render(dataclasses.replace(EXPERIMENT, data=data), options, REVISION)
    if options.cluster == "slurm":
        assert machine.run(text)[0] == 0
        status, said = machine.run(text, **in_job(machine))
    elif options.cluster == "tpu-vm":
        status, said = machine.run(text)
        zones = [w for call in machine.calls("gcloud", "compute") for w in call if "--zone" in w]
        assert set(zones) == {f"--zone={value}"}
        machine.vm.write_text("READY")
        assert machine.run(text)[0] == 2
    else:
        status, said = run_pod(machine, text)
        head = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
        assert machine.run(head[1])[0] == 0
    assert status == 0, said
    assert not canary.exists()
    (train,) = machine.calls("python", "-m", "launch.train")
    assert train[train.index("--data.corpus") + 1] == f"{bucket}/corpus"
    assert train[train.index("--workdir") + 1] == f"{bucket}/runs/cm3leon_7b"
    (finished,) = machine.calls("python", "-c")
    assert finished[-2] == f"{bucket}/runs/cm3leon_7b"
    if options.cluster != "slurm":
        archive = f"{bucket}/checkouts/{REVISION}.tar.gz"
        assert machine.calls("gcloud", "storage", "cat") == [["gcloud", "storage", "cat", archive]]
        assert all(c[-1] == archive for c in machine.calls("gcloud", "storage", "cp"))


@pytest.mark.parametrize("name", ["bucket", "zone", "image", "partition", "account"])
def test_a_line_break_in_an_option_is_refused(name):
    with pytest.raises(UserError, match=f"--{name} .* has a line break"):
        submit.Options(**{"bucket": "gs://b", name: "gs://b\ntouch x"})


def test_kubernetes_gives_back_what_was_written():
    for text in ("a $(NAME) $$ $$(NAME) $x", 'wait "$child"', "$", "$$$(NAME)"):
        assert as_kubernetes_reads(job_gke.literal(text), {"NAME": "wrong"}) == text


def test_a_tpu_vm_goes_when_training_fails_and_the_script_runs_again(machine):
    text = submit.render(EXPERIMENT, TPU_VM, REVISION)
    status, said = machine.run(text, TRAINED="3")
    assert status == 3, said
    assert not machine.vm.exists()
    status, said = machine.run(text, LEFT="1")  # told to stop: not finished
    assert status == 1
    assert not machine.vm.exists()
    assert machine.run(text)[0] == 0
    assert not machine.vm.exists()
    assert len(machine.calls("gcloud", "compute", "tpus", "tpu-vm", "create")) == 3


def test_a_preempted_tpu_vm_is_made_again_and_a_running_one_is_left_alone(machine):
    text = submit.render(EXPERIMENT, TPU_VM, REVISION)
    machine.vm.write_text("PREEMPTED")
    assert machine.run(text)[0] == 0
    kinds = [call[4] for call in machine.calls("gcloud", "compute", "tpus", "tpu-vm")]
    assert kinds == ["describe", "delete", "create", "ssh", "delete"]
    machine.vm.write_text("READY")
    status, said = machine.run(text)
    assert status == 2
    assert "the TPU VM cm3leon-7b is there already" in said
    assert machine.vm.exists()


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("v6e-16", "v2-alpha-tpuv6e"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_a_tpu_vm_has_the_image_of_its_kind(machine, kind, image):
    options = dataclasses.replace(TPU_VM, accelerator=kind)
    assert machine.run(submit.render(EXPERIMENT, options, REVISION))[0] == 0
    (create,) = machine.calls("gcloud", "compute", "tpus", "tpu-vm", "create")
    assert {f"--accelerator-type={kind}", f"--version={image}"} <= set(create)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_a_tpu_vm_goes_when_the_script_is_stopped(machine, number):
    process = machine.start(submit.render(EXPERIMENT, TPU_VM, REVISION), SLEEP="2")
    while not machine.calls("python", "-m", "launch.train"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert not machine.vm.exists()


def test_slurm_installs_only_on_the_login_node(machine):
    text = submit.render(EXPERIMENT, SLURM, REVISION)
    status, said = machine.run(text, **in_job(machine))
    assert status == 2
    assert "run this file with bash on the login node first" in said
    assert not machine.calls("pip")
    for _ in range(2):
        status, said = machine.run(text)
        assert status == 0
        assert "is ready; submit with: sbatch job.sh" in said
    assert len(machine.calls("pip", "install")) == 1
    status, said = machine.run(text, **in_job(machine))
    assert status == 0, said
    assert len(machine.calls("pip", "install")) == 1
    (srun,) = machine.calls("srun")
    assert "--cpus-per-task=12" in srun
    assert not machine.calls("scontrol", "requeue")
    assert machine.run(text, **in_job(machine), LEFT="1")[0] == 0
    assert machine.calls("scontrol", "requeue") == [["scontrol", "requeue", "7"]]
    assert machine.run(text, **in_job(machine), TRAINED="3")[0] == 3
    assert len(machine.calls("scontrol", "requeue")) == 1
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert (asked["partition"], asked["account"]) == ("gpu", "lab-7")
    assert asked["cpus-per-task"] == "12"


def corpus(path: Path) -> Path:
    (path / "train").mkdir(parents=True)
    (path / "train/manifest.json").write_text("{}")
    return path


def test_what_a_job_reads_must_be_there(tmp_path):
    with pytest.raises(UserError, match=r"cm3leon_7b names no data\.corpus.*launch\.prepare"):
        require_inputs(EXPERIMENT, False)

    def reading(place: Path | str) -> None:
        data = dataclasses.replace(EXPERIMENT.data, corpus=str(place))
        return dataclasses.replace(EXPERIMENT, data=data)

    with pytest.raises(UserError, match=r"train/manifest\.json is not there, and the job would"):
        require_inputs(reading(tmp_path / "none"), False)
    made = corpus(tmp_path / "made")
    require_inputs(reading(made), False)
    with pytest.raises(UserError, match=r"do not see; copy it to the bucket"):
        require_inputs(reading(made), True)
    require_inputs(reading("gs://b/corpus"), True)
    with pytest.raises(UserError, match=r"data\.mixture|names no"):
        require_inputs(load_experiment("sft_7b"), False)


@pytest.mark.parametrize(
    ("run", "command"),
    [
        ("runs/cm3leon_7b", "launch.train cm3leon_7b, or give another --init-from"),
        ("runs/my run", "launch.train EXPERIMENT --workdir 'runs/my run', or give another --init"),
    ],
)
def test_the_run_that_a_job_starts_from_must_be_there(run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tuning = load_experiment("sft_7b")
    data = dataclasses.replace(tuning.data, tasks=(), mixture=(("gs://b/vqa", 1.0),))
    tuning = dataclasses.replace(tuning, data=data, init_from=run)
    with pytest.raises(UserError, match=f"{run} is not there.* make it with python -m {command}"):
        require_inputs(tuning, False)


def test_tokenizers_must_be_there_where_training_reads_them(tmp_path):
    clip = load_experiment("miniature/clip")
    away = dataclasses.replace(clip.tokenizers, text=str(tmp_path / "text"))
    clip = dataclasses.replace(clip, tokenizers=away)
    with pytest.raises(
        UserError, match=r"text is not there.*launch\.train miniature/text --workdir .*, or give "
    ):
        require_inputs(clip, False)
    # The commit brings the shipped weights along; a bucket need not hold them.
    require_inputs(load_experiment("miniature/clip"), True)
    data = dataclasses.replace(EXPERIMENT.data, online=True, rows="whole")
    online = dataclasses.replace(EXPERIMENT, data=data)
    with pytest.raises(UserError, match=r"names no tokenizers\.text"):
        require_inputs(online, False)


def test_words_of_a_mixture_are_given_one_by_one():
    mixture = (("data/a", 1.0), ("data/b:scene", 2.0))
    data = dataclasses.replace(EXPERIMENT.data, mixture=mixture)
    text = submit.render(dataclasses.replace(EXPERIMENT, data=data), SLURM, REVISION)
    assert "--data.mixture data/a 1.0 data/b:scene 2.0" in text
    assert shlex.split(text)  # every quote is closed
