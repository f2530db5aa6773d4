"""Users: their accounts, addresses and memberships.

What a user is and has. How they prove themselves stands in `proofs` and `signin`; what administrators do with them in `admin`.
"""
