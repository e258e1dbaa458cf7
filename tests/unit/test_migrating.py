"""docs/migrating.md: its rule and its ClusterIP say the same, and its YAML is one that lbless takes."""

import re
from pathlib import Path

import yaml

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import Spec, parse_spec
from lbless_api.hashing import HashFunction

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()


def example() -> Spec:
    """The page's ClusterIP."""
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    return parse_spec(yaml.safe_load(text)["spec"])


def rules(command: str) -> list[dict[str, str]]:
    """The options of each rule that is added (-A) or deleted (-D) on the page."""
    joined = re.sub(r"\\\n\s*", "", PAGE)
    found = re.findall(rf"# iptables {command} INPUT (.*)", joined)
    return [dict(re.findall(r"(--?[a-z-]+) ([^-\s]\S*)", rule)) for rule in found]


def test_the_rule_and_the_clusterip_share_an_address_bucket_for_bucket():
    (rule,), spec = rules("-A"), example()
    assert rules("-D") == [rule]
    assert rule["-d"] == str(spec.ip)
    assert rule["--clustermac"] == spec.mac
    assert rule["--hashmode"].replace("-", "") == spec.hash.mode.lower()
    assert spec.hash.function is HashFunction.LEGACY_CLUSTERIP
    assert int(rule["--hash-init"]) == spec.hash.seed
    assert int(rule["--total-nodes"]) == spec.hash.buckets
    migrated = BucketSet([int(rule["--local-node"]) - 1])
    assert spec.reserved == BucketSet.full(spec.hash.buckets) - migrated


def test_each_step_of_the_page_reserves_what_it_says():
    patches = re.findall(r"--patch '(.*?)'", PAGE)
    reserved = [
        parse_spec({"ip": "192.0.2.10", "buckets": 4, **yaml.safe_load(p)["spec"]}).reserved for p in patches
    ]
    assert reserved == [BucketSet([2, 3]), BucketSet([0, 2, 3])]
