"""A model behind FastAPI as most tutorials write it."""

import os

import joblib
import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
model = joblib.load(os.environ["BENCHMARK_PIPELINE"])


class Row(BaseModel):
    features: list[float]


class Rows(BaseModel):
    instances: list[list[float]]


@app.post("/predict")
def predict(row: Row) -> dict[str, object]:
    rows = np.array(row.features).reshape(1, -1)
    return {"prediction": int(model.predict(rows)[0]), "probabilities": model.predict_proba(rows)[0].tolist()}


@app.post("/predict/batch")
def predict_batch(body: Rows) -> dict[str, object]:
    rows = np.array(body.instances)
    return {"predictions": model.predict(rows).tolist(), "probabilities": model.predict_proba(rows).tolist()}
