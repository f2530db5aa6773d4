"""The edge: from bytes to a call of the domain, and from its answer or refusal back to bytes.

An `endpoint` is declared once, as a value, in one of the `dialects`. `head` and `reading` take a request apart, `exchange` takes it through
the endpoint, and two `mounts` carry it: Flask every endpoint, the fast lane the hot ones. No rule of the domain is decided here.
"""
