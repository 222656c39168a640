"""Fail: unmake all that the launch has made, whatever step it had reached."""

from contextlib import ExitStack

from nucleus_gvisor.model.errors import StepFailed
from nucleus_gvisor.runtime.cleanup import Place
from nucleus_gvisor.runtime.steps.resolve import Judged
from nucleus_gvisor.runtime.steps.stage import Staged
from nucleus_gvisor.runtime.supervisor import Supervisor


def unwind(child: Supervisor | None, staged: Staged | None, judged: Judged | None, place: Place | None) -> None:
    """Child, image, judged descriptors, directory and lock, in the reverse of the order in which they came.

    StepFailed names what could not be removed; the rest is gone all the same.
    Spec: GVisorRuntime!Fail.
    """
    with ExitStack() as parts:  # whatever becomes of one, the others go as well; both errors are kept
        if place is not None:
            parts.callback(_remove, place)
        for part in (judged, staged):
            if part is not None:
                parts.callback(part.close)
        if child is not None:
            parts.callback(child.end)


def _remove(place: Place) -> None:
    path, problems = place.path, list(place.remove())
    place.close()
    if problems:
        raise StepFailed(
            "left behind",
            step="Fail",
            path=path,
            observed="; ".join(map(str, problems)),
            hint="the next launch here collects it",
            expected="an empty place",
        ) from problems[0]
