"""Who is asking, what they may do now, and whether a request passes.

`callers` turns a credential into a caller by the rows of this moment, never by what a token says. `introspection` tells a client about a
token. What decides over a right lives here, so that no dialect is weaker than another.
"""
