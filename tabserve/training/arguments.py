"""What train.py was told, as a model's metadata keeps it: enough to do the same training again."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tabserve.contract import Task
from tabserve.training.columns import BadTableError, Rule
from tabserve.training.evaluation import Gates
from tabserve.training.table import Columns, Table, builtin_table, read_table

KEY = "arguments"  # in the metadata


class Arguments(BaseModel):
    """Of one training. Rules are here as they read, so that only the table has to be found again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str | None = None
    """The file as it was given; None for the built-in table."""
    target: str | None = None
    id_columns: tuple[str, ...] = ()
    time_column: str | None = None
    task: Task | None = None
    """None for what the target implies."""
    rules: dict[str, Rule] = {}
    estimator: str | None = None
    """Where the pipeline came from; its code is in the model."""
    engine: Literal["auto", "scikit-learn"] = "auto"
    limitations: tuple[str, ...] = ()
    """What the data cannot say of what the model is not for."""
    gates: Gates = Gates()
    seed: int

    @classmethod
    def of(cls, tag: str, metadata: dict[str, Any]) -> Self:
        """Those that a model was trained with.

        Raises:
            BadTableError: where its metadata does not have them.
        """
        if KEY not in metadata:
            raise BadTableError(
                f"{tag} does not say how it was trained, as older models do not: train it once more with train.py"
            )
        try:
            return cls.model_validate(metadata[KEY])
        except ValidationError as error:
            raise BadTableError(
                f"how {tag} was trained is not as this version of tabserve reads it: train it once more with train.py"
            ) from error

    def read_table(self, moved: Path | None = None) -> Table:
        """The table that is trained on.

        Args:
            moved: where it is now, if it is no longer where it was.

        Raises:
            BadTableError: naming every column that is wrong.
        """
        if self.data is None or self.target is None:
            return builtin_table()
        columns = Columns(self.target, self.id_columns, self.time_column)
        return read_table(moved or Path(self.data), columns, task=self.task, rules=self.rules)
