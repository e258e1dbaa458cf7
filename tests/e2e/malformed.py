"""Specs of ClusterIPs with exactly one fault each, generated: whoever accepts one of them is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

JUNK = [5, -1, 2.5, True, "", "?", [], [[]], {}, {"a": {"b": [1]}}, "\N{SNOWMAN}", "x" * 3000]
"""What is of the wrong type nearly everywhere."""

# Field → values that break the contract in their own way; JUNK of the wrong type comes in addition.
FAULTS: dict[str, list[Any]] = {
    "ip": ["10.80.2", "10.80.2.300", "10.80.2.1 ", "10.80.2.1/32", "010.80.2.1", "fd00::1", "::ffff:10.80.2.1",
           "224.0.0.1", "127.0.0.1", "0.0.0.0", "255.255.255.255", "169.254.1.1", "10.80.2.1\n", "localhost",
           "\N{FULLWIDTH DIGIT ONE}0.80.2.1", "10.80.2.1; drop", "-10.80.2.1", "1e1.80.2.1"],
    "mac": ["02:00:00:00:00:01", "03:bf:0a:50:02", "03:bf:0a:50:02:01:02", "03-bf", "zz:bf:0a:50:02:01",
            "01:80:c2:00:00:00", "01:80:c2:00:00:0e", "ff:ff:ff:ff:ff:ff", "03:bf:0a:50:02:01 accept"],
    "hashMode": ["sourceip", "SourceIp", "SourcePort", "sourceip-sourceport"],
    "hashFunction": ["jhash", "MD5", "Legacy"],
    "hashSeed": [-1, 2**32, 2**63, 1e30, "0", 0.5],
    "buckets": [0, -256, 4097, 2**31, 2**63, "256", 0.5],
    "reservedBuckets": ["256", "0-255", "0-127,128-255", "3-1", "5,4", "-1", "1-", ",", "1,,2", "0x1", " 1",
                        "1 ", "1\n", "1;2", "+1", "01", "0-01", "99999", "\N{ARABIC-INDIC DIGIT ONE}", "all"],
    "sourcePrefixLength": [0, 33, -8, 128, "24"],
    "interfaces": [["eth0; drop"], ['eth"0'], ["x" * 40], [7], [""], ["eth 0"], ["../eth0"], [["eth0"]], [{}]],
    "ports": [[], [{}], [{"port": 0}], [{"port": 65536}], [{"port": "80"}], [{"port": 80, "endPort": 79}],
              [{"port": 80, "endPort": 65536}], [{"port": 80, "protocol": "ICMP"}], ["80"], [[80]],
              [{"port": 1e99}], [{"port": 80, "protocol": "tcp"}], [{"endPort": 80}]],
    "sourceMAC": ["cluster", "node", "Any"],
    "nodeSelector": [{"a": 5}, {"a": ["b"]}, {"a": {"b": "c"}}, ["a=b"]],
    "workload": [{"podSelector": {}, "serviceRef": {"name": "web"}}, {"serviceRef": {}},
                 {"serviceRef": {"name": "Web Server"}}, {"serviceRef": {"name": "../web"}},
                 {"serviceRef": {"name": 5}}, {"podSelector": {"matchLabels": ["a"]}},
                 {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}},
                 {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
                 {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
                 {"podSelector": "app=web"}],
    "weighting": ["equal", "Weighted", "readyPods"],
    "drainTimeoutSeconds": [-1, 86401, 1e12, "300"],
}  # fmt: skip

# Of JUNK those that a field may have: an empty list of interfaces is the default, and so on.
_ALLOWED: dict[str, list[Any]] = {"interfaces": [[]], "nodeSelector": [{}], "hashSeed": [5], "buckets": [5],
                                  "reservedBuckets": [""], "sourcePrefixLength": [5],
                                  "drainTimeoutSeconds": [5]}  # fmt: skip
# A spec that is none at all.
NO_SPECS: list[Any] = [
    None,
    5,
    "ip: 10.80.2.1",
    [],
    [{"ip": "10.80.2.1"}],
    {},
    {"IP": "10.80.2.1"},
    {"ip": None},
]


def specs(draw: random.Random) -> Iterator[tuple[str, Any]]:
    """Endless pairs of the field at fault ("spec" for the whole of it) and a spec: each fault once, then any."""
    every = [("spec", value) for value in NO_SPECS]
    every += [(field, value) for field in FAULTS for value in (*FAULTS[field], *_junk(field))]
    for number in count():
        field, value = every[number] if number < len(every) else draw.choice(every)
        yield field, value if field == "spec" else {**_good(number, draw), field: value}


def _junk(field: str) -> list[Any]:
    return [value for value in JUNK if not any(_same(value, one) for one in _ALLOWED.get(field, []))]


def _good(number: int, draw: random.Random) -> dict[str, Any]:
    """A spec without a fault."""
    choices: dict[str, Any] = {
        "hashMode": "SourceIP",
        "buckets": 64,
        "ports": [{"port": 80}],
        "hashSeed": 7,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "interfaces": ["eth*"],
    }
    kept = draw.sample(sorted(choices), draw.randrange(3))
    return {
        "ip": f"10.80.{64 + number // 200 % 100}.{1 + number % 200}",
        **{name: choices[name] for name in kept},
    }


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
