"""BentoML with adaptive batching as its own pages show it, with its defaults."""

import bentoml
import numpy as np


@bentoml.service
class Quickstart:
    model_ref = bentoml.models.BentoModel("quickstart:latest")

    def __init__(self) -> None:
        self.model = bentoml.sklearn.load_model(self.model_ref)

    @bentoml.api(batchable=True)  # type: ignore[untyped-decorator]
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(rows)  # type: ignore[no-any-return]
