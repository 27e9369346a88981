"""Probe: walks the way to a destination hop by hop, and says at which one it ends, why, and what mends it.

    configuration → name → tcp → proxy → tls → association → service → path → storage → near

A library for the commands, the forwarder's health and the tunnels. It sends no
patient data, stores nothing anywhere, and is bounded: ten seconds a hop, a
minute in all.
"""
