"""The training loop, on the devices and ranks that Accelerate provides, and its log of metrics."""

import contextlib
import itertools
import json
import logging
import math
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vpvae_hf import distributed
from vpvae_hf.files import write_text
from vpvae_hf.losses import Loss, discriminator_loss, feature_matching_loss, generator_loss
from vpvae_hf.modalities.config import AdversarialConfig, LoopConfig, RunConfig
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.progress import progress_bar
from vpvae_hf.tensors import DeferredChecks, deferred_checks

from .checkpoints import load_checkpoint, save_checkpoint
from .hardware import find_hardware, fuses_adamw, mixed_precision
from .trackers import installed_trackers

_log = logging.getLogger(__name__)

# Names of the method that saves memory, in transformers, older transformers, and diffusers.
_CHECKPOINTING = ("activation_checkpointing_enable", "gradient_checkpointing_enable", "enable_gradient_checkpointing")


class Trainer:
    """Trains a tokenizer with AdamW, eq. (10), through its `forward`; makes checkpoints, validates and logs.

    Training changes the latents, so `model.drop_fit()` is called if there is a step to train and the quantizer is not
    frozen: then "vp" has no codes until it is fitted again, "vq" and "simvq" use the learned codebook, and "fsp" and
    "fsq" use even levels.

    Args:
        batches: endless batches of this rank, as the model takes them. If they have `state_dict` and `load_state_dict`,
            their position is part of a checkpoint; if they have `skipped`, it is logged.
        losses, loss_weights: reconstruction losses and their weights, by name.
        adversarial: settings of a discriminator, and the discriminator; None to train without one.
        accelerator: made with the settings' precision and accumulation.
        workers: processes per rank that read `batches`; the position in a checkpoint is valid only for the same number.
        output: folder for checkpoints and metrics.jsonl; None to write neither.
        validate: called on every rank with the step, while the model is in train mode; returns metrics by name.
        headline_metrics: metrics of `validate`; the progress bar shows those that are measured.
        frozen_modules: modules that stay in eval mode while the others train.

    Attributes:
        log: `MetricsLog` of all rows.
        step: optimizer steps so far, including those that fp16's scaler skipped, which change neither the learning rate
            nor the moving average.
        examples: how many items all ranks together were trained on.
    """

    def __init__(
        self,
        model: Tokenizer,
        batches: Iterable[Tensor],
        config: LoopConfig,
        *,
        losses: Mapping[str, Loss],
        loss_weights: Mapping[str, float],
        adversarial: tuple[AdversarialConfig, nn.Module] | None = None,
        accelerator: Accelerator | None = None,
        workers: int = 0,
        output: Path | None = None,
        validate: Callable[[int], dict[str, float]] | None = None,
        headline_metrics: Sequence[str] = ("psnr",),
        frozen_modules: Sequence[nn.Module] = (),
    ):
        self.accelerator = accelerator = accelerator or Accelerator()
        self.config, self.model = config, model
        self.step = self.examples = 0
        self._batches, self._output, self._validate = batches, output, validate
        self._losses, self._loss_weights, self._frozen_modules = losses, loss_weights, frozen_modules
        # How many processes read the data set on all ranks.
        self._readers = accelerator.num_processes * max(1, workers)
        self._shown = {"loss": "loss/total"} | {name: f"validation/{name}" for name in headline_metrics}
        self._shown["cvu"] = "validation/code_usage"
        if config.gradient_checkpointing:
            checkpoint_activations(model)
        # If the codebooks are frozen, each step uses the next one in turn, so that the decoder learns to read all.
        self._codebooks_in_turn = model.quantize.codebook_sizes if model.quantize in frozen_modules else ()
        if config.max_train_steps and model.quantize not in frozen_modules:
            model.drop_fit()
        betas, decay = (config.adam_beta1, config.adam_beta2), config.adam_weight_decay
        trained = [weights for weights in model.parameters() if weights.requires_grad]
        how = {"betas": betas, "fused": fuses_adamw(accelerator) or None}
        optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=decay, **how)
        # Not prepared, since Accelerate would step the schedule once per rank. Made before `prepare`, which replaces
        # the optimizer's `step` in fp16.
        lengths = {"num_warmup_steps": config.lr_warmup_steps, "num_training_steps": config.max_train_steps}
        self._schedule = get_scheduler(config.lr_scheduler, optimizer, **lengths)
        self._wrapped, self._optimizer = accelerator.prepare(model, optimizer)
        if isinstance(self._wrapped, DistributedDataParallel):
            # No step changes a buffer on one rank alone. Given as an argument of the wrapper, this would also leave out
            # the broadcast that makes the ranks start equal.
            self._wrapped.broadcast_buffers = False
        self._adversary = None if adversarial is None else _Adversary(*adversarial, how, accelerator)
        self._ema = None
        if config.use_ema:
            on_cuda = accelerator.device.type == "cuda"
            self._ema = EMAModel(model.parameters(), decay=config.ema_decay, foreach=on_cuda)
        for part in (self, self._schedule, self._ema, model.quantize.training_state):
            if part is not None:
                accelerator.register_for_checkpointing(part)
        writes = output is not None and accelerator.is_main_process
        self.log = MetricsLog(output / "metrics.jsonl" if writes else None)

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step, "examples": self.examples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step, self.examples = state["step"], state["examples"]

    def resume(self, folder: Path) -> None:
        """Resume from a checkpoint.

        The run continues exactly if it has as many ranks and loader workers as the run that made the checkpoint.
        """
        quantizer = self.model.quantize
        wanted = quantizer.codebook_size
        position = load_checkpoint(self.accelerator, folder)
        if quantizer.codebook_size != wanted:
            raise ValueError(
                f"{folder} cannot be resumed with these settings: its codebook_size is {quantizer.codebook_size}, not "
                f"{wanted}; resume with those that the run was started with"
            )
        if self._ema is not None:
            self._ema.to(self.accelerator.device)  # checkpoints are read into main memory
        if position is None or position["readers"] != self._readers:
            _log.warning(
                "%s was made with other numbers of ranks or loader workers (ranks times workers were %s, now %d): "
                "weights and all other states are restored, but the data set starts again from its beginning; use the "
                "same ranks and --data.workers to continue it",
                folder,
                "unknown" if position is None else position["readers"],
                self._readers,
            )
        elif position["state"] is not None:
            self._batches.load_state_dict(position["state"])
        if self._output is not None and self.accelerator.is_main_process:
            self.log.resume(self.step)

    def run(self) -> "MetricsLog":
        """Train up to the last step. The model is left in train mode, with the averaged weights if there is an EMA.

        Raises:
            ValueError: data cannot be read, or inputs or features are NaN or infinite. Such values are found when the
                next row of metrics is logged. The message names the first step that had them; no checkpoint is made
                after that step.
            RuntimeError: another rank had such values.
        """
        config, last = self.config, self.config.max_train_steps
        self._train_mode()
        interval, where = _Interval(), {"desc": "Training", "unit": "step", "initial": self.step}
        with progress_bar(total=last, **where, shown=self.step < last) as bar:
            batches = iter(self._batches) if self.step < last else iter(())
            for batch in batches:
                self.model.quantize.set_progress(self.step / last)
                interval.add(self.step + 1, *self._forward_backward(batch.to(self.accelerator.device)), len(batch))
                if not self.accelerator.sync_gradients:
                    continue
                self.step += 1
                if self._optimizer.step_was_skipped:  # float16 overflowed, and its scale was lowered
                    interval.excuse(self.step)
                bar.update()
                ends = self.step == last
                saves = self._output is not None and (ends or self.step % config.checkpointing_steps == 0)
                validates = self._validate is not None and (ends or self.step % config.validation_steps == 0)
                # A row is also logged before a checkpoint, so that a resumed run averages over the same steps, and
                # before a validation, whose time does not count as training.
                if ends or saves or validates or self.step % config.logging_steps == 0:
                    self._log_interval(interval)
                    interval = _Interval()
                if validates:
                    metrics = self._validate(self.step)
                    self._train_mode()
                    self._append({f"validation/{name}": value for name, value in metrics.items()})
                    interval = _Interval()
                latest = {name: self.log.last_mean(column, 1) for name, column in self._shown.items()}
                shown = {name: f"{value:.4g}" for name, value in latest.items() if math.isfinite(value)}
                bar.set_postfix(shown, refresh=False)
                if saves:
                    state = self._batches.state_dict() if hasattr(self._batches, "state_dict") else None
                    position = {"readers": self._readers, "state": state}
                    save_checkpoint(self.accelerator, self._output, self.step, position, config.checkpoints_total_limit)
                if ends:
                    break
        if self._ema is not None:
            self._ema.copy_to(self.model.parameters())
        return self.log

    def _train_mode(self) -> None:
        self.model.train()
        for module in self._frozen_modules:
            module.eval()

    def _forward_backward(self, original: Tensor) -> tuple[dict[str, Tensor], DeferredChecks]:
        """One forward and backward pass, and an optimizer step if enough gradients were accumulated.

        Returns the metrics, and the checks of the forward pass.
        """
        accelerator, adversary = self.accelerator, self._adversary
        prepared = [self._wrapped] if adversary is None else [self._wrapped, adversary.discriminator]
        if adversary is not None and self.step < adversary.config.start_step:
            adversary = None
        with accelerator.accumulate(*prepared):
            with deferred_checks() as checks, self._next_codebook():
                output = self._wrapped(original)
            metrics = {f"loss/{name}": loss(output.sample, original) for name, loss in self._losses.items()}
            total = output.loss + sum(self._loss_weights[name] * metrics[f"loss/{name}"] for name in self._losses)
            metrics["loss/quantizer"] = output.loss
            if adversary is not None:
                added, losses = adversary.generator_losses(original, output.sample)
                metrics |= losses
                total = total + added
            metrics["loss/total"] = total
            accelerator.backward(total)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
                metrics["gradient_norm"] = torch.as_tensor(norm)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            if adversary is not None:
                metrics["loss/discriminator"] = adversary.train_step(original, output.sample)
        if accelerator.sync_gradients and not self._optimizer.step_was_skipped:
            self._schedule.step()
            if self._ema is not None:
                self._ema.step(self.model.parameters())
        return {name: value.detach().float() for name, value in (metrics | output.metrics).items()}, checks

    @contextlib.contextmanager
    def _next_codebook(self) -> Iterator[None]:
        """A context in which this step's codebook is selected, if several are used in turn."""
        quantizer, sizes = self.model.quantize, self._codebooks_in_turn
        if len(sizes) < 2:
            yield
            return
        selected = quantizer.codebook_size
        quantizer.select_codebook(sizes[self.step % len(sizes)])
        try:
            yield
        finally:
            quantizer.select_codebook(selected)

    def _log_interval(self, interval: "_Interval") -> None:
        """Log a row of means over the interval and the ranks; a ValueError if a check of a step failed."""
        means = interval.means()
        stacked = distributed.sum_over_ranks(torch.stack(list(means.values()))) / distributed.world_size()
        numbers = torch.cat([stacked, *interval.bounds]).tolist()  # fetched at once
        with distributed.failing_together():
            interval.raise_failed(numbers[len(means) :])
        examples = interval.examples * self.accelerator.num_processes
        self.examples += examples
        row = dict(zip(means, numbers, strict=False))
        row |= {"learning_rate": self._schedule.get_last_lr()[0], "examples": self.examples}
        row["examples_per_second"] = examples / (time.monotonic() - interval.began)
        if hasattr(self._batches, "skipped"):
            row["examples_skipped"] = int(distributed.sum_over_ranks(torch.tensor(self._batches.skipped, device="cpu")))
        self._append(row)

    def _append(self, metrics: dict[str, float]) -> None:
        self.log.append(self.step, metrics)
        self.accelerator.log(metrics, step=self.step)


def accelerator_for(config: RunConfig) -> Accelerator:
    """An Accelerator with a run's settings."""
    hardware = find_hardware()
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if hardware.device == "cuda" and "LOCAL_RANK" in os.environ:
        # Tensors in main memory, such as counts, are exchanged without the GPU.
        handlers.append(InitProcessGroupKwargs(backend="cpu:gloo,cuda:nccl"))
    return Accelerator(
        # Without this, Accelerate would treat each of several ranks without a GPU as a job of its own.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=mixed_precision(config, hardware),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=installed_trackers(config) or None,
        project_dir=config.output_dir,
        kwargs_handlers=handlers,
    )


def checkpoint_activations(model: nn.Module) -> None:
    """Have a model of diffusers or transformers save memory by computing its activations twice."""
    next(getattr(model, name) for name in _CHECKPOINTING if hasattr(model, name))()


class MetricsLog:
    """Rows of named metrics, each with its "step"; in the file, if there is one, each row is a line of JSON.

    In memory a value takes 16 bytes, so that even a long run can be plotted at its end.
    """

    def __init__(self, file: str | os.PathLike | None = None):
        self._file = None if file is None else Path(file)
        self._steps = array("q")
        self._columns: dict[str, tuple[array, array]] = {}  # numbers of the rows that have the metric, and its values

    @property
    def rows(self) -> list[dict[str, float]]:
        """All rows, in order."""
        rows: list[dict[str, float]] = [{"step": step} for step in self._steps]
        for name, (numbers, values) in self._columns.items():
            for number, value in zip(numbers, values, strict=True):
                rows[number][name] = value
        return rows

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row; NaN and infinite values, which JSON cannot represent, become null in the file."""
        self._add(step, metrics)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(_json_row({"step": step, **metrics}))

    def resume(self, step: int) -> None:
        """Read back the file's rows up to a step and drop later ones, which will be measured again."""
        self._steps, self._columns, kept = array("q"), {}, []
        with self._file.open(encoding="utf-8") if self._file.exists() else contextlib.nullcontext(()) as lines:
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):  # a killed run may leave its last line unfinished
                    row = json.loads(line)
                    if row["step"] <= step:
                        kept.append(_json_row(row))
                        self._add(row.pop("step"), {name: math.nan if v is None else v for name, v in row.items()})
        write_text(self._file, "".join(kept))

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of the rows that have a metric."""
        numbers, values = self._columns.get(name, ((), ()))
        return [self._steps[number] for number in numbers], list(values)

    def last_mean(self, name: str, rows: int) -> float:
        """Mean of a metric over the last rows that have it; NaN if there are none. Its cost depends on `rows` alone."""
        values = self._columns[name][1][-rows:] if name in self._columns else ()
        return sum(values) / len(values) if values else math.nan

    def _add(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            numbers, values = self._columns.setdefault(name, (array("q"), array("d")))
            numbers.append(len(self._steps))
            values.append(value)
        self._steps.append(step)


def _json_row(row: Mapping[str, float | None]) -> str:
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite) + "\n"


class _Interval:
    """Metrics of the steps between two rows; summed on their device, since reading a value waits for the GPU."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._checks: list[tuple[int, DeferredChecks]] = []
        self.began = time.monotonic()
        self.examples = 0

    def add(self, step: int, metrics: dict[str, Tensor], checks: DeferredChecks, examples: int) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        self.examples += examples
        self._checks.append((step, checks))

    def excuse(self, step: int) -> None:
        """Leave out the checks of a step that did not change the weights."""
        self._checks = [each for each in self._checks if each[0] != step]

    @property
    def bounds(self) -> list[Tensor]:
        return [bounds for _, checks in self._checks for bounds in checks.bounds]

    def raise_failed(self, bounds: list[float]) -> None:
        """Raise the error of the first step with a failed check, given `self.bounds` as numbers."""
        pairs = zip(*[iter(bounds)] * 2, strict=True)
        for step, checks in self._checks:
            checks.raise_failed(f"step {step}: ", list(itertools.islice(pairs, len(checks.bounds))))

    def means(self) -> dict[str, Tensor]:
        return {name: value / self._counts[name] for name, value in self._sums.items()}


class _Adversary:
    """A discriminator that is trained together with the tokenizer. It and its optimizer are parts of checkpoints."""

    def __init__(
        self, config: AdversarialConfig, discriminator: nn.Module, how: Mapping[str, Any], accelerator: Accelerator
    ):
        self.config, self._accelerator = config, accelerator
        optimizer = torch.optim.AdamW(discriminator.parameters(), lr=config.learning_rate, **how)
        self.discriminator, self._optimizer = accelerator.prepare(discriminator, optimizer)

    def generator_losses(self, original: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss that the discriminator adds to the tokenizer's, and its unweighted parts by metric name.

        Its gradient reaches the reconstructions, but not the discriminator's weights. Both arguments are [B, ...].
        """
        # Without the wrapper for several ranks, which would exchange gradients that are not used.
        network = self._accelerator.unwrap_model(self.discriminator).requires_grad_(False)
        with self._accelerator.autocast():
            logits, features = network.judge(reconstruction)
            parts = {"adversarial": generator_loss(logits.float())}
            total = self.config.weight * parts["adversarial"]
            if self.config.feature_matching:
                with torch.no_grad():
                    real = network.judge(original)[1]
                parts["feature_matching"] = feature_matching_loss(real, features)
                total = total + self.config.weight * self.config.feature_matching * parts["feature_matching"]
        network.requires_grad_(True)
        return total, {f"loss/{name}": value for name, value in parts.items()}

    def train_step(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Train the discriminator on originals and detached reconstructions, each [B, ...]; returns its loss."""
        # In one pass: a wrapper of several ranks allows one forward pass per backward pass.
        logits = self.discriminator(torch.cat([original, reconstruction.detach().to(original.dtype)])).float()
        loss = discriminator_loss(*logits.chunk(2))
        self._accelerator.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()
