"""Receive: takes associations from scanners and has every instance durable in the spool before it says 0x0000.

    Receiver      one to a box: listeners, configuration, tick
     ├─ Front     one thread: accepts, keeps what has not spoken yet, hands on what has
     ├─ Crew      worker processes, where there is more than one
     └─ Worker    one to a process: Intake, Guard, and a thread for each association
         └─ Association   UpperLayer, negotiation, services

It knows nothing of what becomes of an object: it meets the router in the spool
and its ledger, and kicks the forwarder after each commit.
"""
