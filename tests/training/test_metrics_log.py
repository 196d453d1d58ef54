import math
import time

from vpvae_hf.training.trainer import MetricsLog


def test_rows_come_back_and_later_ones_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file)
    log.resume(5)  # a file that was lost
    assert log.rows == []
    log.append(1, {"loss": 0.5, "error": math.nan})
    log.append(2, {"loss": 0.25})
    log.append(2, {"validation/psnr": 20.0})
    log.append(3, {"loss": 0.1})
    with file.open("a") as raw:
        raw.write('{"step": 4, "lo')  # a run that was killed while it wrote
    again = MetricsLog(file)
    again.resume(2)
    assert len(again.rows) == 3
    assert math.isnan(again.rows[0]["error"])
    assert again.rows[1:] == log.rows[1:3]
    again.append(3, {"loss": 0.2})
    assert again.column("loss") == ([1, 2, 3], [0.5, 0.25, 0.2])
    assert len(file.read_text().splitlines()) == 4


def test_means_of_the_last_rows():
    log = MetricsLog()
    for step in range(1, 5):
        log.append(step, {"loss": float(step)})
    assert log.last_mean("loss", 2) == 3.5
    assert math.isnan(log.last_mean("psnr", 2))


def test_the_last_value_costs_the_same_after_many_rows():
    """If all rows were searched, four metrics would take more than ten seconds."""
    log = MetricsLog()
    for step in range(20_000):
        log.append(step, {"loss": float(step)})
    began = time.process_time()
    for _ in range(2000):
        assert log.last_mean("loss", 1) == 19_999
        assert all(math.isnan(log.last_mean(name, 1)) for name in ("psnr", "stoi", "cvu"))
    assert time.process_time() - began < 1
