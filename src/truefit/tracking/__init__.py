"""MLflow: one run for every executed training, completed by its evaluation. The only package that imports mlflow.

A run (run.py) is written to its journal, which is sent (sending.py) to the store (connection.py) while it grows (store.py).
"""
