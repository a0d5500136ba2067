"""Checkpoints of a training that may be killed at any moment: written under another name, then renamed."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

KEPT = 2
WEIGHTS, BEST, OPTIMIZER, STATE = "weights.safetensors", "best.safetensors", "optimizer.pt", "state.json"


@dataclass
class Progress:
    """The state of a training. Losses are means per item; `bad_validations` counts those without improvement in a row."""

    step: int = 0
    base_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    mark: float | None = None
    bad_validations: int = 0
    stopped: bool = False
    losses: list[tuple[int, float]] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)


def save(
    folder: Path, progress: Progress, weights: dict[str, Any], best: dict[str, Any], optimizer: dict[str, Any]
) -> Path:
    """Write one checkpoint and drop all but the newest. A reader sees it complete or not at all."""
    target = folder / f"step-{progress.step:08d}"
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(weights, partial / WEIGHTS)
    save_file(best, partial / BEST)
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    torch.save({"optimizer": optimizer, "random": random}, partial / OPTIMIZER)
    (partial / STATE).write_text(json.dumps(asdict(progress)))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)
    return target


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    checkpoints = sorted(folder.glob("step-*"))
    return checkpoints[-1] if checkpoints else None


def load(checkpoint: Path) -> tuple[Progress, dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
    """Progress, weights, best weights and optimizer state of a checkpoint; the random state is restored."""
    progress = Progress(**json.loads((checkpoint / STATE).read_text()))
    progress.losses = [(int(step), loss) for step, loss in progress.losses]
    progress.validations = [(int(step), loss) for step, loss in progress.validations]
    saved = torch.load(checkpoint / OPTIMIZER, weights_only=True)
    torch.set_rng_state(saved["random"]["cpu"])
    if "cuda" in saved["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["random"]["cuda"])
    return progress, load_file(checkpoint / WEIGHTS), load_file(checkpoint / BEST), saved["optimizer"]
