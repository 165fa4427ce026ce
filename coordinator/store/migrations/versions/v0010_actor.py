"""Who caused an event; of those that there are nobody knows any more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision: str | None = "0009"


def upgrade() -> None:
    op.add_column("events", sa.Column("actor", sa.Text(), nullable=False, server_default=""))
