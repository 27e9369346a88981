"""Sockets that the stages share: listening, connecting, kicks, and the archive folder as a place to deliver to."""
