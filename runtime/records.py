"""The verbs `records list` and `records prune`."""

import argparse
import json
import time
from datetime import UTC, datetime

from nucleus_gvisor.model.errors import shown
from nucleus_gvisor.runtime.retention import DAY, LEDGER, Kept, Pruned, opened
from nucleus_gvisor.runtime.retention import prune as remove

__all__ = ["LEDGER", "list_", "prune"]


def list_(given: argparse.Namespace) -> int:
    """Print the records of the base that the filters leave."""
    now = time.time()
    if not given.json:
        print(f"{'LAST LINE':20} {'STATE':10} {'BYTES':>8}  {'ID':32}  STAYS, WHATEVER THE BOUNDS")
    with opened(given.artifact_base) as store:
        for kept in store.kept():
            if given.id not in (None, kept.container) or (given.older and now - kept.changed <= given.older * DAY):
                continue
            found = store.last(kept)
            last, head = found or (None, None)
            state = None if last is None else last.dest
            if given.state not in (None, state):
                continue
            why = store.protects(kept, last)
            if given.json:
                launch = None if last is None else last.launch
                told = {**_described(kept), "launch": launch, "state": state, "head": head, "protected": why or None}
                print(json.dumps(told))
            else:
                when = datetime.fromtimestamp(kept.changed, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                print(f"{when} {shown(state or '?'):10} {kept.size:8}  {kept.container:32}  {why}".rstrip())
    return 0


def prune(given: argparse.Namespace) -> int:
    """Remove what is over the bounds, and print what was removed, or would be."""
    for one in remove(given.keep_records, given.artifact_base, dry_run=given.dry_run):
        print(json.dumps(_removed(one)) if given.json else f"{one.kept.name}: over the bound of {one.why}")
    return 0


def _described(kept: Kept) -> dict[str, object]:
    changed = datetime.fromtimestamp(kept.changed, UTC).isoformat(timespec="milliseconds")
    return {"file": kept.name, "id": kept.container, "bytes": kept.size, "time": changed.replace("+00:00", "Z")}


def _removed(one: Pruned) -> dict[str, object]:
    return {**_described(one.kept), "launch": one.last.launch, "head": one.head, "why": one.why}
