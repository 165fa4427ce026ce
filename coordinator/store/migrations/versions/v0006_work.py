"""What is asked of a peer as one value, and whether it is of an evaluation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

DELIVERED = sa.text("state = 'DELIVERED'")
_OBJECT = {
    "sqlite": "json_object('base', base_version, 'groups', json('[]'), 'params', json('{}'), 'role', role)",
    "postgresql": (
        "CAST(json_build_object('base', base_version, 'groups', json_build_array(), 'params', CAST('{}' AS json), "
        "'role', role) AS text)"
    ),
}


def upgrade() -> None:
    op.add_column("assignments", sa.Column("work_json", sa.Text(), nullable=False, server_default=""))
    op.add_column(
        "assignments", sa.Column("evaluation", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    made = _OBJECT[op.get_bind().dialect.name]
    op.execute(f"UPDATE assignments SET work_json = {made}, evaluation = (role = 'evaluate')")
    for name in ("ix_assignments_peer", "ux_assignments_delivered"):
        op.drop_index(name, "assignments")
    for name in ("role", "base_version"):
        op.drop_column("assignments", name)
    op.create_index("ix_assignments_peer", "assignments", ["peer_id", "state", "evaluation"])
    op.create_index(
        "ux_assignments_delivered",
        "assignments",
        ["run_id", "round", "peer_id", "evaluation"],
        unique=True,
        sqlite_where=DELIVERED,
        postgresql_where=DELIVERED,
    )
