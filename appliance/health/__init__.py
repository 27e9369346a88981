"""Health by traffic: each destination is proven to be there by what gets through, and by a C-ECHO or a canary where nothing
else does. Runs beside the forwarder, which owns the connections outwards; the keeper raises the alarms.
"""
