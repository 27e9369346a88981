"""Tunnel: ports carried over mutual TLS by stunnel, one process for each, whose configuration is made and checked here.

    setup     the configuration of one tunnel, from its entry and the certificate store
    place     its folder in `[control] run`: the configuration, who runs it, SIGHUP
    program   stunnel itself: where it is, whether it takes a configuration, its command line
    pins      certificates of the other end that a tunnel is bound to
    runner    children for `dcmgate run`; on a box, systemd runs `dcmgate tunnel ID`, which becomes stunnel
    watch     the keeper's part: takes up what has changed, proves by traffic that a tunnel is up
    health    what is published of it, and the alarms
"""
