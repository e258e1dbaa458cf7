"""Label selectors as Kubernetes has them: parsing, matching and the form an API query takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lbless_api.fields import Invalid, items, mapping, text


@dataclass(frozen=True, slots=True)
class Requirement:
    """One matchExpressions entry."""

    key: str
    operator: str
    values: tuple[str, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels fulfil it; an absent key fulfils NotIn and DoesNotExist."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """A metav1.LabelSelector. The empty one matches everything, as everywhere in Kubernetes."""

    labels: tuple[tuple[str, str], ...] = ()
    expressions: tuple[Requirement, ...] = ()

    @classmethod
    def parse(cls, value: object, where: str) -> LabelSelector:
        """Read the API's form; raises Invalid naming the field `where`."""
        selector = mapping(value, where)
        labels = tuple(sorted(parse_labels(selector.get("matchLabels", {}), f"{where}.matchLabels").items()))
        expressions = []
        for index, entry in enumerate(
            items(selector.get("matchExpressions", []), f"{where}.matchExpressions")
        ):
            here = f"{where}.matchExpressions[{index}]"
            expression = mapping(entry, here)
            operator = text(expression.get("operator"), f"{here}.operator")
            values = tuple(
                text(v, f"{here}.values") for v in items(expression.get("values") or [], f"{here}.values")
            )
            if operator not in {"In", "NotIn", "Exists", "DoesNotExist"}:
                raise Invalid(
                    f"{here}.operator {operator[:40]!r} is unknown: use In, NotIn, Exists or DoesNotExist."
                )
            if (operator in {"In", "NotIn"}) != bool(values):
                raise Invalid(f"{here}.values must be given for In and NotIn, and only for these.")
            expressions.append(Requirement(text(expression.get("key"), f"{here}.key"), operator, values))
        return cls(labels, tuple(expressions))

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        return all(labels.get(k) == v for k, v in self.labels) and all(
            e.matches(labels) for e in self.expressions
        )

    def __str__(self) -> str:
        parts = [f"{k}={v}" for k, v in self.labels]
        for e in self.expressions:
            match e.operator:
                case "Exists":
                    parts.append(e.key)
                case "DoesNotExist":
                    parts.append(f"!{e.key}")
                case _:
                    parts.append(f"{e.key} {e.operator.lower()} ({','.join(e.values)})")
        return ",".join(parts)


def parse_labels(value: object, where: str) -> dict[str, str]:
    """Read a map of strings, as labels, annotations and nodeSelector are; raises Invalid."""
    return {text(k, where): text(v, f"{where}.{k}") for k, v in mapping(value, where).items()}
