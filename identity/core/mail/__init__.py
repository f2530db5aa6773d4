"""Mail: `letters` are what we write, `outbox` brings them out.

A letter is queued in the transaction of the deed that it tells of, sealed, and delivered by the background loop until it is accepted.
"""
