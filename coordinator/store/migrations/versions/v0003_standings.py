"""Where peers stand in a run, the pause after a skipped round, and which process of a peer's daemon it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    op.add_column("runs", sa.Column("rest_until", sa.Double(), nullable=True))
    op.add_column(
        "runs", sa.Column("rest_present", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
    )
    op.add_column("peers", sa.Column("instance", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "standings",
        sa.Column("run_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("peer_id", sa.Text(), nullable=False, autoincrement=False),
        sa.Column("error_id", sa.Text(), nullable=False, server_default=""),
        sa.Column("cause", sa.Text(), nullable=False, server_default=""),
        sa.Column("round", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("in_row", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("aside", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("instance", sa.Text(), nullable=False, server_default=""),
        sa.Column("times", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("run_id", "peer_id", name="pk_standings"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name="fk_standings_runs", deferrable=True, initially="DEFERRED"
        ),
        sa.ForeignKeyConstraint(
            ["peer_id"], ["peers.peer_id"], name="fk_standings_peers", deferrable=True, initially="DEFERRED"
        ),
    )
    op.create_index("ix_standings_peer", "standings", ["peer_id"])
