"""`metrics.jsonl` and what people see."""

import math

from cm3jax.metrics import MetricsLog, Progress, read


def test_each_step_stands_once_after_a_resume(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 0.5 * step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the run was killed here
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3]
    MetricsLog(tmp_path, 2).write({"step": 3, "loss": 9.0})
    assert read(tmp_path)[1:] == [{"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


def test_a_run_from_scratch_begins_a_new_log(tmp_path):
    MetricsLog(tmp_path, 0).write({"step": 1})
    MetricsLog(tmp_path, 0)
    assert read(tmp_path) == []


def test_numbers_that_are_not_finite_stay_json(tmp_path):
    MetricsLog(tmp_path, 0).write({"step": 1, "loss_text": math.nan})
    assert read(tmp_path) == [{"step": 1, "loss_text": None}]


def test_progress_without_a_terminal_is_plain_lines(capsys):
    values = {"loss": 1.25, "loss_text": math.nan, "tokens_per_second": 12345.6, "flops": 1.0}
    with Progress("tiny", 20) as progress:
        progress.say("[a line] as it is")
        progress.show(10, values, 90.0)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "[a line] as it is",
        "tiny 10/20  loss 1.2500  12,346 tokens/s  0:01:30 left",
    ]
