"""Controls that are variants: dense models beside those of the variant that they are compared with.

Their names say so: ``BASE+KIND`` (`deep128+narrow`), or ``BASE+KINDVALUE`` (`deep128+dropout0.2`)
where a kind is tried at several values. Of these and the base variant itself, which is the kind at
the value that it has anyway, a run counts the one with the best validation error; the test error of
the others is not looked at.
"""

from __future__ import annotations

import re
from typing import Final

import pandas as pd

from spat.evaluation.cells import in_domain
from spat.pipeline.frames import RUN

# The value of a kind that leaves the base variant as it is.
BASE: Final = "base"

_NAME: Final = re.compile(r"^(?P<base>[^+]+)\+(?P<kind>.+?)(?P<value>\d[\d.]*)?$")


def is_control(variant: str) -> bool:
    """Whether a variant stands beside another one."""
    return _NAME.match(variant) is not None


def tuned(results: pd.DataFrame) -> pd.DataFrame:
    """Dense test results of the controls: of each kind the value that validation prefers.

    Returns:
        The rows of `results` under the `variant` they are compared with, and `kind` and `value`
        (`BASE` where no change is best): one row per run of that variant and kind. A value whose
        training diverged is chosen only where no other was tried.
    """
    dense = results[results["phase"] == "dense"]
    controls = dense["variant"].map(is_control).astype(bool)
    rows = dense[controls]
    parts = rows["variant"].str.extract(_NAME).fillna({"value": ""})
    rows = rows.assign(variant=parts["base"], kind=parts["kind"], value=parts["value"])
    keys = [*RUN, "kind"]
    tried = rows.loc[rows["value"] != "", keys].drop_duplicates()
    unchanged = dense[~controls].merge(tried, on=list(RUN)).assign(value=BASE)
    rows = pd.concat([rows, unchanged], ignore_index=True)
    validation = in_domain(rows, "validation", "dense").sort_values("mse", kind="stable")
    best = validation.drop_duplicates(keys)[[*keys, "value"]]
    return in_domain(rows, "test", "dense").merge(best, on=[*keys, "value"])
