"""The one kind of error that a person running a training meets: a sentence that says what, where and what to do."""

from foundation.errors import LifecycleError


class TrainingError(LifecycleError):
    """Something the user can put right. Its text is one sentence, shown without a traceback."""


def out_of_memory(batch_size: int) -> TrainingError:
    """The sentence for a model and batch that do not fit."""
    return TrainingError(
        f"Out of memory with batch_size {batch_size}: lower --batch-size (raise --gradient-accumulation-steps to keep the effective "
        "size), or set --gradient-checkpointing true."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library's error means that memory ran out, on CPU or on CUDA."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
