"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None

HOLDS_BLOB = sa.text("digest <> '' AND NOT blob_gone")


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("spec_json", sa.Text(), nullable=False),
        sa.Column("spec_digest", sa.Text(), nullable=False),
        sa.Column("spec_toml", sa.Text(), nullable=False, server_default=""),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("last_round", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("committed", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("skipped", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("skipped_in_row", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("model_version", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
        sa.UniqueConstraint("request_id", name="uq_runs_request_id"),
    )
    op.create_table(
        "rounds",
        sa.Column("run_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("number", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("base_version", sa.BigInteger(), nullable=False),
        sa.Column("base_digest", sa.Text(), nullable=False, server_default=""),
        sa.Column("cohort_json", sa.Text(), nullable=False, server_default="[]"),
        sa.Column("needed", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("quorum", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("planned_at", sa.Double(), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=True),
        sa.Column("deadline_at", sa.Double(), nullable=True),
        sa.Column("grace_until", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("model_version", sa.BigInteger(), nullable=True),
        sa.Column("aggregate_seconds", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "number", name="pk_rounds"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name="fk_rounds_runs", deferrable=True, initially="DEFERRED"
        ),
    )
    op.create_index("ix_rounds_state", "rounds", ["state"])
    op.create_table(
        "peers",
        sa.Column("peer_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False, server_default=""),
        sa.Column("epoch", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("device", sa.Text(), nullable=False, server_default=""),
        sa.Column("muster_version", sa.Text(), nullable=False, server_default=""),
        sa.Column("secret_hash", sa.Text(), nullable=False, server_default=""),
        sa.Column("enrolled_at", sa.Double(), nullable=True),
        sa.Column("seen_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("peer_id", name="pk_peers"),
    )
    op.create_table(
        "assignments",
        sa.Column("assignment_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("peer_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("base_version", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("offered_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("retry", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("digest", sa.Text(), nullable=False, server_default=""),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("dense_bytes", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("examples", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("norm", sa.Double(), nullable=True),
        sa.Column("metrics_json", sa.Text(), nullable=False, server_default="{}"),
        sa.Column("error_id", sa.Text(), nullable=False, server_default=""),
        sa.Column("traceback", sa.Text(), nullable=False, server_default=""),
        sa.Column("weight", sa.Double(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("selected", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("treatment", sa.Text(), nullable=False, server_default=""),
        sa.Column("blob_gone", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("assignment_id", name="pk_assignments"),
        sa.ForeignKeyConstraint(
            ["peer_id"], ["peers.peer_id"], name="fk_assignments_peers", deferrable=True, initially="DEFERRED"
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name="fk_assignments_runs", deferrable=True, initially="DEFERRED"
        ),
    )
    op.create_index(
        "ix_assignments_blob", "assignments", ["digest"], sqlite_where=HOLDS_BLOB, postgresql_where=HOLDS_BLOB
    )
    op.create_index("ix_assignments_peer", "assignments", ["peer_id", "state", "role"])
    op.create_index("ix_assignments_state", "assignments", ["state"])
    op.create_index("ix_assignments_round", "assignments", ["run_id", "round"])
    op.create_index(
        "ux_assignments_delivered",
        "assignments",
        ["run_id", "round", "peer_id", "role"],
        unique=True,
        sqlite_where=sa.text("state = 'DELIVERED'"),
        postgresql_where=sa.text("state = 'DELIVERED'"),
    )
    op.create_table(
        "models",
        sa.Column("run_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("version", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("layout_digest", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("blob_gone", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("run_id", "version", name="pk_models"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name="fk_models_runs", deferrable=True, initially="DEFERRED"
        ),
        sa.UniqueConstraint("run_id", "round", name="uq_models_run_id_round"),
    )
    op.create_index(
        "ix_models_blob", "models", ["digest"], sqlite_where=HOLDS_BLOB, postgresql_where=HOLDS_BLOB
    )
    op.create_table(
        "optimizer_states",
        sa.Column("run_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("version", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("name", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("blob_gone", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("run_id", "version", "name", name="pk_optimizer_states"),
        sa.ForeignKeyConstraint(
            ["run_id", "version"],
            ["models.run_id", "models.version"],
            name="fk_optimizer_states_models",
            deferrable=True,
            initially="DEFERRED",
        ),
    )
    op.create_index(
        "ix_optimizer_states_blob",
        "optimizer_states",
        ["digest"],
        sqlite_where=HOLDS_BLOB,
        postgresql_where=HOLDS_BLOB,
    )
    op.create_table(
        "evaluations",
        sa.Column("run_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("version", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("deadline_at", sa.Double(), nullable=False),
        sa.Column("own_pending", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("own_metrics_json", sa.Text(), nullable=False, server_default="{}"),
        sa.Column("metrics_json", sa.Text(), nullable=False, server_default="{}"),
        sa.PrimaryKeyConstraint("run_id", "version", name="pk_evaluations"),
        sa.ForeignKeyConstraint(
            ["run_id", "version"],
            ["models.run_id", "models.version"],
            name="fk_evaluations_models",
            deferrable=True,
            initially="DEFERRED",
        ),
    )
    op.create_index("ix_evaluations_state", "evaluations", ["state"])
    op.create_table(
        "transfers",
        sa.Column("run_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("round", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("peer_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("direction", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "round", "peer_id", "direction", name="pk_transfers"),
    )
    op.create_index("ix_transfers_peer", "transfers", ["peer_id"])
    op.create_table(
        "events",
        sa.Column(
            "sequence",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            autoincrement=False,
        ),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("assignment_id", sa.Text(), nullable=False),
        sa.Column("peer_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("data_json", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_events"),
    )
    op.create_index("ix_events_assignment", "events", ["assignment_id"])
    op.create_index("ix_events_peer", "events", ["peer_id", "sequence"])
    op.create_index("ix_events_run", "events", ["run_id", "sequence"])
