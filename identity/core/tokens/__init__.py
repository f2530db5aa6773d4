"""What a login hands out: sessions, and the claims of access tokens.

Every login is one row of `sessions`, whatever dialect it came by; bearer, access token and refresh token are views of it. `claims` writes
and reads access tokens. `generations` writes and reads refresh tokens, `refresh` exchanges one for its successor.
"""
