"""The result of a pipeline run as a person reads it in the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from flows.pipeline.report_specific import p_of, printed_gamma, printed_specific


def printed(outcome: dict[str, Any]) -> str:
    """The result as a person reads it in the terminal."""
    lines = ["", outcome["demonstration"]] if outcome["demonstration"] else []
    lines += [f"warning: {text}" for text in outcome["carrier_warnings"]]
    for target in outcome["targets"]:
        lines += ["", *_printed_target(target)]
    if gamma := [*printed_gamma(outcome)]:
        lines += ["", *gamma]
    if outcome["tests"]:
        lines += ["", outcome["tests"]["about"]]
    lines += ["", *(f"note: {text}" for text in outcome["mismatches"]), f"report: {outcome['report']}"]
    return "\n".join(lines)


def _printed_target(target: dict[str, Any]) -> Iterator[str]:
    yield from printed_specific(target)
    kinds = (("margin", ""), ("rate", " of all answers asked"), ("rate_readable", " of readable answers alone"))
    for name, of in kinds:
        metric = target if name == "margin" else target[name]
        effect = metric["effect"]
        if effect is None and name == "rate_readable" and target["rate"]["effect"] is None:
            continue  # nothing was sampled, as the line before says
        if effect is None:
            yield f"  {name:13} missing: {metric['reason']}"
            continue
        scale, unit = (1, "nats") if name == "margin" else (100, "points")
        means = ", ".join(
            f"{arm} {metric[arm] * scale:+.2f}"
            for arm in ("base", "teacher", "control", "student")
            if metric[arm] is not None
        )
        yield f"  {name:13} effect {effect['estimate'] * scale:+.2f} {unit}{of}  ({means}), {target['teachers']}"
        yield f"                95 % interval, these questions   {_range(effect, scale)}"
        yield f"                95 % interval, questions too     {_range(effect, scale, '_questions')}"
        yield f"                {effect['seeds']} pairs x {effect['questions']} questions{p_of(effect)}"
    yield from (f"  note: {note}" for note in target["answer_notes"])
    others = [
        f"{other} {by['effect']['estimate']:+.2f}"
        for other, by in target["off_target"].items()
        if by["effect"] is not None
    ]
    if others:
        yield f"  other words' margins moved (nats): {', '.join(others)}"
    for point in target["dose"]:
        if point["effect"] is not None:
            effect = point["effect"]
            yield f"  after {point['updates']:4} updates {effect['estimate']:+.2f} nats, {_range(effect)}{p_of(effect)}"
    for arm in target["arms"][1:]:
        yield _printed_arm(arm)
    yield f"  {target['about_units']}"


def _printed_arm(arm: dict[str, Any]) -> str:
    name = f"  {arm['name']:24} expected {arm['expected']:9}"
    effect, change = arm["effect"], arm["change"]
    if effect is None:
        return f"{name} {arm['reason']}"
    against = f"; against the main arm {change['estimate']:+.2f}, {_range(change)}" if change else ""
    found = arm["equivalence"]
    nothing = f"; {found['verdict']} (bound {found['bound']:.2f})" if found else ""
    return f"{name} {effect['estimate']:+.2f} nats, {_range(effect)}{p_of(effect)}{against}{nothing}"


def _range(effect: Mapping[str, Any], scale: float = 1, which: str = "") -> str:
    low, high = effect[f"low{which}"], effect[f"high{which}"]
    if low is None or high is None:
        return f"no interval: {effect['reason']}"
    return f"{low * scale:+.2f} to {high * scale:+.2f}"
