"""Checks the access tokens of `identity` in the services that receive them.

`Verifier` gives the verdict, `Caller` says who it is, `Refused` says why not. The guards for web frameworks are modules of their own
(`identity_verifier.flask`, `.fastapi`, `.django`, `.asgi`, `.wsgi`), as are `.client` (getting tokens), `.testing` (an issuer in memory)
and `.conformance` (is a service strict enough?); none of them is imported with this.
"""

from identity_verifier.caller import Caller
from identity_verifier.refusals import Refused
from identity_verifier.verifier import Verifier

__version__ = "1.0.0"
__all__ = ["Caller", "Refused", "Verifier", "__version__"]
