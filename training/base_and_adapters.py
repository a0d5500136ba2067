"""Loading a causal language model and its tokenizer from the hub, a folder or s3://, and adding adapters to it."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch

from training.builtin_base_model import INFO_FILE
from training.config import ALL_LINEAR, BUILT_IN, TrainingConfig
from training.errors import TrainingError, is_out_of_memory, out_of_memory
from training.versions import BaseModelVersion

DIGESTED = (".safetensors", ".json", ".model", ".txt", ".bin")


@dataclass(frozen=True)
class LoadedBase:
    """A base in memory. `folder` is its local folder, None when it came from the hub by id."""

    model: Any
    tokenizer: Any
    record: BaseModelVersion
    folder: Path | None


def device_of(config: TrainingConfig) -> str:
    """`cuda:n` if a GPU is available and wanted, else `cpu`. Raises TrainingError if too few processes or devices are there."""
    wanted, available = config.hardware.num_gpus, torch.cuda.device_count() if torch.cuda.is_available() else 0
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if wanted > 1 and available < wanted:
        raise TrainingError(
            f"hardware.num_gpus is {wanted}, but there are {available} CUDA devices here: lower it, or run on a machine with more."
        )
    if wanted > 1 and ranks != wanted:
        raise TrainingError(
            f"hardware.num_gpus is {wanted}: start with `torchrun --nproc-per-node {wanted} -m training.train_planner …` so that each "
            "GPU has its process."
        )
    return f"cuda:{torch.cuda.current_device()}" if wanted and available else "cpu"


def effective_precision(config: TrainingConfig, device: str) -> str:
    """fp32 on the CPU, where the same run must give the same weights; the configured one on CUDA."""
    return config.model.precision if device.startswith("cuda") else "fp32"


def load_base(source: str, config: TrainingConfig, device: str, download_dir: Path) -> LoadedBase:
    """Load a hub id, folder or s3:// folder. Raises TrainingError when the base cannot be loaded."""
    folder = local_folder(source, download_dir)
    where = str(folder) if folder is not None else source
    model, tokenizer = load_model(where, device, config)
    digest = folder_digest(folder) if folder is not None else getattr(model.config, "_commit_hash", None)
    if digest is None:
        raise TrainingError(
            f"The base model {source} from the hub has no commit that identifies it: download it and give its folder."
        )
    # The built-in base is in a folder named by its digest, which says nothing to a reader.
    built_in = folder is not None and (folder / INFO_FILE).exists()
    name = BUILT_IN if built_in else source.rstrip("/").rsplit("/", 1)[-1]
    return LoadedBase(model, tokenizer, BaseModelVersion(name, source, digest), folder)


def load_model(source: str, device: str, config: TrainingConfig | None = None) -> tuple[Any, Any]:
    """Model (in evaluation mode, on the device) and tokenizer of a local folder or hub id."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    options: dict[str, Any] = {"dtype": torch.float32}
    if config is not None:
        options = _options(config, device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model: Any = AutoModelForCausalLM.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainingError(
            f"The base model {source} cannot be loaded ({reason}): give --model-base a hub id that can be reached from here, a folder or "
            "s3:// folder with a causal language model, or `builtin`."
        ) from error
    if not (config is not None and config.lora.use_qlora):
        try:
            model.to(device)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise out_of_memory(1 if config is None else config.training.batch_size) from error
            raise
    model.eval()
    return model, tokenizer


def quiet() -> None:
    """Switch off transformers' own progress bars and advice: ours is the only progress display."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def with_adapters(model: Any, config: TrainingConfig) -> Any:
    """The model with LoRA adapters as its only trainable weights (all weights where lora.enabled is false)."""
    if config.hardware.gradient_checkpointing:
        model.config.use_cache = False
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not config.lora.enabled:
        return model
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if config.lora.use_qlora:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=config.hardware.gradient_checkpointing
        )
    torch.manual_seed(config.training.seed)
    adapters = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=target_modules(model, config.lora.target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapters)


def target_modules(model: Any, wanted: list[str]) -> list[str] | str:
    """The wanted layers that the model has; every linear layer if it has none of them or `all-linear` is wanted."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    present = [name for name in wanted if name in names]
    return ALL_LINEAR if ALL_LINEAR in wanted or not present else present


def local_folder(source: str, download_dir: Path) -> Path | None:
    """The local folder of a source, an s3:// one downloaded; None for a hub id. Raises TrainingError for a folder without a model."""
    if "://" in source:
        filesystem, path = fsspec.core.url_to_fs(source)
        target = download_dir / hashlib.sha256(source.encode()).hexdigest()[:16]
        try:
            if not filesystem.exists(f"{path.rstrip('/')}/config.json"):
                raise FileNotFoundError(f"no config.json in {source}")
            target.mkdir(parents=True, exist_ok=True)
            for file in filesystem.find(path):
                local = target / Path(file).relative_to(path.rstrip("/"))
                local.parent.mkdir(parents=True, exist_ok=True)
                filesystem.get_file(file, str(local))
        except OSError as error:
            raise TrainingError(
                f"The base model {source} cannot be loaded ({error}): check the address and the access to it."
            ) from error
        return target
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise TrainingError(
                f"The base model cannot be loaded: {folder} has no config.json, so it is not a transformers folder."
            )
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise TrainingError(
            f"The base model cannot be loaded: there is no folder {source}; give --model-base an existing one, or a hub id."
        )
    return None


def folder_digest(folder: Path) -> str:
    """SHA-256 of a model folder's weights, configuration and tokenizer."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in DIGESTED and file.name != INFO_FILE:
            digest.update(file.relative_to(folder).as_posix().encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _options(config: TrainingConfig, device: str) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`. Raises TrainingError for an option that needs CUDA or a package that is missing."""
    cuda = device.startswith("cuda")
    precisions = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    # Adapters stay in fp32; the frozen base may be as small as asked. Trained whole in half precision, small steps would vanish.
    small = cuda and config.hardware.mixed_precision and config.lora.enabled
    options: dict[str, Any] = {"dtype": precisions[effective_precision(config, device)] if small else torch.float32}
    if config.lora.use_qlora:
        if not cuda:
            raise TrainingError(
                "lora.use_qlora needs a CUDA device, and none is in use: set it to false, or run on a GPU."
            )
        if importlib.util.find_spec("bitsandbytes") is None:
            raise TrainingError(
                "lora.use_qlora needs the package bitsandbytes: `pip install bitsandbytes`, or set it to false."
            )
        from transformers import BitsAndBytesConfig

        few = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": options["dtype"]}
        options["quantization_config"] = BitsAndBytesConfig(
            **(few if config.lora.bits == 4 else {"load_in_8bit": True})
        )
        options["device_map"] = {"": device}
    if config.hardware.use_flash_attention:
        if not cuda or importlib.util.find_spec("flash_attn") is None:
            raise TrainingError(
                "hardware.use_flash_attention needs a CUDA device and the package flash-attn: set it to false here."
            )
        options["attn_implementation"] = "flash_attention_2"
    return options
