"""What the box says of itself: the log, notifications to systemd, alarms by mail and webhook."""
