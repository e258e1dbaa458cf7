"""A segment with a forger on it: what its nodes have counted, and all of it that no forged frame may change."""

import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from kernel.dataplane import Dataplane, wait_for
from kernel.forger import Forger, network_of
from kernel.membersegment import BUCKETS, KEY, MemberSegment
from lab.lan import Lan
from lbless_api.buckets import BucketSet

METRICS_PORT = 9099
UID, VIP = "forged-a", Lan.vip(1)
SHARES = {"n1": "0-10", "n2": "11-21", "n3": "22-31"}
BAD_NEWS = ("counts as dead", "steps down", "new incarnation", "is deaf", "acts, for nobody", "Traceback")


@dataclass(frozen=True)
class World:
    """What no forged frame may change."""

    owned: Mapping[str, str]
    incarnations: Mapping[str, int]
    problems: Mapping[str, tuple[str, ...]]
    heard: Mapping[str, float]
    dead: Mapping[str, float]
    lapses: Mapping[str, float]
    bad_news: Mapping[str, tuple[str, ...]]


class ForgedSegment(MemberSegment):
    """Three nodes with a key file each, and metrics; the client is the forger."""

    def __init__(self, lan: Lan, directory: Path, arguments: Sequence[str] = ()) -> None:
        super().__init__(lan, directory, buckets=BUCKETS)
        self.key_files = {name: directory / f"key-{name}" for name in self.planes}
        for name, plane in self.planes.items():
            self.write_keys(name, KEY)
            plane.arguments = (
                *("--key-file", str(self.key_files[name])),
                *("--metrics-port", str(METRICS_PORT)),
                *arguments,
            )
        self.forger = Forger(lan.client)

    def write_keys(self, name: str, *keys: str) -> None:
        """Replace a node's key file, at once as who administers keys does."""
        path = self.key_files[name]
        temporary = path.with_suffix(".new")
        temporary.write_text("".join(f"{key}\n" for key in keys))
        temporary.rename(path)

    def begin(self) -> None:
        """Start all nodes, give each its share, and wait until it has it."""
        for plane in self.planes.values():
            plane.complete()
            plane.launch()
        wait_for(
            lambda: all(plane.running() and plane.observed().interfaces for plane in self.planes.values())
        )
        self.give_out()

    def give_out(self) -> None:
        """Give each node's present incarnation its share, and wait until it has it."""
        self.assign(UID, VIP, SHARES)
        wait_for(lambda: self.owned(VIP) == SHARES)
        wait_for(lambda: all(self.peers_heard(name) == len(SHARES) - 1 for name in SHARES))

    def running(self) -> list[str]:
        """The nodes whose process runs."""
        return [name for name, plane in self.planes.items() if plane.process]

    def world(self) -> World:
        """As it is at this moment."""
        running = self.running()
        figures = {name: self.figures(name) for name in running}
        return World(
            owned=self.owned(VIP),
            incarnations={name: self.incarnation(name) for name in running},
            problems={name: self.planes[name].observed().problems for name in running},
            heard={name: of["lbless_peers_heard", ""] for name, of in figures.items()},
            dead={name: of["lbless_peers_dead", ""] for name, of in figures.items()},
            lapses={name: of["lbless_lease_lapses_total", ""] for name, of in figures.items()},
            bad_news={name: self.bad_news(name) for name in self.planes},
        )

    def bad_news(self, name: str) -> tuple[str, ...]:
        """What a node has said that forged frames must not make it say."""
        lines = self.planes[name].log.splitlines()
        return tuple(line for line in lines if any(words in line for words in BAD_NEWS))

    def figures(self, name: str) -> dict[tuple[str, str], float]:
        """A node's metrics, by name and reason or bound."""
        with network_of(self.planes[name].host):
            url = f"http://127.0.0.1:{METRICS_PORT}/metrics"
            text = urllib.request.urlopen(url, timeout=10).read().decode()
        return {
            (sample.name, sample.labels.get("reason") or sample.labels.get("le") or ""): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def speaks(self, name: str) -> bool:
        """Whether a node's present process has sent heartbeats, so that it hears them too."""
        return self.figures(name).get(("lbless_heartbeats_sent_total", ""), 0) > 0

    def peers_heard(self, name: str) -> float:
        """How many living nodes a node hears."""
        return self.figures(name).get(("lbless_peers_heard", ""), 0)

    def peers_dead(self, name: str) -> float:
        """How many incarnations count as dead at a node."""
        return self.figures(name).get(("lbless_peers_dead", ""), 0)

    def dropped(self, name: str) -> Counter[str]:
        """How many frames a node has refused, by reason."""
        return Counter(
            {
                reason: int(value)
                for (metric, reason), value in self.figures(name).items()
                if metric == "lbless_heartbeats_dropped_total"
            }
        )

    def late(self, name: str, above: str = "0.01") -> tuple[float, float]:
        """How many ticks a node has had, and how many of them came later than a bound, in seconds."""
        figures = self.figures(name)
        ticks = figures["lbless_tick_lateness_seconds_bucket", "+Inf"]
        return ticks, ticks - figures["lbless_tick_lateness_seconds_bucket", above]

    def disjoint(self) -> bool:
        """Whether no bucket has two owners."""
        shares = [BucketSet.parse(one) for one in self.owned(VIP).values() if one]
        return sum(len(one) for one in shares) == len(set().union(*shares))

    def successor(self, name: str) -> Dataplane:
        """Replace a node's process by another one that goes on within its lease."""
        plane = self.planes[name]
        former, said = plane.process, plane.log.count("waiting for its end")
        arguments = plane.arguments
        plane.arguments = (*arguments, "--wait")
        plane.launch()
        plane.arguments = arguments
        wait_for(lambda: plane.log.count("waiting for its end") > said)
        resumed = plane.log.count("goes on as incarnation")
        assert former is not None
        former.kill()
        former.wait()
        wait_for(lambda: plane.running() and plane.log.count("goes on as incarnation") > resumed)
        return plane

    def close(self) -> None:
        """End what runs."""
        self.forger.__exit__(None, None, None)
        self.stop()
