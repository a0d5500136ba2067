"""What MLflow runs when it loads a packaged planner."""

from mlflow.models import set_model

from training.pyfunc import PlannerModel

set_model(PlannerModel())
