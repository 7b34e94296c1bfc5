"""Tables that the tests train on: one of mixed kinds with gaps and three classes, one with a quantity as target."""

from pathlib import Path

import numpy as np
import pandas as pd

CITIES = ("Bergen", "Oslo", "Tromsø")
PLANS = ("basic", "plus", "pro")


def customers(n_rows: int = 800, seed: int = 7) -> pd.DataFrame:
    """Customers whose plan follows from age, income, city and membership, with noise."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "customer": [f"c{number:05d}" for number in range(n_rows)],
            "age": random.integers(18, 90, n_rows),
            "income": random.lognormal(10, 1, n_rows),
            "city": random.choice(CITIES, n_rows),
            "member": random.random(n_rows) < 0.5,
            "visits": pd.array(random.poisson(3, n_rows), dtype="Int64"),
            "since": pd.date_range("2025-01-01", periods=n_rows, freq="h"),
        }
    )
    frame.loc[random.random(n_rows) < 0.1, "income"] = np.nan
    frame.loc[random.random(n_rows) < 0.05, "city"] = None
    frame.loc[random.random(n_rows) < 0.05, "visits"] = pd.NA
    score = frame["age"] / 40 + np.log(frame["income"].fillna(20000)) / 3
    score += (frame["city"] == "Oslo") * 1.5 + frame["member"] * 0.8 + random.normal(0, 0.3, n_rows)
    frame["plan"] = pd.cut(score, [-np.inf, 5.5, 6.5, np.inf], labels=list(PLANS)).astype(str)
    frame["spend"] = (score * 100).round(2)
    return frame


def write_customers(path: Path) -> Path:
    customers().drop(columns="spend").to_csv(path, index=False)
    return path


def write_spend(path: Path) -> Path:
    customers().drop(columns=["plan", "customer", "since"]).to_parquet(path, index=False)
    return path
