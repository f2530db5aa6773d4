"""How requests arrive: Flask for every endpoint, the fast lane for the hot ones, and the connections of the server below both."""
