"""What administrators do: use cases, shared word for word by REST and the command line.

Each function is a whole deed: it opens its unit, checks the rules that bind administrators too (the last of them stays, nobody gets what
an administrator may not give), and leaves an audit event that names who did it. `by.By` is who administers, and from where.
"""
