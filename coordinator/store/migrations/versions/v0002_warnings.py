"""What must not be silent of a run, once for each cause."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    op.create_table(
        "warnings",
        sa.Column("run_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("cause", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("peer_id", sa.Text(), nullable=False, server_default=""),
        sa.Column("times", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("first_round", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("last_round", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "cause", name="pk_warnings"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name="fk_warnings_runs", deferrable=True, initially="DEFERRED"
        ),
    )
