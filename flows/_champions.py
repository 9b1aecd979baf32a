"""Who is champion, and who was before it."""
from __future__ import annotations

import json

import mlflow
from mlflow.entities.model_registry import ModelVersion

from flows._versions import CHAMPION, NAME, number_of, resolve
from thousandwords.errors import UserError

HISTORY = "champions"  # on the registered model: the versions that were champion, oldest first


def champion_of(client: mlflow.MlflowClient) -> ModelVersion | None:
    try:
        return resolve(client, CHAMPION)
    except UserError:
        return None


def history_of(client: mlflow.MlflowClient, champion: ModelVersion | None) -> list[str]:
    """The versions that were champion, oldest first, up to the one that is; what a killed promotion added after it is no part."""
    if champion is None:
        return []
    history = json.loads(client.get_registered_model(NAME).tags.get(HISTORY, "[]"))
    if number_of(champion) not in history:  # somebody set the alias by hand
        return [*history, number_of(champion)]
    while history[-1] != number_of(champion):
        history.pop()
    return history


def remember(client: mlflow.MlflowClient, history: list[str]) -> None:
    client.set_registered_model_tag(NAME, HISTORY, json.dumps(history))
