"""Work that outlives its round, what a round aggregates, and when each step of a work was taken."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

CARRIED = sa.text("carried")
# A round that is committed had all its updates in its version.
FOLDED = """
UPDATE assignments SET folded_in = round WHERE state = 'DELIVERED' AND digest <> '' AND EXISTS (
    SELECT 1 FROM rounds
    WHERE rounds.run_id = assignments.run_id AND rounds.number = assignments.round AND rounds.state = 'COMMITTED'
)
"""


def upgrade() -> None:
    op.add_column("rounds", sa.Column("fold_json", sa.Text(), nullable=False, server_default=""))
    for name in ("training_at", "uploading_at", "deadline_at"):
        op.add_column("assignments", sa.Column(name, sa.Double(), nullable=True))
    op.add_column(
        "assignments", sa.Column("folded_in", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
    )
    op.add_column(
        "assignments", sa.Column("carried", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.execute(FOLDED)
    op.create_index(
        "ix_assignments_carried",
        "assignments",
        ["run_id", "state"],
        sqlite_where=CARRIED,
        postgresql_where=CARRIED,
    )
    op.create_index("ix_assignments_folded", "assignments", ["run_id", "folded_in"])
