"""What MLflow runs when it loads a packaged planner. Belongs here: nothing but handing MLflow the model (pyfunc.py)."""

from mlflow.models import set_model

from training.pyfunc import PlannerModel

set_model(PlannerModel())
