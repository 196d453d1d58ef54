"""The example of Ray Data, and the recipe for a Ray cluster, on two workers of this machine."""

import contextlib
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

import image_shards
import pytest
from audio_files import write_files

from vpvae_hf import BatchTokenizer
from vpvae_hf.cli.main import main
from vpvae_hf.data import CodeFolder

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "scale" / "tokenize_with_ray.py"
EXAMPLE = ROOT / "examples" / "tokenize_with_ray.py"
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray"),  # it warns that so few blocks leave actors idle
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its log files to the garbage collector
]


@pytest.fixture(scope="module")
def ray():
    """A small cluster that leaves nothing behind. Two of its cores are for actors, the others for reading the data."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=4, num_gpus=0, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_the_example_writes_the_codes_of_each_picture(images, ray, tmp_path, monkeypatch, capsys):
    tokenizer, codes = images[0], tmp_path / "codes"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), tokenizer, "--size", "32", "--output", str(codes)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "12 pictures as 16 x 16 codes each" in capsys.readouterr().out
    rows = ray.data.read_parquet(str(codes)).take_all()
    assert len({row["path"] for row in rows}) == 12
    files = {"bytes": [Path(row["path"]).read_bytes() for row in rows]}
    expected = BatchTokenizer(tokenizer, "bytes", size=32, shortest_side=32)(files)["codes"]
    assert all((row["codes"] == each).all() for row, each in zip(rows, expected, strict=True))


def run_recipe(*arguments) -> int:
    before, sys.argv = sys.argv, [str(RECIPE), *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(RECIPE), run_name="__main__")
    finally:
        sys.argv = before
    return stopped.value.code


def workers_of_this_process() -> list[int]:
    """Ids of the recipe's workers that the Ray of this process started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_worker = process.joinpath("cmdline").read_bytes().startswith(b"ray::Worker")
            if is_worker and parent(parent(int(process.name))) == os.getpid():
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def kill_a_worker_after_another_file(codes: Path, killed: list[int]) -> None:
    while not killed:
        if len(list(codes.glob("data/*.parquet"))) > 1 and (workers := workers_of_this_process()):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
        time.sleep(0.01)


def content(codes: Path) -> dict[str, bytes]:
    files = [*codes.glob("*"), *codes.glob("data/*")]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def test_the_recipe_writes_what_vpvae_tokenize_writes_though_a_worker_is_killed(images, ray, tmp_path, capsys):
    """It continues a run that has finished one file."""
    data = image_shards.write_counted(tmp_path / "data", *[120] * 6)
    named = [images[0], "--dataset", data, "--batch-size", "4", "--output"]
    assert main(["tokenize", *named, str(tmp_path / "alone")]) == 0
    alone = content(tmp_path / "alone")
    codes, killed, finished = tmp_path / "codes", [], "train-00003-of-00006.parquet"
    write_files(codes, {"tokenizer.json": alone["tokenizer.json"], f"data/{finished}": alone[finished]})
    os.utime(codes / "data" / finished, (1000, 1000))
    killer = threading.Thread(target=kill_a_worker_after_another_file, args=(codes, killed))
    killer.start()
    try:
        assert run_recipe(*named, codes, "--workers", 2) == 0
    finally:
        killed += [0]  # ends the thread if there was nothing to kill
        killer.join()
    assert killed[0]
    assert f"720 images in 6 files in {codes}; 0 unreadable" in capsys.readouterr().out
    assert content(codes) == alone
    assert (codes / "data" / finished).stat().st_mtime == 1000
    assert len(CodeFolder(codes).rows) == 720


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "5"], "the cluster has 4 CPU cores and 0 GPUs, enough for 4 workers of one core and 0 GPUs"),
        (["--gpus-per-worker", "1"], "enough for 0 workers of one core and 1 GPUs; give another --gpus-per-worker"),
        (["--dataset", "/not/there"], "there is no file or folder /not/there"),
    ],
)
def test_what_cannot_run(images, ray, tmp_path, capsys, arguments, message):
    tokenizer, data, _ = images
    assert run_recipe(tokenizer, "--dataset", data, "--output", tmp_path / "codes", *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "codes").exists()
