"""The launch as the specification has it: states, facts, guards, table, machine, records. No effects."""

from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.machine import LaunchMachine, fresh
from nucleus_gvisor.model.record import TransitionRecord, parse_all
from nucleus_gvisor.model.replay import complete, fold
from nucleus_gvisor.model.states import PATH, TERMINAL, LaunchState
from nucleus_gvisor.model.steps import NoSteps, Steps
from nucleus_gvisor.model.table import ROWS, TRANSITIONS

__all__ = [
    "PATH",
    "ROWS",
    "TERMINAL",
    "TRANSITIONS",
    "Facts",
    "LaunchMachine",
    "LaunchState",
    "NoSteps",
    "Steps",
    "TransitionRecord",
    "complete",
    "fold",
    "fresh",
    "parse_all",
]
