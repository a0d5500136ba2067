"""The training loop: steps, learning rate, validation, early stopping, checkpoints and resuming.

Not transformers' Trainer: a folder `datasets/` next to the code makes it believe that Hugging Face `datasets` is installed, and
it fails. Everything random derives from the seed and the step, so that a resumed training ends in the same weights.
"""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from training import checkpoints
from training.config import TrainingSection
from training.errors import is_out_of_memory, out_of_memory
from training.examples import Example
from training.items import ItemTrie
from training.objective import batch_loss, collate

Listener = Callable[[str, int, int, float], None]
"""Called with (`train_loss` or `val_loss`, step, all steps, value)."""


@dataclass(frozen=True)
class Task:
    """What to learn from. If `validation` is empty, there is no early stopping and the last weights are kept."""

    train: Sequence[Example]
    validation: Sequence[Example]
    trie: ItemTrie
    prior: np.ndarray
    pad: int


@dataclass(frozen=True)
class Outcome:
    """A training's result. Losses are negative log likelihoods per item in nats; `base_loss` is the validation before the first step."""

    steps: int
    planned_steps: int
    best_step: int
    base_loss: float | None
    best_loss: float | None
    losses: list[tuple[int, float]]
    validations: list[tuple[int, float]]
    resumed_from: int


def fit(
    model: Any,
    task: Task,
    settings: TrainingSection,
    listener: Listener,
    checkpoint_dir: Path | None = None,
    log_every: int = 10,
    precision: str = "fp32",
) -> Outcome:
    """Train the model's trainable weights in place, leaving the best validated ones in it.

    With a `checkpoint_dir` the training continues from the newest checkpoint there. Raises TrainingError if memory runs out.
    """
    try:
        return _Run(model, task, settings, listener, checkpoint_dir, log_every, precision).go()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(settings.batch_size) from error
        raise


def planned_steps(rows: int, settings: TrainingSection) -> int:
    """Optimizer steps of a whole training over `rows` rows."""
    return settings.epochs * math.ceil(rows / (settings.batch_size * settings.gradient_accumulation_steps))


def learning_rate_share(step: int, total: int, settings: TrainingSection) -> float:
    """Share of the highest learning rate in step `step` (0 is the first) of `total`."""
    warmup = math.ceil(settings.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    way = (step - warmup) / max(total - warmup, 1)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * way)), "linear": 1 - way, "constant": 1.0}[settings.lr_scheduler]


class _Run:
    def __init__(
        self,
        model: Any,
        task: Task,
        settings: TrainingSection,
        listener: Listener,
        checkpoint_dir: Path | None,
        log_every: int,
        precision: str,
    ) -> None:
        self.model, self.task, self.settings = model, task, settings
        self.listener, self.folder, self.log_every = listener, checkpoint_dir, log_every
        self.device = str(next(model.parameters()).device)
        self.precision = precision
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        self.ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        self.total = planned_steps(len(task.train), settings)
        self.optimizer = _optimizer(list(self.weights.values()), settings)
        self.scaler = torch.amp.GradScaler(enabled=precision == "fp16" and self.device.startswith("cuda"))
        self.progress = checkpoints.Progress()
        self.best: dict[str, torch.Tensor] = {}

    def go(self) -> Outcome:
        torch.manual_seed(self.settings.seed)
        resumed_from = self._resume()
        if self.task.validation and self.progress.base_loss is None:
            self.progress.base_loss = self._validate()
        while self.progress.step < self.total and not self.progress.stopped:
            self._step()
            last = self.progress.step == self.total
            if self.task.validation and (last or self.progress.step % self.settings.eval_steps == 0):
                self._validate()
            if self.folder is not None and not last and self.progress.step % self.settings.save_steps == 0:
                self._save()
        if self.best:
            self._load(self.best)
        # The end is a checkpoint too, so that a training killed before it was registered is not repeated.
        if self.folder is not None and self.progress.step > resumed_from:
            self._save()
        progress = self.progress
        return Outcome(
            steps=progress.step,
            planned_steps=self.total,
            best_step=progress.best_step,
            base_loss=progress.base_loss,
            best_loss=progress.best_loss,
            losses=progress.losses,
            validations=progress.validations,
            resumed_from=resumed_from,
        )

    def _step(self) -> None:
        step = self.progress.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * learning_rate_share(step, self.total, self.settings)
        batches = self._batches(step)
        items = sum(len(self.task.train[row].items) for rows, _ in batches for row in rows)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=False)
        total = torch.zeros((), device=self.device)
        for number, (rows, orders) in enumerate(batches):
            if number % self.ranks == self.rank:
                loss = self._loss([self.task.train[row] for row in rows], orders) / items
                self.scaler.scale(loss).backward()
                total += loss.detach()
        if self.ranks > 1:
            self._sum_over_ranks(total)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self.settings.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.progress.step = step + 1
        if self.progress.step in {1, self.total} or self.progress.step % self.log_every == 0:
            self.progress.losses.append((self.progress.step, float(total)))
            self._tell("train_loss", float(total))

    def _batches(self, step: int) -> list[tuple[list[int], list[list[int]]]]:
        """The step's forward passes: row numbers, and for each row the order in which its items are answered."""
        settings, rows = self.settings, len(self.task.train)
        a_step = settings.batch_size * settings.gradient_accumulation_steps
        steps_an_epoch = math.ceil(rows / a_step)
        epoch, place = divmod(step, steps_an_epoch)
        random = np.random.default_rng([settings.seed, epoch])
        chosen = random.permutation(rows)[place * a_step : (place + 1) * a_step]
        random = np.random.default_rng([settings.seed, epoch, place])
        orders = [random.permutation(len(self.task.train[row].items)).tolist() for row in chosen]
        starts = range(0, len(chosen), settings.batch_size)
        return [
            (chosen[at : at + settings.batch_size].tolist(), orders[at : at + settings.batch_size]) for at in starts
        ]

    def _loss(self, examples: Sequence[Example], orders: Sequence[Sequence[int]]) -> torch.Tensor:
        batch = collate(examples, orders, self.task.trie, self.task.prior, self.task.pad, self.device)
        with self._autocast():
            return batch_loss(self.model, batch)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32" or not self.device.startswith("cuda"):
            return nullcontext()
        autocast: AbstractContextManager[Any] = torch.autocast(
            "cuda", dtype=torch.bfloat16 if self.precision == "bf16" else torch.float16
        )
        return autocast

    def _validate(self) -> float:
        """Mean loss per item on the validation rows in their own order; keeps the best weights and counts patience."""
        self.model.eval()
        examples, size = self.task.validation, self.settings.batch_size * 2
        with torch.no_grad():
            sums = [
                self._loss(chunk, [range(len(example.items)) for example in chunk])
                for chunk in (examples[at : at + size] for at in range(0, len(examples), size))
            ]
        value = torch.stack(sums).double().sum() / sum(len(example.items) for example in examples)
        if self.ranks > 1:
            distributed.broadcast(value, 0)
        loss, progress = float(value), self.progress
        progress.validations.append((progress.step, loss))
        if progress.best_loss is None or loss < progress.best_loss:
            progress.best_loss, progress.best_step = loss, progress.step
            self.best = {name: weight.detach().clone() for name, weight in self.weights.items()}
        if progress.mark is None or loss < progress.mark - self.settings.early_stopping_threshold:
            progress.mark, progress.bad_validations = loss, 0
        else:
            progress.bad_validations += 1
            progress.stopped = progress.bad_validations >= self.settings.early_stopping_patience
        self._tell("val_loss", loss)
        return loss

    def _sum_over_ranks(self, total: torch.Tensor) -> None:
        for weight in self.weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            distributed.all_reduce(weight.grad)
        distributed.all_reduce(total)

    def _tell(self, name: str, value: float) -> None:
        if self.rank == 0:
            self.listener(name, self.progress.step, self.total, value)

    def _save(self) -> None:
        if self.rank == 0 and self.folder is not None:
            weights = {name: weight.detach().contiguous() for name, weight in self.weights.items()}
            checkpoints.save(self.folder, self.progress, weights, self.best or weights, self._optimizer_state())

    def _resume(self) -> int:
        checkpoint = checkpoints.newest(self.folder) if self.folder is not None else None
        if checkpoint is None:
            return 0
        self.progress, weights, best, optimizer = checkpoints.load(checkpoint)
        self._load(weights)
        self.optimizer.load_state_dict(optimizer["optimizer"])
        self.scaler.load_state_dict(optimizer["scaler"])
        if self.task.validation:
            self.best = best
        return self.progress.step

    def _optimizer_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(weights[name])


def _optimizer(weights: list[torch.nn.Parameter], settings: TrainingSection) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def start_ranks(cuda: bool) -> int:
    """Join the processes that torchrun started, and return this one's rank (0 where there is only one)."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0
    distributed.init_process_group("nccl" if cuda else "gloo")
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return int(distributed.get_rank())
