"""What every proof of identity shares: codes sent by mail, guesses that are counted before they are looked at, and attempts.

A guess is reserved in a unit of its own before it is evaluated, and given back if it was right. So a crash counts as a failure, and
any number of parallel guesses is bounded.
"""
