"""Which source code of the task the coordinator and its peers worked with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision: str | None = "0003"


def upgrade() -> None:
    for table in ("runs", "assignments"):
        op.add_column(table, sa.Column("source_digest", sa.Text(), nullable=False, server_default=""))
