"""What the rollout file says: which version is champion, whether there is a challenger and how, whether all is paused.

    champion: breast_cancer:1.1.0-7f3a9c
    challenger:
      model: breast_cancer:1.2.0-939734
      mode: canary            # shadow, canary or ab
      share: 5                # percent of the requests
      by: header:x-user-id    # sticky by this header, or by the feature so named; canary and ab
    paused: the labels of last week were wrong

One small file in BentoML's home. It is written by the command `tabserve` alone, whole or not at all; services read it.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

ROLLOUT_FILE = "rollout.yaml"

HEADER = "header:"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.1
_TAG = re.compile(r"[a-z0-9][a-z0-9_.-]*:[A-Za-z0-9][A-Za-z0-9_.-]*")

Mode = Literal["shadow", "canary", "ab"]


class BadRolloutError(Exception):
    """A rollout file, or a change of it, that cannot be used; the message says what was expected, came, and to do."""


class Challenger(BaseModel):
    """A model beside the champion, which a share of the requests goes to as well (shadow) or instead."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    mode: Mode
    share: float = Field(gt=0, le=100, strict=True)
    """Percent of the requests."""
    by: str | None = None
    """What a choice is sticky by: a feature, or `header:<name>`; None for chance."""

    @field_validator("model")
    @classmethod
    def _is_a_tag(cls, model: str) -> str:
        return _tag(model)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.mode == "ab" and self.by is None:
            raise ValueError("an A/B test needs `by`, the feature or header:NAME that it is sticky by")
        if self.mode == "shadow" and self.by is not None:
            raise ValueError("a shadow has no `by`: nobody is answered by it")
        name = self.by.removeprefix(HEADER) if self.by is not None and self.by.startswith(HEADER) else None
        if name is not None and not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{self.by!r} names no header; expected header:NAME, such as header:x-user-id")
        return self

    @classmethod
    def of(cls, model: str, mode: Mode, share: float, by: str | None) -> Self:
        """As it was said on a command line.

        Raises:
            BadRolloutError: where that is none.
        """
        try:
            return cls(model=model, mode=mode, share=share, by=by)
        except ValidationError as error:
            faults = [_fault(one).removeprefix("the file: ") for one in error.errors(include_url=False)]
            raise BadRolloutError("; ".join(faults)) from error


class RolloutState(BaseModel):
    """The rollout file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion: str
    challenger: Challenger | None = None
    paused: str | None = Field(default=None, min_length=1)
    """Why no model answers."""

    @field_validator("champion")
    @classmethod
    def _is_a_tag(cls, champion: str) -> str:
        return _tag(champion)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.challenger is not None and self.challenger.model == self.champion:
            raise ValueError(f"challenger and champion are the same version, {self.champion}")
        return self

    @classmethod
    def parse(cls, text: str, name: object = ROLLOUT_FILE) -> Self:
        """Reads the text of a rollout file.

        Raises:
            BadRolloutError: where it is none.
        """
        try:
            return cls.model_validate(yaml.safe_load(text))
        except ValidationError as error:
            faults = "; ".join(_fault(one) for one in error.errors(include_url=False))
            raise BadRolloutError(f"{name} cannot be used: {faults}; expected `champion: name:version`") from error
        # PyYAML lets through what Python says of a 13th month, of 5000 digits, of a thousand brackets.
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f" at line {mark.line + 1}" if mark else ""
            raise BadRolloutError(f"{name} is no YAML{where}; expected `champion: name:version`") from error

    def save(self, path: Path) -> None:
        """Writes the file in one step. Who changes it holds the lock of tabserve.lifecycle.changes."""
        content = yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)  # the service may be another user's
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def read_rollout(path: Path) -> RolloutState | None:
    """The rollout file at a path; None where there is none.

    Raises:
        BadRolloutError: for a file that cannot be used.
    """
    try:
        return RolloutState.parse(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BadRolloutError(f"{path} cannot be read: {error}") from error


def _tag(text: str) -> str:
    if not _TAG.fullmatch(text):
        raise ValueError(f"{text!r} is no model version; expected name:version, as `tabserve models` lists them")
    return text


def _fault(error: Any) -> str:
    where = ".".join(map(str, error["loc"])) or "the file"
    if error["type"] == "extra_forbidden":
        return f"{where} is no key of it"
    if error["type"] == "model_type":
        return f"{where} has no keys"
    got = f", got {str(error['input'])[:20]}" if isinstance(error["input"], int | float) else ""
    return f"{where}: {error['msg'].removeprefix('Value error, ').replace('Input should be', 'expected')}{got}"
