"""In which role each peer of a round takes part, where it is not the usual one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("rounds", sa.Column("roles_json", sa.Text(), nullable=False, server_default="{}"))
