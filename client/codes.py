"""Which codes of a record does a study mean by one that it names? That code, and what refines it after a dot."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def names(wanted: tuple[str, ...], code: str) -> bool:
    """Whether one of the wanted codes means this one: ``ICD10//E11`` means ``ICD10//E11.9`` too."""
    return any(code == one or code.startswith(f"{one}.") for one in wanted)


def matches(codes: pd.Series, wanted: tuple[str, ...]) -> NDArray[np.bool_]:
    """The same of each row."""
    hits = {code for code in codes.drop_duplicates() if names(wanted, code)}
    matched: NDArray[np.bool_] = codes.isin(hits).to_numpy()
    return matched
