"""What a run uses of a GPU that it pretends to have, and what it leaves as it was."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from image_runs import ARCHITECTURE
from torch import nn

from tiny import tiny_vae
from vpvae_hf.losses import build_losses, image_losses
from vpvae_hf.modalities.config import LoopConfig, TrainingConfig
from vpvae_hf.training import hardware, trainer
from vpvae_hf.training.hardware import Hardware, compiles, describe, find_hardware, mixed_precision, tuned, untuned
from vpvae_hf.training.trainer import Trainer, accelerator_for

H100, P100 = Hardware("cuda", bf16=True, triton=True), Hardware("cuda")
CPU, MAC = Hardware("cpu"), Hardware("mps")


@pytest.fixture
def no_accelerator(monkeypatch):
    """As in a process that has made no Accelerator yet."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})


@pytest.fixture
def cuda(monkeypatch):
    """A GPU whose answers are those of an H100."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: name == "triton")


@pytest.mark.parametrize(
    ("setting", "where", "configured", "asked"),
    [
        (None, H100, None, "bf16"),
        (None, H100, "no", "bf16"),
        (None, H100, "FP16", None),
        (None, H100, "fp8", None),
        ("no", H100, "bf16", "no"),
        ("fp16", H100, "no", "fp16"),
        (None, P100, "no", None),
        (None, CPU, "no", None),
        (None, MAC, None, None),
        ("bf16", CPU, None, "bf16"),
    ],
)
def test_precision(setting, where, configured, asked, no_accelerator):
    environment = {} if configured is None else {"ACCELERATE_MIXED_PRECISION": configured}
    assert mixed_precision(LoopConfig(mixed_precision=setting), where, environment) == asked


def test_an_accelerator_that_is_there_keeps_its_precision():
    Accelerator()
    assert mixed_precision(LoopConfig(), H100, {}) is None


@pytest.mark.parametrize(
    ("setting", "where", "compiled"),
    [(None, H100, True), (None, P100, False), (None, CPU, False), (False, H100, False), (True, CPU, True)],
)
def test_compiling(setting, where, compiled):
    assert compiles(TrainingConfig(torch_compile=setting), where) == compiled


def test_what_is_found(monkeypatch):
    assert find_hardware() == CPU
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert find_hardware() == MAC


def test_a_gpu_is_found(cuda, monkeypatch):
    assert find_hardware() == H100
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    assert find_hardware() == Hardware("cuda", bf16=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert find_hardware() == CPU


@pytest.mark.parametrize(
    ("device", "precision", "compiled", "line"),
    [
        ("cpu", "no", False, "cpu: float32"),
        ("cpu", "bf16", True, "cpu: mixed precision bf16, encoder and decoder compiled"),
        (
            "cuda",
            "bf16",
            True,
            "cuda: mixed precision bf16, encoder and decoder compiled, fused AdamW, TF32, cuDNN's fastest convolutions",
        ),
        ("cuda", "fp16", False, "cuda: mixed precision fp16, TF32, cuDNN's fastest convolutions"),
    ],
)
def test_it_is_told_in_a_line(device, precision, compiled, line):
    accelerator = SimpleNamespace(device=torch.device(device), mixed_precision=precision)
    assert describe(accelerator, compiled=compiled) == line


@pytest.mark.parametrize("rank", [None, "0"])
def test_ranks_with_gpus_have_a_backend_for_each_kind_of_memory(rank, cuda, no_accelerator, monkeypatch):
    """Without ranks accelerate would take a backend for a job of several."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(trainer, "Accelerator", lambda **settings: settings)
    settings = accelerator_for(LoopConfig(report_to=[]))
    backends = [each.backend for each in settings["kwargs_handlers"] if isinstance(each, InitProcessGroupKwargs)]
    assert backends == ([] if rank is None else ["cpu:gloo,cuda:nccl"])
    assert (settings["mixed_precision"], settings["cpu"]) == ("bf16", False)


def flags() -> tuple[bool, str]:
    return torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()


def test_flags_hold_for_training_alone():
    before = flags()
    with tuned(torch.device("cuda")):
        assert flags() == (True, "high")
        with untuned():
            assert flags() == (False, "high")
        assert flags() == (True, "high")
    assert flags() == before
    with pytest.raises(ZeroDivisionError), tuned(torch.device("cuda")):
        _ = 1 / 0
    assert flags() == before
    with tuned(torch.device("cpu")):
        assert flags() == before


class Doubled(nn.Module):
    def forward(self, values):
        return 2 * values


def test_a_compiled_module_runs_as_it_is_outside_of_training():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    module = Doubled()
    module.compile(backend=count)
    with untuned():
        assert module(torch.ones(())) == 2
    assert not graphs
    assert module(torch.ones(())) == 2
    assert len(graphs) == 1


def test_a_compiler_that_fails_costs_the_run_nothing_but_speed():
    def fail(graph, _):
        raise OSError("no C compiler")

    torch.compiler.reset()
    module = Doubled()
    module.compile(backend=fail)
    with pytest.raises(Exception, match="no C compiler"), tuned(torch.device("cpu")):
        module(torch.ones(()))
    with tuned(torch.device("cpu"), survive_compiler=True):
        assert module(torch.ones(())) == 2


def test_a_step_that_the_scaler_skips_changes_no_rate_and_no_average():
    """The first loss times its scale is infinite; the scale is 1 from then on."""

    def trained(accelerator):
        torch.manual_seed(0)
        config = LoopConfig(max_train_steps=4, lr_warmup_steps=2, logging_steps=1, use_ema=True, report_to=[])
        model = tiny_vae({"kind": "fsp", "levels": [4, 4]}, **ARCHITECTURE)
        batches = [torch.rand(2, 3, 16, 16) for _ in range(4)]
        weights = {"l1": 1e6}
        losses = {"losses": build_losses(weights, image_losses()), "loss_weights": weights}
        run = Trainer(model, batches, config, **losses, accelerator=accelerator)
        return run, [row["learning_rate"] for row in run.run().rows]

    scaled = Accelerator()
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1e38, backoff_factor=1e-38)
    (run, rates), (usual_run, usual_rates) = trained(scaled), trained(Accelerator())
    assert rates == [0.0, *usual_rates[:-1]]
    assert (run.step, run._ema.optimization_step) == (4, 3)
    assert (usual_run.step, usual_run._ema.optimization_step) == (4, 4)
