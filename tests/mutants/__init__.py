"""Break one rule at a time, and see whether a test notices: `make mutants`.

Run by hand, not in CI: each mutant costs a run of the tests of its wing. What survives is read, and killed by a test or explained.
"""
