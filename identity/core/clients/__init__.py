"""Machine clients: applications and the key pairs of users, their secrets and what they earn.

An application has a client id, a small number and at most two live secrets. Its tokens are stateless: no row and no write on success.
`expiry` warns before a credential ends.
"""
