"""A bank's own data: which files, and what their rows become."""

from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from common.data.folder import Layout, UserTable
from common.schema import Record, arrow_schema
from common.system import ANSWERED, Answered
from systems.fraud.data.events import Outcome, Payment


class Reported(Record):
    """What was heard of a payment."""

    payment_id: str = Field(min_length=1, max_length=200)
    fraud: bool
    reported_timestamp: int = Field(ge=0, lt=2**62)  # us, when it was heard
    source: Literal["chargeback", "inspection"] = "chargeback"


class Decided(Record):
    """What was done about a payment."""

    payment_id: str = Field(min_length=1, max_length=200)
    action: Literal["approve", "review", "block"]
    propensity: float = Field(gt=0, le=1, default=1.0)  # the chance that the policy gave to that action


def outcomes(told: pa.Table, payments: pa.Table) -> pa.Table:
    """A payment may have several: an inspection, then a chargeback."""
    when = told["reported_timestamp"].cast(pa.string())
    columns = {
        **{name: payments[name] for name in arrow_schema(Outcome).names if name in payments.column_names},
        "event_id": pc.binary_join_element_wise(told["payment_id"], told["source"], when, "."),
        "payment_id": told["payment_id"],
        "fraud": told["fraud"],
        "source": told["source"],
    }
    return pa.table({name: columns[name] for name in arrow_schema(Outcome).names})


def decisions(made: pa.Table, payments: pa.Table) -> pa.Table:
    """As the platform logs an answer: nobody hears what would have become of a blocked payment."""
    n = made.num_rows
    columns = {
        "event_id": pc.binary_join_element_wise(made["payment_id"], ANSWERED, ""),
        "event_timestamp": payments["event_timestamp"],
        "request_id": made["payment_id"],
        "version": pa.repeat("own data", n),
        "role": pa.repeat("rule", n),
        "share": pa.repeat(1.0, n),
        "routed": pa.repeat("own data", n),
        "fault": pa.nulls(n, pa.string()),
        "took": pa.repeat(0, n),
        "score": pa.nulls(n, pa.float64()),
        "degraded": pa.nulls(n, pa.string()),
        "propensity": made["propensity"],
        "rows": pa.nulls(n, pa.string()),
        "hidden": pc.equal(made["action"], "block"),
        "answer": pc.binary_join_element_wise('{"action":"', made["action"], '"}', ""),
        "features": _nothing(n, pa.float64()),
        "positions": _nothing(n, pa.int64()),
    }
    return pa.table(columns)


def _nothing(n: int, kind: pa.DataType) -> pa.ListArray:
    """Empty lists, n of them."""
    return pa.ListArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), n + 1), pa.array([], kind))


PAYMENT: Final = {"payment_id": ("payments", "event_id")}
LAYOUT: Layout = (
    UserTable(name="payments", row=Payment, event=Payment),
    UserTable(name="outcomes", row=Reported, event=Outcome, make=outcomes, about=PAYMENT, heard="reported_timestamp"),
    UserTable(name="decisions", row=Decided, event=Answered, make=decisions, about=PAYMENT, required=False),
)
