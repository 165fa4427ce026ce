"""Since when a peer prepares, and when it was done."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    for name in ("preparing_at", "prepared_at"):
        op.add_column("assignments", sa.Column(name, sa.Double(), nullable=True))
