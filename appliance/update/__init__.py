"""Update: fetches a signed release, has systemd-sysupdate write it to the other slot, and blesses it or lets the old return.

    fetch      unprivileged: from HTTPS or a stick into a folder; signature, device type, floor, digests (`policy.update`)
    install    root: systemd-sysupdate, which checks signature and digests again; then drain, then reboot
    gate       on trial: services, port, a stored test object, the balance, the uplink; before boot-complete.target
    outcome    what became of the last one, for `dcmgate update status` and an alarm

What is known outlives slots and reboots in `records`; nothing here touches the spool.
"""
