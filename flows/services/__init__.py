"""The servers of a team: PostgreSQL, S3, MLflow, Prefect."""
