"""The training loop: it lowers the loss, stops early, resumes to the same weights, and is repeatable by seed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_support import foreign_base, rows_of, small_base, small_product

from training import checkpoints
from training.base_and_adapters import load_model, target_modules, with_adapters
from training.config import TrainingConfig, TrainingSection, load
from training.errors import TrainingError
from training.examples import Codec
from training.items import uniform_prior
from training.loop import Task, fit, learning_rate_share, planned_steps

PRODUCT = small_product()
ROWS = rows_of(PRODUCT, 160)
CONFIG = load(
    None,
    {
        "training.learning_rate": 5e-3,
        "training.batch_size": 8,
        "training.gradient_accumulation_steps": 2,
        "training.epochs": 3,
        "training.eval_steps": 6,
        "training.save_steps": 4,
        "training.early_stopping_threshold": 0.0,
        "lora.dropout": 0.2,
        "lora.target_modules": ["all-linear"],
    },
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_base(tmp_path_factory.mktemp("models") / "base", PRODUCT)


def prepared(base: Path, config: TrainingConfig = CONFIG) -> tuple[Any, Task]:
    model, tokenizer = load_model(str(base), "cpu", config)
    codec = Codec(PRODUCT, tokenizer, config.dataset.preprocessing, 512)
    parts = {
        split: codec.examples([row for row in ROWS if row["metadata"]["split"] == split], 1.0)
        for split in ("train", "validation")
    }
    # Without a popularity prior: what is popular is then the model's to learn.
    prior = uniform_prior(len(codec.items))
    return with_adapters(model, config), Task(parts["train"], parts["validation"], codec.trie, prior, codec.pad)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def silent(name: str, step: int, total: int, value: float) -> None:
    pass


def test_training_lowers_the_loss_and_changes_only_unfrozen_weights(base: Path) -> None:
    """Fails when training changes nothing: then the tuned loss is the base's."""
    model, task = prepared(base)
    before = weights(model)
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    outcome = fit(model, task, CONFIG.training, silent, log_every=1)
    assert outcome.base_loss is not None and outcome.best_loss is not None
    assert outcome.best_loss < outcome.base_loss - 0.05
    losses = [loss for _, loss in outcome.losses]
    assert len(losses) == outcome.steps == outcome.planned_steps
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    assert not same(before, weights(model))
    assert all(torch.equal(weight, dict(model.named_parameters())[name]) for name, weight in frozen.items())


def test_weights_are_repeatable_and_change_with_the_seed(base: Path) -> None:
    trained = []
    for seed in (1, 1, 2):
        config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"seed": seed, "epochs": 1})})
        model, task = prepared(base, config)
        fit(model, task, config.training, silent)
        trained.append(weights(model))
    assert same(trained[0], trained[1]) and not same(trained[0], trained[2])


class Killed(Exception):
    pass


@pytest.mark.parametrize("last_step", [3, 9, 14])
def test_killed_run_resumes_to_the_weights_of_an_uninterrupted_run(base: Path, tmp_path: Path, last_step: int) -> None:
    whole, task = prepared(base)
    expected = fit(whole, task, CONFIG.training, silent, log_every=1)

    def killer(name: str, step: int, total: int, value: float) -> None:
        if step == last_step:
            raise Killed

    model, task = prepared(base)
    with pytest.raises(Killed):
        fit(model, task, CONFIG.training, killer, tmp_path, log_every=1)
    model, task = prepared(base)
    torch.manual_seed(12345)
    outcome = fit(model, task, CONFIG.training, silent, tmp_path, log_every=1)
    assert outcome.resumed_from == (last_step // 4) * 4 - (4 if last_step % 4 == 0 else 0)
    assert same(weights(whole), weights(model))
    assert (outcome.base_loss, outcome.best_loss, outcome.best_step) == (
        expected.base_loss,
        expected.best_loss,
        expected.best_step,
    )
    assert outcome.losses == expected.losses and outcome.validations == expected.validations


def test_a_finished_run_is_not_trained_again(base: Path, tmp_path: Path) -> None:
    model, task = prepared(base)
    fit(model, task, CONFIG.training, silent, tmp_path)
    again, task = prepared(base)
    reported: list[str] = []
    outcome = fit(again, task, CONFIG.training, lambda name, *_: reported.append(name), tmp_path)
    assert reported == [] and outcome.resumed_from == outcome.steps
    assert same(weights(model), weights(again))


def test_a_partial_checkpoint_is_ignored(base: Path, tmp_path: Path) -> None:
    model, task = prepared(base)
    fit(model, task, CONFIG.training.model_copy(update={"epochs": 1}), silent, tmp_path)
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / checkpoints.STATE).write_text("{")
    assert checkpoints.newest(tmp_path) == newest
    assert len(list(tmp_path.glob("step-*"))) <= checkpoints.KEPT


def test_training_stops_early_and_keeps_the_best_weights(base: Path) -> None:
    hopeless = CONFIG.training.model_copy(
        update={"learning_rate": 3.0, "eval_steps": 1, "early_stopping_patience": 2, "optimizer": "sgd"}
    )
    model, task = prepared(base)
    outcome = fit(model, task, hopeless, silent)
    assert outcome.steps < outcome.planned_steps
    assert outcome.best_loss == min(loss for _, loss in outcome.validations)
    kept, _ = prepared(base)
    if outcome.best_step == 0:
        assert same(weights(kept), weights(model))


def test_out_of_memory_is_reported_in_one_sentence(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = prepared(base)

    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr("training.loop.batch_loss", full)
    with pytest.raises(TrainingError, match=r"batch_size 8.*gradient-checkpointing"):
        fit(model, task, CONFIG.training, silent)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    settings = TrainingSection(warmup_ratio=0.1)
    shares = [learning_rate_share(step, 100, settings) for step in range(100)]
    assert shares[0] == pytest.approx(0.1) and max(shares) == shares[10] == 1.0
    assert shares[10:] == sorted(shares[10:], reverse=True) and shares[-1] < 0.001
    assert learning_rate_share(99, 100, settings.model_copy(update={"lr_scheduler": "constant"})) == 1.0
    assert planned_steps(161, CONFIG.training) == 3 * 11


def test_adapters_go_on_the_configured_modules_or_all_linear_layers(tmp_path: Path) -> None:
    qwen, _ = load_model(str(foreign_base(tmp_path / "qwen2", "qwen2")), "cpu")
    gpt2, _ = load_model(str(foreign_base(tmp_path / "gpt2", "gpt2")), "cpu")
    wanted = ["q_proj", "v_proj", "nothing"]
    assert target_modules(qwen, wanted) == ["q_proj", "v_proj"]
    assert target_modules(gpt2, wanted) == "all-linear"
    adapted = with_adapters(gpt2, CONFIG)
    assert any("lora_" in name for name, weight in adapted.named_parameters() if weight.requires_grad)


@pytest.mark.parametrize(
    ("key", "message"),
    [("lora.use_qlora", "needs a CUDA device"), ("hardware.use_flash_attention", "needs a CUDA device")],
)
def test_options_that_need_cuda_are_refused_on_a_cpu(base: Path, key: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load_model(str(base), "cpu", load(None, {key: True}))
