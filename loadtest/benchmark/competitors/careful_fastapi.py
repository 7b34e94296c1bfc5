"""The same as somebody writes it who knows where the time goes: async, ONNX Runtime, one call, a ready response.

It has the collector settings of the service that it is compared with.
"""

import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import joblib
import numpy as np
import onnxruntime
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

scaler = joblib.load(os.environ["BENCHMARK_PIPELINE"])[0]
mean, scale = scaler.mean_, scaler.scale_  # what StandardScaler does, without its checks
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["BENCHMARK_ONNX"], options, providers=["CPUExecutionProvider"])
INPUT = session.get_inputs()[0].name
OUTPUTS = [session.get_outputs()[1].name]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    yield


app = FastAPI(lifespan=lifespan)


class Row(BaseModel):
    features: Annotated[list[float], Field(min_length=30, max_length=30)]


@app.post("/predict")
async def predict(row: Row) -> JSONResponse:
    rows = (np.array([row.features]) - mean) / scale
    (probabilities,) = session.run(OUTPUTS, {INPUT: rows.astype(np.float32)})
    scores = probabilities[0]
    return JSONResponse({"prediction": int(scores.argmax()), "probabilities": scores.tolist()})
