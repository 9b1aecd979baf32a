"""The MLflow model registry: versions, gate, champion."""
