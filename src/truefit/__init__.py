"""truefit: an experiment-tracked regression pipeline that DVC runs, PyTorch trains and MLflow remembers."""
