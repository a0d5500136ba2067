"""What Dagster's code location and the API import stays light: torch, transformers and MLflow come only with training itself."""

import subprocess
import sys

HEAVY = {"torch", "transformers", "peft", "mlflow", "tokenizers"}
LIGHT = ("versions", "config", "errors", "registry", "dataset", "heuristic", "reporting", "base_model")


def test_light_modules_import_nothing_heavy() -> None:
    modules = ", ".join(f"training.{name}" for name in (*LIGHT, "train_planner", "tracking"))
    code = f"import sys, {modules}; print(' '.join(sorted({HEAVY!r} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
