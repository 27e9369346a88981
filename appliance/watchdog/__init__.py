"""The upper links of the watchdog chain: what happens when restarts do not help, and what each boot knows of the last.

What decides is pure (`policy.escalation`, `policy.resets`); here are the places where a budget outlives a reboot, and
the traces that a reset leaves behind.
"""
