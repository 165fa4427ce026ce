"""The tables. What a database really has comes from `migrations/`; a test keeps the two equal.

Times are seconds since the epoch (UTC), sizes are bytes, columns that end in `_json` hold JSON text. Foreign
keys are checked at commit, so the order of rows within one transaction is free.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
    }
)


def _key(name: str) -> Column[str]:
    return Column(name, Text, primary_key=True)


def _number_key(name: str) -> Column[int]:
    return Column(name, BigInteger, primary_key=True, autoincrement=False)


def _text(name: str, default: str | None = None) -> Column[str]:
    """Without a default, an insert has to give it."""
    return Column(name, Text, nullable=False, server_default=default)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def _number(name: str, *, optional: bool = True) -> Column[float]:
    return Column(name, Double, nullable=optional)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=false())


def _refers(columns: list[str], target: str, keys: list[str]) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        columns, [f"{target}.{key}" for key in keys], deferrable=True, initially="DEFERRED"
    )


# Which rows still name a blob that is on disk; rows outlive their blobs.
HOLDS_BLOB = text("digest <> '' AND NOT blob_gone")


def _index_blobs(table: Table) -> None:
    Index(
        f"ix_{table.name}_blob",
        table.c.digest,
        sqlite_where=HOLDS_BLOB,
        postgresql_where=HOLDS_BLOB,
    )


RUNS = Table(
    "runs",
    METADATA,
    _key("run_id"),
    _text("name"),
    _text("task"),
    _text("state"),
    _text("reason"),
    _text("spec_json"),
    _text("spec_digest"),
    _text("spec_toml", ""),
    _text("request_id"),
    _number("created_at", optional=False),
    _number("started_at"),
    _number("ended_at"),
    _count("last_round"),
    _count("committed"),
    _count("skipped"),
    _count("skipped_in_row"),
    _number("rest_until"),
    _count("rest_present"),
    Column("model_version", BigInteger),
    _text("source_digest", ""),
    UniqueConstraint("request_id"),
)

ROUNDS = Table(
    "rounds",
    METADATA,
    _key("run_id"),
    _number_key("number"),
    _text("state"),
    _text("reason"),
    Column("base_version", BigInteger, nullable=False),
    _text("base_digest", ""),
    _text("cohort_json", "[]"),
    _text("roles_json", "{}"),
    _count("needed"),
    _count("quorum"),
    _number("planned_at", optional=False),
    _number("opened_at"),
    _number("deadline_at"),
    _number("grace_until"),
    _text("fold_json", ""),  # what it aggregates, where its schedule has said it
    _number("ended_at"),
    Column("model_version", BigInteger),
    _number("aggregate_seconds"),
    _refers(["run_id"], "runs", ["run_id"]),
)
Index("ix_rounds_state", ROUNDS.c.state)  # few are live at any time

PEERS = Table(
    "peers",
    METADATA,
    _key("peer_id"),
    _text("state"),
    _text("reason", ""),
    _count("epoch"),
    _text("device", ""),
    _text("muster_version", ""),
    _text("secret_hash", ""),
    _text("instance", ""),
    _number("enrolled_at"),
    _number("seen_at"),
)

STANDINGS = Table(
    "standings",
    METADATA,
    _key("run_id"),
    _key("peer_id"),
    _text("error_id", ""),
    _text("cause", ""),
    _count("round"),
    _count("in_row"),
    _flag("aside"),
    _text("instance", ""),
    _count("times"),
    _refers(["run_id"], "runs", ["run_id"]),
    _refers(["peer_id"], "peers", ["peer_id"]),
)
Index("ix_standings_peer", STANDINGS.c.peer_id)

ASSIGNMENTS = Table(
    "assignments",
    METADATA,
    _key("assignment_id"),
    _text("run_id"),
    Column("round", BigInteger, nullable=False),
    _text("peer_id"),
    _text("work_json", ""),
    _flag("evaluation"),
    Column("attempt", BigInteger, nullable=False),
    _text("state"),
    _text("reason"),
    _number("offered_at", optional=False),
    _number("preparing_at"),
    _number("prepared_at"),
    _number("training_at"),
    _number("uploading_at"),
    _number("deadline_at"),
    _number("ended_at"),
    _flag("retry"),
    _text("digest", ""),
    _count("size_bytes"),
    _count("dense_bytes"),
    _count("examples"),
    _number("norm"),
    _text("metrics_json", "{}"),
    _text("error_id", ""),
    _text("traceback", ""),
    _number("weight"),
    _number("score"),
    _flag("selected"),
    _text("treatment", ""),
    _count("folded_in"),  # the committed round whose version has this update in it
    _flag("carried"),  # goes on after its round, or waits for a later one
    _text("source_digest", ""),
    _flag("blob_gone"),
    _refers(["run_id"], "runs", ["run_id"]),
    _refers(["peer_id"], "peers", ["peer_id"]),
)
Index("ix_assignments_round", ASSIGNMENTS.c.run_id, ASSIGNMENTS.c.round)
Index("ix_assignments_state", ASSIGNMENTS.c.state)
Index("ix_assignments_peer", ASSIGNMENTS.c.peer_id, ASSIGNMENTS.c.state, ASSIGNMENTS.c.evaluation)
Index(
    "ux_assignments_delivered",
    ASSIGNMENTS.c.run_id,
    ASSIGNMENTS.c.round,
    ASSIGNMENTS.c.peer_id,
    ASSIGNMENTS.c.evaluation,
    unique=True,
    sqlite_where=text("state = 'DELIVERED'"),
    postgresql_where=text("state = 'DELIVERED'"),
)
CARRIED = text("carried")
Index(
    "ix_assignments_carried",
    ASSIGNMENTS.c.run_id,
    ASSIGNMENTS.c.state,
    sqlite_where=CARRIED,
    postgresql_where=CARRIED,
)
Index("ix_assignments_folded", ASSIGNMENTS.c.run_id, ASSIGNMENTS.c.folded_in)
_index_blobs(ASSIGNMENTS)

MODELS = Table(
    "models",
    METADATA,
    _key("run_id"),
    _number_key("version"),
    Column("round", BigInteger, nullable=False),
    _text("digest"),
    Column("size_bytes", BigInteger, nullable=False),
    _text("layout_digest"),
    _number("created_at", optional=False),
    _flag("blob_gone"),
    UniqueConstraint("run_id", "round"),
    _refers(["run_id"], "runs", ["run_id"]),
)
_index_blobs(MODELS)

OPTIMIZER_STATES = Table(
    "optimizer_states",
    METADATA,
    _key("run_id"),
    _number_key("version"),
    _key("name"),
    _text("digest"),
    _flag("blob_gone"),
    _refers(["run_id", "version"], "models", ["run_id", "version"]),
)
_index_blobs(OPTIMIZER_STATES)

EVALUATIONS = Table(
    "evaluations",
    METADATA,
    _key("run_id"),
    _number_key("version"),
    Column("round", BigInteger, nullable=False),
    _text("state"),
    _number("deadline_at", optional=False),
    _flag("own_pending"),
    _text("own_metrics_json", "{}"),
    _text("metrics_json", "{}"),
    _refers(["run_id", "version"], "models", ["run_id", "version"]),
)
Index("ix_evaluations_state", EVALUATIONS.c.state)

WARNINGS = Table(
    "warnings",
    METADATA,
    _key("run_id"),
    _key("cause"),
    _text("reason"),
    _text("peer_id", ""),
    _count("times"),
    _count("first_round"),
    _count("last_round"),
    _number("last_at", optional=False),
    _refers(["run_id"], "runs", ["run_id"]),
)

TRANSFERS = Table(
    "transfers",
    METADATA,
    _key("run_id"),
    _number_key("round"),
    _key("peer_id"),
    _key("direction"),  # "up": peer to coordinator; "down": coordinator to peer
    Column("bytes", BigInteger, nullable=False),
)
Index("ix_transfers_peer", TRANSFERS.c.peer_id)

FENCES = Table(
    "fences",
    METADATA,
    _key("name"),  # of what is claimed; for now the whole database: COORDINATOR
    Column("epoch", BigInteger, nullable=False),
    _text("holder"),
    _number("taken_at", optional=False),
)
COORDINATOR = "coordinator"

EVENTS = Table(
    "events",
    METADATA,
    # Given by the writer, one after the other without a gap. In SQLite an INTEGER key is the row's own place.
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    _number("at", optional=False),
    _text("kind"),
    _text("run_id"),
    Column("round", BigInteger, nullable=False),
    _text("assignment_id"),
    _text("peer_id"),
    _text("reason"),
    _text("data_json"),
    _text("actor", ""),  # empty in rows of before it was recorded
)
Index("ix_events_run", EVENTS.c.run_id, EVENTS.c.sequence)
Index("ix_events_peer", EVENTS.c.peer_id, EVENTS.c.sequence)
Index("ix_events_assignment", EVENTS.c.assignment_id)
