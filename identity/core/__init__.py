"""The domain: what an identity is, in wings of one word each. No wire format, no environment, no setting is read here.

    record   what happened, and why something was refused       mail     letters and how they leave
    proofs   codes, guesses, attempts                            people   accounts, addresses, tenants
    tokens   sessions and the claims of tokens                   clients  applications, secrets, key pairs
    signin   how a person becomes a session                      access   who is asking, and what passes
    admin    what administrators do                              upkeep   what must happen without anybody asking

A wing imports from the wings below it only: admin, then signin and access, clients, tokens, people, proofs, record and mail.
"""
