"""Whether callers of one contract may go on as they are under another one."""

from collections.abc import Iterable

from tabserve.contract import Contract, Feature

# The kinds whose values another kind takes as well.
_TAKEN_BY = {
    "integer": ("integer", "number"),
    "number": ("number",),
    "boolean": ("boolean",),
    "category": ("category",),
}


def breaking_changes(old: Contract, new: Contract) -> list[str]:
    """Why a request that the old contract accepts may be refused under the new one, or answered in another shape; a
    sentence each; none where every one is accepted.

    A feature that may be missing now, more categories, wider bounds, and whole numbers that may have decimals break
    nobody. A new feature does, even where it may be missing: a row that is a list has a value for each feature.
    """
    return [*_answers(old, new), *_order(old, new), *_features(old, new)]


def _answers(old: Contract, new: Contract) -> list[str]:
    faults = []
    if old.task != new.task:
        faults.append(f"it answers a {new.task}, no {old.task} any more")
    elif set(old.classes) != set(new.classes):  # 1 and "class_1" share a key, and are two labels
        faults.append(f"its classes are {_shown(new.classes)}, and were {_shown(old.classes)}")
    if old.target != new.target:
        faults.append(f"it predicts {new.target}, and not {old.target}")
    return faults


def _order(old: Contract, new: Contract) -> list[str]:
    if old.names == new.names:
        return []
    if len(old.names) != len(new.names):
        return [f"a row that is a list has {len(new.names)} values, and had {len(old.names)}"]
    if set(old.names) == set(new.names):
        return ["the values of a row that is a list are in another order"]
    return []  # what has another name is said below


def _features(old: Contract, new: Contract) -> list[str]:
    there = {feature.name: feature for feature in new.features}
    known = set(old.names)
    faults = [f"{name} is no feature any more" for name in old.names if name not in there]
    faults += [f"{one.name} is new, and must be sent" for one in new.features if one.name not in known | _optional(new)]
    for feature in old.features:
        if feature.name in there:
            faults += _narrower(feature, there[feature.name])
    return faults


def _optional(contract: Contract) -> set[str]:
    return {feature.name for feature in contract.features if feature.may_be_missing}


def _narrower(old: Feature, new: Feature) -> list[str]:
    name = old.name
    if new.kind not in _TAKEN_BY[old.kind]:
        return [f"{name} is a {new.kind}, and was a {old.kind}"]
    faults = []
    if old.may_be_missing and not new.may_be_missing:
        faults.append(f"{name} may not be missing any more")
    gone = [category for category in old.categories if category not in new.categories]
    if gone:
        faults.append(f"{name} may not be {_shown(gone)} any more")
    if old.kind in ("number", "integer") and (new.lowest > old.lowest or new.highest < old.highest):
        faults.append(
            f"{name} may be {new.lowest:g} to {new.highest:g}, and might be {old.lowest:g} to {old.highest:g}"
        )
    return faults


def _shown(values: Iterable[object]) -> str:
    shown = [str(value) for value in values]
    return ", ".join(shown[:5]) + (", …" if len(shown) > 5 else "")  # a sentence, not a list
