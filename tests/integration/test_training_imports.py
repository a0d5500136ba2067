"""The modules that Dagster's code location and the API import stay light: torch, transformers and MLflow come only with training itself."""

import subprocess
import sys

HEAVY = {"torch", "transformers", "peft", "mlflow", "tokenizers"}
LIGHT = ("versions", "config", "errors", "registry", "dataset", "heuristic", "reporting", "builtin_base_model")


def test_light_modules_import_nothing_heavy() -> None:
    modules = ", ".join(f"training.{name}" for name in (*LIGHT, "train_planner", "tracking"))
    code = f"import sys, {modules}; print(' '.join(sorted({HEAVY!r} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_packaged_rule_planner_imports_only_its_requirements() -> None:
    # The rest of mlflow's imports is its own business: only what the planner adds counts.
    code = (
        "import sys, mlflow.pyfunc; before = set(sys.modules); import training.pyfunc, planner.meal_planner, planner.planners; "
        "print(' '.join(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = set(done.stdout.split()) - set(sys.stdlib_module_names)
    ours = {"foundation", "planner", "product", "training"}
    assert ours <= added
    assert added - ours <= {"numpy", "pandas", "polars", "pyarrow", "pydantic", "pydantic_core", "yaml"}
