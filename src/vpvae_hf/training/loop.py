"""The training loop, on whatever devices and ranks Accelerate was given."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from vpvae_hf import distributed
from vpvae_hf.losses import Loss

from .adversary import Adversary
from .checkpoint import load_checkpoint, save_checkpoint
from .config import AdversarialConfig, LoopConfig
from .metrics_log import MetricsLog
from .stopwatch import Stopwatch

_log = logging.getLogger(__name__)

# The method that saves memory, as transformers, an older transformers, and diffusers name it.
_CHECKPOINTING = ("activation_checkpointing_enable", "gradient_checkpointing_enable", "enable_gradient_checkpointing")
# What the progress bar shows of the latest rows.
_SHOWN = {
    "loss": "loss/total",
    "psnr": "validation/psnr",
    "pesq": "validation/pesq",
    "cvu": "validation/code_usage",
    "error": "validation/denoising_error",
}


class Trainer:
    """Trains a model with AdamW; makes checkpoints, validates and logs.

    Args:
        model: a tokenizer with its quantizer as `quantize`, trained through its `forward`, eq. (10); or anything whose
            `forward` gives a loss and metrics, where there are no other losses.
        batches: endless batches of this rank, as the model takes them. With `state_dict` and `load_state_dict`, its
            position is part of a checkpoint; "skipped" is reported.
        config: settings; those of data, losses and output folder are the caller's affair.
        losses: by name, weighted as the config says.
        adversarial: settings of a discriminator of images; None for none.
        accelerator: made with the settings' precision and accumulation.
        output: folder for checkpoints and metrics.jsonl; None to write neither.
        validate: called with a step on every rank, model in train mode; gives figures by name.
        kept_in_eval: parts of the model that are in eval mode while the others train.

    Attributes:
        model: the model, without wrappers.
        log: `MetricsLog` of all rows.
        step: optimizer steps that were taken.
        examples: that were trained on, by all ranks.
    """

    def __init__(
        self,
        model,
        batches: Iterable[Tensor],
        config: LoopConfig,
        *,
        losses: Mapping[str, Loss],
        adversarial: AdversarialConfig | None = None,
        accelerator: Accelerator | None = None,
        output: Path | None = None,
        validate: Callable[[int], dict[str, float]] | None = None,
        kept_in_eval: Sequence[nn.Module] = (),
    ):
        self.accelerator = accelerator = accelerator or Accelerator()
        self.config, self.model = config, model
        self.step = self.examples = 0
        self._batches, self._output, self._validate = batches, output, validate
        self._losses, self._adversarial, self._kept_in_eval = losses, adversarial, kept_in_eval
        if config.gradient_checkpointing:
            checkpoint_activations(model)
        betas = (config.adam_beta1, config.adam_beta2)
        trained = [weights for weights in model.parameters() if weights.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.learning_rate, betas=betas, weight_decay=config.adam_weight_decay
        )
        self._wrapped, self._optimizer = accelerator.prepare(model, optimizer)
        # Not prepared: Accelerate would step it once for each rank.
        self._schedule = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self._adversary = None
        if adversarial is not None:
            self._adversary = Adversary(adversarial, model.config.out_channels, betas, accelerator)
        self._ema = EMAModel(model.parameters(), decay=config.ema_decay) if config.use_ema else None
        quantizer = getattr(model, "quantize", None)
        training_state = getattr(quantizer, "training_state", None)
        for part in (self, self._schedule, self._ema, training_state):
            if part is not None:
                accelerator.register_for_checkpointing(part)
        self._stopwatch = None if quantizer is None else Stopwatch(quantizer, accelerator.device)
        writes = output is not None and accelerator.is_main_process
        self.log = MetricsLog(output / "metrics.jsonl" if writes else None)

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step, "examples": self.examples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step, self.examples = state["step"], state["examples"]

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint; exactly, with the ranks and loader workers of the run that made it.

        Raises:
            ValueError: the checkpoint belongs to other settings.
        """
        position = load_checkpoint(self.accelerator, folder)
        if self._ema is not None:
            self._ema.to(self.accelerator.device)  # checkpoints are read into main memory
        readers = self._readers()
        if position is None or position["readers"] != readers:
            _log.warning(
                "%s was made with other ranks or loader workers than now (%d readers): weights and all other states "
                "go on, the data set starts again from its beginning",
                folder,
                readers,
            )
        elif position["state"] is not None:
            self._batches.load_state_dict(position["state"])
        if self._output is not None and self.accelerator.is_main_process:
            self.log.resume(self.step)

    def run(self) -> MetricsLog:
        """Train up to the last step; leaves the model in train mode, with the averaged weights where there is an EMA.

        Raises:
            ValueError: NaN or infinite latents, or data that cannot be read.
        """
        config, last = self.config, self.config.max_train_steps
        self._train_mode()
        interval = _Interval()
        with tqdm(
            total=last, initial=self.step, desc="Training", unit="step", disable=not self.accelerator.is_main_process
        ) as bar:
            batches = iter(self._batches) if self.step < last else iter(())
            for batch in batches:
                interval.add(self._forward_backward(batch.to(self.accelerator.device)), len(batch))
                if not self.accelerator.sync_gradients:
                    continue
                self.step += 1
                bar.update()
                ends = self.step == last
                saves = self._output is not None and (ends or self.step % config.checkpointing_steps == 0)
                validates = self._validate is not None and (ends or self.step % config.validation_steps == 0)
                # Before a checkpoint too, so that a resumed run averages over the same steps, and before a validation,
                # whose time is none of training's.
                if ends or saves or validates or self.step % config.logging_steps == 0:
                    self._log_interval(interval)
                    interval = _Interval()
                if validates:
                    figures = self._validate(self.step)
                    self._train_mode()
                    self._append({f"validation/{name}": value for name, value in figures.items()})
                    interval = _Interval()
                bar.set_postfix(self._shown())
                if saves:
                    self._save()
                if ends:
                    break
        if self._ema is not None:
            self._ema.copy_to(self.model.parameters())
        return self.log

    def _train_mode(self) -> None:
        self.model.train()
        for part in self._kept_in_eval:
            part.eval()

    def _forward_backward(self, original: Tensor) -> dict[str, Tensor]:
        """One forward and backward pass, and an optimizer step where enough were accumulated; detached figures."""
        config, accelerator = self.config, self.accelerator
        adversarial = self._adversarial
        adversary = self._adversary if adversarial is not None and self.step >= adversarial.start_step else None
        prepared = [self._wrapped] if self._adversary is None else [self._wrapped, self._adversary.discriminator]
        with accelerator.accumulate(*prepared):
            output = self._wrapped(original)
            figures = {f"loss/{name}": loss(output.sample, original) for name, loss in self._losses.items()}
            total = output.loss + sum(config.loss_weights[name] * figures[f"loss/{name}"] for name in self._losses)
            if self._stopwatch is not None:
                figures["loss/quantizer"] = output.loss
            if adversary is not None:
                figures["loss/adversarial"] = adversary.judge(output.sample)
                total = total + adversarial.weight * figures["loss/adversarial"]
            figures["loss/total"] = total
            accelerator.backward(total)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
                figures["gradient_norm"] = torch.as_tensor(norm)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            if adversary is not None:
                figures["loss/discriminator"] = adversary.learn(original, output.sample)
        if accelerator.sync_gradients:
            self._schedule.step()
            if self._ema is not None:
                self._ema.step(self.model.parameters())
        return {name: value.detach().float() for name, value in (figures | output.metrics).items()}

    def _log_interval(self, interval: "_Interval") -> None:
        """A row of means over the interval and the ranks."""
        means = interval.means()
        stacked = torch.stack(list(means.values()))
        stacked = distributed.sum_over_ranks(stacked) / distributed.world_size()
        examples = interval.examples * self.accelerator.num_processes
        self.examples += examples
        row = dict(zip(means, stacked.tolist(), strict=True))
        row["learning_rate"] = self._schedule.get_last_lr()[0]
        row["examples"] = self.examples
        seconds = interval.seconds()
        row["examples_per_second"] = examples / seconds
        if self._stopwatch is not None:
            # Of the first rank, in the forward pass.
            row["quantizer/share_of_time"] = self._stopwatch.seconds() / seconds
        if hasattr(self._batches, "skipped"):
            row["examples_skipped"] = int(distributed.sum_over_ranks(torch.tensor(self._batches.skipped)))
        self._append(row)

    def _append(self, figures: dict[str, float]) -> None:
        self.log.append(self.step, figures)
        self.accelerator.log(figures, step=self.step)

    def _shown(self) -> dict[str, str]:
        shown = {name: self.log.last_mean(column, 1) for name, column in _SHOWN.items()}
        return {name: f"{value:.4g}" for name, value in shown.items() if math.isfinite(value)}

    def _readers(self) -> int:
        """How many processes read the data set on all ranks."""
        return self.accelerator.num_processes * max(1, self.config.data.workers)

    def _save(self) -> None:
        state = self._batches.state_dict() if hasattr(self._batches, "state_dict") else None
        position = {"readers": self._readers(), "state": state}
        save_checkpoint(self.accelerator, self._output, self.step, position, self.config.checkpoints_total_limit)


def checkpoint_activations(model) -> None:
    """Have a model of diffusers or transformers save memory by computing its activations twice."""
    next(getattr(model, name) for name in _CHECKPOINTING if hasattr(model, name))()


class _Interval:
    """Figures of the steps between two rows; summed on their device, since reading one waits for it."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._began = time.monotonic()
        self.examples = 0

    def add(self, figures: dict[str, Tensor], examples: int) -> None:
        for name, value in figures.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        self.examples += examples

    def means(self) -> dict[str, Tensor]:
        return {name: value / self._counts[name] for name, value in self._sums.items()}

    def seconds(self) -> float:
        return time.monotonic() - self._began
