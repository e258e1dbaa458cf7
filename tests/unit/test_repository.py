"""Promises about the repository itself that no other test would notice to be broken."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def test_no_package_shadows_the_standard_librarys_operator():
    assert not (ROOT / "operator" / "__init__.py").exists()


def undescribed(schema: dict[str, Any], where: str) -> list[str]:
    """Paths of the fields below `schema` that `kubectl explain` could say nothing about."""
    found = []
    for name, field in schema.get("properties", {}).items():
        here = f"{where}.{name}"
        if "description" not in field and here != ".metadata":
            found.append(here)
        found += undescribed(field, here)
        found += undescribed(field.get("items", {}), f"{here}[]")
    return found


def unbounded(schema: dict[str, Any], where: str) -> list[str]:
    """Strings without a length, lists and maps without a count: the API server's memory is not theirs."""
    missing = {
        "string": "maxLength" not in schema and "enum" not in schema and "format" not in schema,
        "array": "maxItems" not in schema,
        "object": "additionalProperties" in schema and "maxProperties" not in schema,
    }
    found = [where] if missing.get(schema.get("type", ""), False) else []
    for name, field in schema.get("properties", {}).items():
        if where or name in {"spec", "status"}:
            found += unbounded(field, f"{where}.{name}")
    return found + (unbounded(schema["items"], f"{where}[]") if "items" in schema else [])


def test_every_field_of_the_crds_is_described_and_bounded():
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        for version in yaml.safe_load(path.read_text())["spec"]["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            assert undescribed(schema, "") == [], path.name
            assert unbounded(schema, "") == [], path.name
            for column in version["additionalPrinterColumns"]:
                assert column["name"] == "Age" or column["description"], (path.name, column)
