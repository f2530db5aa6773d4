"""What a token costs, here and elsewhere: the service, its peers and the raw loops, measured in one run.

`python -m bench` starts everything, pins each server to one core and the load (wrk) to another, goes round them at
least five times, and prints medians and ratios. Nothing here is imported by `identity`.
"""
