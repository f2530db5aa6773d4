"""One module for each dialect: its routes, its schemas, its shape of refusals. They never import each other.

A dialect that is too long for one module has its `Dialect` and what its parts share in `<name>_dialect`, its endpoints in `<name>_<part>`,
and `<name>` imports the parts: whoever imports that has all of it.

s7risk       A: tokens for users and applications
risksage     B: login with a second factor, refresh, passwords
threatwinds  C: sessions by emailed code, addresses, key pairs, users
signalx      D: GraphQL login
oauth        E: OAuth 2.0
public       F and I: keys, metadata, health
status       J: the status lists
gate         G: may this request pass
admin        H: administration
tenant       L: a tenant administered by its owners
welcome      M: the pages behind mailed links, the front page
documentation, inbox   what is known of all of them; the mails of development
"""
