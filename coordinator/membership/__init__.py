"""Who may take part, and who is there: enrolment, sessions, presence."""
