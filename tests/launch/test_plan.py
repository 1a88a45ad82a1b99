import json
import re

import pytest

from cm3jax.errors import UserError
from launch.plan import run


def test_prints_figures_and_the_table(capsys):
    run(["cm3leon_350m", "--mesh.data", "2", "--mesh.fsdp", "8", "--mesh.tensor", "2"])
    out = capsys.readouterr().out
    assert "params/embedding" in out
    assert "mesh {'data': 2, 'fsdp': 8, 'tensor': 2}" in out
    assert "A100 hours" in out


def test_prints_json_with_the_hand_worked_work(capsys):
    run(["cm3leon_350m", "--json", "--mesh.data", "32"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["devices"] == 32
    assert answer["tokens_per_step"] == 2048 * 4096
    # Per layer 12 D^2 weights, the head V D, and 12 N D L for attention, its causal half included.
    per_token = 6 * (24 * 12 * 1024**2 + 65_536 * 1024) + 12 * 24 * 1024 * 4096
    assert answer["flops_per_step"] == per_token * answer["tokens_per_step"]
    assert answer["flops"] == answer["flops_per_step"] * 166_900
    assert answer["a100_hours"] == pytest.approx(answer["flops"] / 312e12 / 3600)
    sizes = answer["bytes_per_device"]
    assert sizes["total"] == sum(size for name, size in sizes.items() if name != "total")


def test_compiles_for_the_devices_that_are_here(capsys):
    small = ("--model.layers", "1", "--model.context", "64", "--data.batch", "8")
    run(["quickstart", "--json", "--compile", "--mesh.data", "1", *small])
    answer = json.loads(capsys.readouterr().out)
    compiled = answer["compiled_bytes_per_device"]
    sizes = answer["bytes_per_device"]
    exact = sizes["parameters"] + sizes["moments"] + sizes["batch"]
    assert compiled["arguments"] == pytest.approx(exact, abs=200)
    assert compiled["temporaries"] > sizes["gradients"]


def test_a_batch_that_the_mesh_cannot_share_is_refused():
    with pytest.raises(UserError, match="cannot be cut into 3 equal shares"):
        run(["cm3leon_350m", "--mesh.data", "3"])


def test_a_command_s_own_options_come_with_the_experiment_s():
    with pytest.raises(UserError, match=r"no option --jsno \(did you mean --json\?\)"):
        run(["quickstart", "--jsno"])
    with pytest.raises(UserError, match=r"--mesh\.fsdp takes int, not 'many'"):
        run(["quickstart", "--json", "--mesh.fsdp", "many"])


def test_says_which_devices_have_the_memory(capsys):
    rows = ("cm3leon_350m", "--model.context", "128", "--data.batch", "65536")
    run([*rows, "--mesh.fsdp", "256"])
    assert "fits the memory of TPU v5 lite, TPU v4, TPU v6 lite, A100" in capsys.readouterr().out
    run([*rows, "--mesh.fsdp", "1"])
    said = capsys.readouterr().out
    size = int(re.search(r"does not fit: .*with --mesh\.fsdp (\d+) a step fits", said)[1])
    totals = []
    for fsdp in (size // 2, size):
        run([*rows, "--json", "--mesh.fsdp", str(fsdp)])
        totals.append(json.loads(capsys.readouterr().out)["bytes_per_device"]["total"])
    assert totals[1] <= 80e9 < totals[0]


def test_plans_the_encoder_decoder(capsys):
    run(["parti", "--json", "--mesh.fsdp", "512"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["parameters"] == 4096 * (4096 * (16 * 12 + 64 * 16) + 65536 + 128 + 1024)
    sizes = answer["bytes_per_device"]
    assert sizes["parameters"] == sizes["gradients"] == 4 * answer["parameters"] // 512
    assert sizes["batch"] == 8192 // 512 * (128 + 2 * 1024) * 4
    # At least the input of every layer, in bfloat16.
    assert sizes["temporaries"] > 8192 // 512 * 4096 * 2 * (64 * 1024 + 16 * 128)
    assert answer["tokens_per_step"] == 8192 * (128 + 1024)
