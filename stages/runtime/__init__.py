"""The runtime of every stage: locks, signals, records, MLflow tracking. It changes no byte of an output."""
