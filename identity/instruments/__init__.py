"""The instruments: parts that live as long as the process and never see a `Runtime`.

Vault and key ring, hashing, opaque secrets, limits and windows, what is noted now and written later, and the ways out by mail. What we
use for cryptography, password hashing, Redis and SMTP is imported here only. They know the database, but nothing of users or sessions.
"""
