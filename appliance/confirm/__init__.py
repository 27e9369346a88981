"""Confirm: sent is not delivered. An object counts as delivered when its destination's declared proof says so."""

from appliance.confirm.confirmer import Confirmer

__all__ = ["Confirmer"]
