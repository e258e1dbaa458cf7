"""Which nodes may own buckets of a ClusterIP, and why the others may not.

Pure. A verdict is a node's standing and its cause; what follows for the assignment is the decision's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from ipaddress import IPv4Address

from lbless_api import EXCLUDE_LABEL
from lbless_api.capabilities import demand, keeps_flows, refusal
from lbless_api.clusterip import PodWorkload, Spec, Weighting
from lbless_api.fields import Invalid
from lbless_api.interfaces import Interface, choose_interface, own_address
from lbless_api.node import EngineReport, NodeStatus, active_engine
from lbless_operator.agents import Freshness
from lbless_operator.conditions import shorten
from lbless_operator.facts import DEFAULT_WEIGHT, NodeFact, parse_weight
from lbless_operator.phrases import LISTED, name_nodes
from lbless_operator.segment import SILENT, Segment

MAX_DETAIL = 300
"""Characters of what a node says of its engine: many nodes may have as many things to say."""


class Standing(Enum):
    """What a node may do."""

    ELIGIBLE = "eligible"
    PINNED = "pinned"
    """It keeps what it has and gets no more: it may be serving, and cannot be told otherwise."""
    GONE = "gone"
    """It cannot be serving: its buckets move."""
    OUT = "out"
    """Not eligible, and it can be told: its buckets move, it leaves the assignment."""


class Cause(StrEnum):
    """Why a node is not eligible."""

    NOT_SELECTED = "NotSelected"
    EXCLUDED = "Excluded"
    WEIGHT_ZERO = "WeightZero"
    TAINTED = "Tainted"
    NO_READY_POD = "NoReadyPod"
    NO_READY_ENDPOINT = "NoReadyEndpoint"
    NO_AGENT = "NoAgent"
    AGENT_SILENT = "AgentSilent"
    NO_MATCHING_INTERFACE = "NoMatchingInterface"
    NO_CARRIER = "NoCarrier"
    ENGINE_INCAPABLE = "EngineIncapable"
    NODE_NOT_READY = "NodeNotReady"
    NODE_DELETED = "NodeDeleted"
    DEAD_ON_SEGMENT = "DeadOnSegment"
    SILENT_YET_HEARD = "SilentYetHeard"
    JOINING = "Joining"


_HAS, _IS, _DOES = ("has", "have"), ("is", "are"), ("does", "do")
_DESCRIPTIONS = {
    Cause.NOT_SELECTED: (_DOES, "not match nodeSelector {selector}"),
    Cause.EXCLUDED: (_HAS, "the label {label}"),
    Cause.WEIGHT_ZERO: (_HAS, "weight 0"),
    Cause.TAINTED: (_IS, "tainted NoExecute"),
    Cause.NO_READY_POD: (_HAS, "no ready {workload}"),
    Cause.NO_READY_ENDPOINT: (_HAS, "no ready {workload}"),
    Cause.NO_AGENT: (_HAS, "no lbless agent"),
    Cause.AGENT_SILENT: (_HAS, "a silent lbless agent"),
    Cause.NO_MATCHING_INTERFACE: (_HAS, "no interface {interface}"),
    Cause.NO_CARRIER: (_HAS, "no carrier on the interface of {ip}"),
    Cause.ENGINE_INCAPABLE: (_HAS, "no engine that can serve it"),
    Cause.NODE_NOT_READY: (_IS, "NotReady with a silent lbless agent"),
    Cause.NODE_DELETED: (_IS, "deleted"),
    Cause.DEAD_ON_SEGMENT: (_IS, "counted dead on the segment"),
    Cause.SILENT_YET_HEARD: (_HAS, "a silent lbless agent and yet living heartbeats"),
    Cause.JOINING: (_IS, "joining the segment"),
}


@dataclass(frozen=True, slots=True)
class Readiness:
    """A workload: ready pods or endpoints by node, and whether any belongs to it at all, ready or not."""

    ready: Mapping[str, int] = field(default_factory=dict)
    exists: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """Everything known of one node. `node` None: its Node object is deleted."""

    name: str
    node: NodeFact | None
    freshness: Freshness
    report: NodeStatus | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A node's standing. `weight` and `incarnation` are those of an eligible one.

    `selected`: the ClusterIP's nodeSelector matches it, so that it may stay named while it is gone.
    `detail`: the cause in the words of its engine, where that is it. `seat`: the interface on which the address
    is, or would be, as its agent reported it last; None where no heartbeats run on it. `unfenced`: why an
    eligible one can have no lease, so that others do not take over from it by themselves; in the words of its
    engine. `address`: its own on that interface, None where that is not known. `lives`: the life that the present
    assignment names is not over, so that it can finish what connections it has; `undrained`: why its engine cannot.
    """

    node: str
    standing: Standing
    cause: Cause | None = None
    weight: int = 0
    incarnation: int = 0
    selected: bool = False
    detail: str = ""
    seat: Interface | None = None
    unfenced: str = ""
    address: IPv4Address | None = None
    lives: bool = True
    undrained: str = ""


def judge(
    spec: Spec,
    candidate: Candidate,
    readiness: Readiness,
    *,
    named: bool,
    incarnation: int = 0,
    segment: Segment = SILENT,
    first: bool = False,
) -> Verdict:
    """Return the verdict on one node; `named` says whether the present assignment names it, in `incarnation`.

    `first`: nothing is assigned yet. Who listens is then given its share at once: nobody can have it already, and the
    epoch comes into use when it has listened.
    """
    interface = choose(spec, candidate.report)
    seat = interface if interface and interface.segment else None
    life = seat.incarnation if seat else incarnation
    over = (seat is not None or named) and segment.counts_dead(candidate.name, life)
    keeps = named and life == incarnation
    verdict = _judge(
        spec,
        candidate,
        interface,
        readiness,
        named=named,
        over=over,
        keeps=keeps,
        segment=segment,
        first=first,
    )
    is_another = named and interface is not None and interface.incarnation != incarnation
    return replace(
        verdict,
        seat=seat,
        address=own_address(spec.ip, interface) if interface else None,
        lives=verdict.standing is not Standing.GONE and not over and not is_another,
        undrained=_undrained(spec, candidate.report),
    )


def _judge(
    spec: Spec,
    candidate: Candidate,
    interface: Interface | None,
    readiness: Readiness,
    *,
    named: bool,
    over: bool,
    keeps: bool,
    segment: Segment,
    first: bool,
) -> Verdict:
    """Everything but what follows from the interface alone. `over`: its life on the segment is; `keeps`: the assignment
    names it in this one."""
    node = candidate.node
    if node is None:
        return Verdict(candidate.name, Standing.GONE, Cause.NODE_DELETED)
    selected = is_selected(spec, node)
    fresh = candidate.freshness is Freshness.FRESH
    if over and not segment.hears(node.name):
        # Where Kubernetes takes it for alive, a person should know.
        why = Cause.DEAD_ON_SEGMENT if fresh or node.ready else Cause.NODE_NOT_READY
        return Verdict(node.name, Standing.GONE, why, selected=selected)
    if not fresh:
        heard = segment.hears(node.name)
        return _judge_unheard(node, candidate.freshness, selected=selected, named=named, heard=heard)
    weight = parse_weight(node.weight)
    weight = DEFAULT_WEIGHT if weight is None else weight
    if spec.workload and spec.weighting is Weighting.READY_PODS:
        weight *= readiness.ready.get(node.name, 0)
    cause = _find_cause(spec, node, candidate.report, interface, readiness)
    # A fresh agent that has said nothing yet will: until then it keeps what it has, as after its restart.
    standing = Standing.PINNED if cause is Cause.NO_AGENT and named else Standing.OUT
    detail = ""
    if cause in {None, Cause.NO_AGENT} and candidate.report:
        detail = _incapability(spec, candidate.report.engines)
        cause = Cause.ENGINE_INCAPABLE if detail else cause
    if cause is None and interface:
        # A new life gets nothing before it may serve; one that has its share keeps it through a bad moment.
        said = interface.segment
        may_begin = said is None or said.is_reliable or (first and said.only_listens)
        if over or not (keeps or may_begin):
            standing = Standing.PINNED if named else Standing.OUT
            return Verdict(node.name, standing, Cause.JOINING, selected=selected)
        return Verdict(
            node=node.name,
            standing=Standing.ELIGIBLE,
            weight=weight,
            incarnation=interface.incarnation,
            selected=selected,
            unfenced=_unfenced(candidate.report),
        )
    return Verdict(node.name, standing, cause, selected=selected, detail=detail)


def _judge_unheard(
    node: NodeFact, freshness: Freshness, *, selected: bool, named: bool, heard: bool
) -> Verdict:
    """A node whose agent does not hear: never rob one that may still be serving. `heard`: other nodes hear it."""
    dead = freshness is not Freshness.UNKNOWN and not node.ready
    if dead and not heard:
        return Verdict(node.name, Standing.GONE, Cause.NODE_NOT_READY, selected=selected)
    if named:
        cause = Cause.SILENT_YET_HEARD if dead else Cause.AGENT_SILENT
        return Verdict(node.name, Standing.PINNED, cause, selected=selected)
    if not selected:
        return Verdict(node.name, Standing.OUT, Cause.NOT_SELECTED)
    cause = Cause.AGENT_SILENT if freshness is Freshness.SILENT else Cause.NO_AGENT
    return Verdict(node.name, Standing.OUT, cause, selected=selected)


def choose(spec: Spec, report: NodeStatus | None) -> Interface | None:
    """The interface that carries the address, or would; None where the node has none, or has not said."""
    try:
        return choose_interface(spec.ip, spec.interfaces, report.interfaces) if report else None
    except Invalid:
        return None


def _find_cause(
    spec: Spec,
    node: NodeFact,
    report: NodeStatus | None,
    interface: Interface | None,
    readiness: Readiness,
) -> Cause | None:
    """Why a node that can be told is out, but for its engine, else None.

    What a person did comes first, then the workload, then what the agent reports. A cordoned node
    (spec.unschedulable) is not a dead node: it keeps its share until it is drained or fails.
    """
    weightless = parse_weight(node.weight) == 0
    unready = spec.workload is not None and not readiness.ready.get(node.name)
    by_hand = {
        Cause.EXCLUDED: EXCLUDE_LABEL in node.labels,
        Cause.NOT_SELECTED: not is_selected(spec, node),
        Cause.WEIGHT_ZERO: weightless,
        Cause.TAINTED: bool(node.no_execute),
        Cause.NO_READY_POD: unready and isinstance(spec.workload, PodWorkload),
        Cause.NO_READY_ENDPOINT: unready and not isinstance(spec.workload, PodWorkload),
        # One whose engine fails so that it cannot run says no more than that: it cannot let go of anything.
        Cause.NO_AGENT: report is None or not report.interfaces,
        Cause.NO_MATCHING_INTERFACE: interface is None,
        Cause.NO_CARRIER: interface is not None and not interface.carrier,
    }
    return next((cause for cause, holds in by_hand.items() if holds), None)


def _incapability(spec: Spec, engines: Iterable[EngineReport]) -> str:
    """Why a node's engine cannot serve the ClusterIP, in one sentence; empty where it can, or has not said."""
    engine = active_engine(engines)
    if engine is None:
        return ""
    if not engine.available:
        why = shorten(engine.message.rstrip("."), MAX_DETAIL) or "its agent does not say why"
        return f"the {engine.name} engine does not work there: {why}."
    return refusal(engine.name, engine.capabilities, demand(spec)) or ""


def _unfenced(report: NodeStatus | None) -> str:
    engine = active_engine(report.engines) if report else None
    return shorten(engine.unfenced, MAX_DETAIL) if engine else ""


def _undrained(spec: Spec, report: NodeStatus | None) -> str:
    """Why a node's engine finishes no connections, in one sentence; empty where it does, or has not said."""
    engine = active_engine(report.engines) if report else None
    if engine is None or not engine.capabilities or keeps_flows(engine.capabilities, demand(spec)):
        return ""
    why = shorten(engine.message.rstrip("."), MAX_DETAIL)
    return f"the {engine.name} engine cannot finish connections of buckets that it gives up{': ' * bool(why)}{why}."


def is_selected(spec: Spec, node: NodeFact) -> bool:
    """Whether nodeSelector matches and the node is not kept out of load balancing by its label."""
    return EXCLUDE_LABEL not in node.labels and all(
        node.labels.get(key) == value for key, value in spec.node_selector.items()
    )


def describe(cause: Cause, spec: Spec, *, plural: bool = False) -> str:
    """What goes after "node n1" or, in the plural, after "3": "has no ready pod matching app=web"."""
    verbs, rest = _DESCRIPTIONS[cause]
    globs = ", ".join(spec.interfaces)
    filled = rest.format(
        selector=_print(spec.node_selector),
        label=EXCLUDE_LABEL,
        workload=_workload(spec),
        ip=spec.ip,
        interface=f"that matches spec.interfaces {globs}" if globs else f"whose subnet contains {spec.ip}",
    )
    return f"{verbs[plural]} {filled}"


def explain_incapable(verdicts: Iterable[Verdict]) -> str:
    """Why nodes are left out for their engine, one sentence for all with the same; empty if none is.

    "Nodes n3 and n4: the iptables engine cannot do 256 buckets: use 1 to 16."
    """
    return _explain_alike((v.detail, v.node) for v in verdicts if v.cause is Cause.ENGINE_INCAPABLE)


def explain_unfenced(verdicts: Iterable[Verdict]) -> str:
    """From which nodes no other takes over by itself, and why; empty if there is none.

    "Others do not take over within a second from nodes that can have no lease. Node n3: nftables is missing …"
    """
    why = _explain_alike((v.unfenced, v.node) for v in verdicts if v.unfenced)
    return f"Others do not take over within a second from nodes that can have no lease. {why}" if why else ""


def explain_undrained(verdicts: Iterable[Verdict], named: Collection[str]) -> str:
    """In which of the `named` nodes connections end with a move, and why; empty if there is none."""
    why = _explain_alike((v.undrained, v.node) for v in verdicts if v.undrained and v.node in named)
    return (
        f"{why} Use another engine there, or set spec.drainTimeoutSeconds to 0 if they may end."
        if why
        else ""
    )


def _explain_alike(said_of: Iterable[tuple[str, str]]) -> str:
    """Sentences about nodes, each once with all the nodes that it is said of."""
    alike: dict[str, list[str]] = {}
    for sentence, node in said_of:
        alike.setdefault(sentence, []).append(node)
    said = [f"N{name_nodes(nodes)[1:]}: {detail}" for detail, nodes in alike.items()]
    rest = sum(len(nodes) for nodes in list(alike.values())[LISTED:])
    return " ".join(
        [*said[:LISTED], *([f"{rest} more nodes have other troubles of that kind."] if rest else [])]
    )


def explain_none(spec: Spec, verdicts: Collection[Verdict], readiness: Readiness, namespace: str) -> str:
    """One sentence why no node is eligible."""
    causes = Counter(v.cause for v in verdicts if v.cause and v.cause is not Cause.NODE_DELETED)
    total = causes.total()
    if not total:
        return "The cluster has no nodes."
    nodes = f"{total} node{'' if total == 1 else 's'}"
    if len(causes) == 1 and (sentence := _explain_all(next(iter(causes)), spec, nodes)):
        return sentence
    if (
        spec.workload
        and not readiness.exists
        and causes.keys() & {Cause.NO_READY_POD, Cause.NO_READY_ENDPOINT}
    ):
        return _explain_workload(spec, namespace)
    reasons = [
        f"{count} {describe(cause, spec, plural=count > 1)}"
        for cause, count in sorted(causes.items(), key=lambda item: (-item[1], item[0]))
    ]
    incapable = explain_incapable(verdicts)
    if incapable:
        incapable = f" {incapable}"
    if len(reasons) == 1 and total == 1:
        return f"No node is eligible: the only one {reasons[0].removeprefix('1 ')}.{incapable}"
    return f"No node is eligible, of {nodes}: {', '.join(reasons)}.{incapable}"


def _explain_all(cause: Cause, spec: Spec, nodes: str) -> str:
    """What to do where all nodes are out for one cause; empty where that says nothing more."""
    if cause is Cause.NOT_SELECTED:
        return (
            f"No node matches spec.nodeSelector {_print(spec.node_selector)} (of {nodes}): "
            f"label the nodes, or correct the selector."
        )
    if cause is Cause.NO_MATCHING_INTERFACE:
        wanted = describe(cause, spec).removeprefix("has no ")
        mend = "correct them" if spec.interfaces else "use an address of the nodes' own subnet"
        return f"No node has an {wanted} (of {nodes}): {mend}."
    return ""


def _explain_workload(spec: Spec, namespace: str) -> str:
    """What to do where there is no pod and no endpoint at all."""
    if isinstance(spec.workload, PodWorkload):
        return (
            f"No pod in namespace {namespace} matches spec.workload.podSelector {_workload_name(spec)}: "
            f"create the pods, or correct the selector."
        )
    return (
        f"Service {_workload_name(spec)} of spec.workload.serviceRef has no EndpointSlice in namespace "
        f"{namespace}: create the Service, or correct the name."
    )


def _workload(spec: Spec) -> str:
    if isinstance(spec.workload, PodWorkload):
        return f"pod matching {_workload_name(spec)}"
    return f"endpoint of Service {_workload_name(spec)}"


def _workload_name(spec: Spec) -> str:
    if spec.workload is None:
        return ""
    if isinstance(spec.workload, PodWorkload):
        return str(spec.workload.selector) or "everything"
    return spec.workload.name


def _print(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
