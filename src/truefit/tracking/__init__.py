"""MLflow: one run for every executed training, completed by its evaluation. The only room that imports mlflow."""
