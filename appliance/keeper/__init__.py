"""Keeper: confirms, retires, scrubs, raises alarms, puts configurations in force, and does what persons ask for."""

from appliance.keeper.keeper import Keeper

__all__ = ["Keeper"]
