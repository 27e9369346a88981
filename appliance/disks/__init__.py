"""The disks of the box: `system` looks at them, `spool` makes and opens the spool (as root), `found` is what all may read."""
