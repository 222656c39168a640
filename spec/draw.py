"""The state graph as a picture: one box a launch state, and on the arrows the actions that lead from one to another.

What the system does is drawn as arrows; what the environment does changes no launch state, so it is written beside the
state in which it strikes. No program draws this but ours: Mermaid for pages that render it, SVG for everything else.
"""

from collections.abc import Iterable
from html import escape

from nucleus_gvisor.model.conformance import ENVIRONMENT
from nucleus_gvisor.model.states import PATH, LaunchState
from nucleus_gvisor.model.table import ROWS

ORDER = (*PATH, LaunchState.FAILED)
Arrows = dict[tuple[str, str], list[str]]


def quotient(steps: Iterable[tuple[str, str, str]], *, svg: bool = False) -> str:
    """The picture of `steps`, which are (launch state, action, launch state), in Mermaid or as SVG."""
    arrows: Arrows = {}
    strikes: dict[str, list[str]] = {}
    taken = set(steps)
    for action in (*ROWS, *ENVIRONMENT):
        for source, target in [(s, t) for s in ORDER for t in ORDER if (s, action, t) in taken]:
            place = strikes.setdefault(source, []) if action in ENVIRONMENT else arrows.setdefault((source, target), [])
            place.append(action)
    return _svg(arrows, strikes) if svg else _mermaid(arrows, strikes)


def _mermaid(arrows: Arrows, strikes: dict[str, list[str]]) -> str:
    shown = [state for state in ORDER if any(state in ends for ends in arrows) or state in strikes]
    lines = ["stateDiagram-v2", *(f'    state "{state}" as {_identifier(state)}' for state in shown)]
    lines += [f"    [*] --> {_identifier(shown[0])}"] if shown[0] == ORDER[0] else []
    lines += [f"    {_identifier(s)} --> {_identifier(t)}: {_broken(actions)}" for (s, t), actions in arrows.items()]
    for state, actions in strikes.items():
        lines += [f"    note left of {_identifier(state)}", f"        Environment: {_broken(actions)}", "    end note"]
    return "\n".join(lines) + "\n"


def _identifier(state: str) -> str:
    return "".join(filter(str.isalnum, state))


def _broken(actions: list[str]) -> str:
    """Three names on a line."""
    return "<br/>".join(", ".join(actions[n : n + 3]) for n in range(0, len(actions), 3))


# ---- SVG: the path downwards, what fails to the right, the environment to the left ----

LINE, BOX, LEFT, MIDDLE, RIGHT = 17, 150, 260, 340, 760
STYLE = """\
text{font:13px sans-serif;fill:#222}.state{fill:#eef4ff;stroke:#225}.failed{fill:#fff0ee;stroke:#722}
.name{font-weight:bold;text-anchor:middle}.environment{fill:#777;text-anchor:end;font-style:italic}
.strike{stroke:#999;stroke-dasharray:4 3}.arrow{stroke:#225;fill:none}.fails{stroke:#722;fill:none}
"""


def _svg(arrows: Arrows, strikes: dict[str, list[str]]) -> str:
    drawn: list[str] = []
    y = 50
    centre = MIDDLE + BOX // 2
    for place, state in enumerate(PATH):
        after, fails, stays = (arrows.get((state, t), []) for t in (_following(place), ORDER[-1], state))
        left, right = _rows(strikes.get(state, []), 2), _rows(fails, 2)
        deep = max(len(left), len(right), 1 + len(stays)) * LINE
        drawn.append(f'<rect class="state" x="{MIDDLE}" y="{y}" width="{BOX}" height="{deep + 12}" rx="8"/>')
        drawn.append(_text("name", centre, y + LINE, state))
        drawn += [_text("name", centre, y + LINE * (2 + n), f"\u21bb {action}") for n, action in enumerate(stays)]
        if left:
            drawn.append(_arrow("strike", LEFT + 10, y + 14, MIDDLE, y + 14))
            drawn += [_text("environment", LEFT, y + LINE * (1 + n), row) for n, row in enumerate(left)]
        if right:
            drawn.append(_arrow("fails", MIDDLE + BOX, y + deep + 6, RIGHT, y + deep + 6))
            drawn += [_text("", MIDDLE + BOX + 12, y + LINE * (1 + n) - 3, row) for n, row in enumerate(right)]
        bottom = y + deep + 12
        rows = _rows(after, 2)
        y = bottom + max(len(rows), 1) * LINE + 22
        if after:
            drawn.append(_arrow("arrow", centre, bottom, centre, y))
            drawn += [_text("", centre + 10, bottom + LINE * (1 + n), row) for n, row in enumerate(rows)]
    drawn.append(f'<rect class="failed" x="{RIGHT}" y="50" width="{BOX}" height="{y - 100}" rx="8"/>')
    drawn.append(_text("name", RIGHT + BOX // 2, 50 + LINE, ORDER[-1]))
    stays = arrows.get((ORDER[-1], ORDER[-1]), [])
    drawn += [_text("name", RIGHT + BOX // 2, 50 + LINE * (2 + n), f"\u21bb {a}") for n, a in enumerate(stays)]
    wide, head = RIGHT + BOX + 20, '<path d="M0,0 L8,4 L0,8 z"/>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {y}" width="{wide}" height="{y}">',
            f"<style>{STYLE}</style>",
            f'<defs><marker id="head" markerWidth="8" markerHeight="8" refX="8" refY="4" orient="auto">{head}</marker>'
            "</defs>",
            f'<rect width="{wide}" height="{y}" fill="#fff"/>',
            _text("environment", LEFT, 28, "Environment"),
            _text("name", centre, 28, "System"),
            *drawn,
            "</svg>",
            "",
        ]
    )


def _following(place: int) -> str:
    return PATH[place + 1] if place + 1 < len(PATH) else ""


def _rows(actions: list[str], width: int) -> list[str]:
    return [", ".join(actions[n : n + width]) for n in range(0, len(actions), width)]


def _text(kind: str, x: int, y: int, words: str) -> str:
    told = f' class="{kind}"' if kind else ""
    return f'<text{told} x="{x}" y="{y}">{escape(words, quote=False)}</text>'


def _arrow(kind: str, x: int, y: int, to_x: int, to_y: int) -> str:
    return f'<line class="{kind}" x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" marker-end="url(#head)"/>'
