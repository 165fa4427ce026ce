"""What one server accepts from its callers, known or not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`calls_max`: calls under way at once; more are refused. Higher: more memory, some 100 KiB a call. Callers that
    are not known (`Route.identify`) have half of them, and an eighth for each method that streams, which may last for
    ever; where those are taken, the connection with the most makes room for others. `strange_calls_of_connection_max`:
    theirs over one connection, of each such method and of all others. `strange_bytes_max`: of their requests that are
    being answered. `probes_max`: health checks, besides all these.

    `bulk_calls_max`: bulk calls at once, of known callers, and a quarter as many of strangers; more wait, unread, so
    that flow control holds them. Each costs some MiB. A known caller that is not at work (`Route.present`) is a
    stranger here. `bulk_calls_of_caller_max`: of one caller, and of one connection of strangers. While others wait for
    a turn, who was waited for `turn_seconds` loses its own below `turn_bytes_per_second`, the slowest first; it resumes
    where it stood. Higher: whose line is slow is sent to the end of the queue more often.

    `first_reads_max`: calls whose first message is read at once: before it is here nobody knows who calls or what for.
    With the largest message of any method it bounds the memory of strangers. `first_reads_of_connection_max`: of one
    connection. `first_waiting_max`: calls that wait for that. `first_seconds`: a caller has so long to say what it
    wants, and `first_seconds_crowded` while others wait to be read.

    `bytes_per_second_min` over `window_seconds`: who sends or reads bulk slower is cut off, and may resume. Only the
    time counts in which this side waits for the caller. A message has to come whole within the window: chunks of 16 KiB
    make it over a line of a kilobyte a second. Lower: a slow or hostile caller holds a turn for longer.

    `answer_seconds_max`: a call that streams neither way is given up after it.
    """

    calls_max: int = 8192
    strange_calls_of_connection_max: int = 64
    strange_bytes_max: int = 32 << 20
    probes_max: int = 64
    bulk_calls_max: int = 64
    bulk_calls_of_caller_max: int = 8
    turn_seconds: float = 30.0
    turn_bytes_per_second: float = 65536.0
    first_reads_max: int = 64
    first_reads_of_connection_max: int = 16
    first_waiting_max: int = 4096
    first_seconds: float = 10.0
    first_seconds_crowded: float = 0.5
    bytes_per_second_min: float = 1024.0
    window_seconds: float = 30.0
    answer_seconds_max: float = 3600.0
