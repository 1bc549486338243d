"""YAML as people mean it: words stay words, numbers are whole or refused, and no key is there twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

_TWO_WAYS = "!read-in-two-ways"
_KNOWN = [f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")]


class _Loader(yaml.SafeLoader):
    """Types by YAML 1.2's core schema and no others: ``no``, ``on``, ``1:30`` and dates are words."""

    def flatten_mapping(self, node: Any) -> None:
        """No key means another mapping's keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        first: dict[Any, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in first:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is there twice, first in line {first[key.value]}", problem_mark=key.start_mark
                )
            first[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def refuse(self, node: Any) -> Any:
        """A number that YAML's versions read in two ways."""
        plain = re.sub(r"^([-+]?)0+(?=\d)", r"\1", node.value.replace("_", ""))
        raise yaml.MarkedYAMLError(
            problem=f"{node.value} is read in two ways by versions of YAML; write {plain}, or {node.value!r} for words",
            problem_mark=node.start_mark,
        )

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """What a node says, where its tag fits it."""
        try:
            return super().construct_object(node, deep)
        except (KeyError, IndexError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{str(node.value)[:60]!r} is no {kind}", problem_mark=node.start_mark
            ) from error

    def refuse_tag(self, node: Any) -> Any:
        """A type that no field has."""
        name = node.tag.replace("tag:yaml.org,2002:", "!!")[:60]
        raise yaml.MarkedYAMLError(
            problem=f"{name} is no type that is taken here: write words, numbers, lists and mappings without it",
            problem_mark=node.start_mark,
        )


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _KNOWN}
_Loader.add_constructor(None, _Loader.refuse_tag)
for tag, pattern, first in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_TWO_WAYS, r"[-+]?(?:0[0-9_]*[0-9]|[1-9][0-9]*_[0-9_]*|0[xob][0-9a-fA-F_]+)", list("-+0123456789")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(tag, re.compile(rf"^(?:{pattern})$"), first)
_Loader.add_constructor(_TWO_WAYS, _Loader.refuse)


_DEEPEST = 32
_BEGINS = (
    yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken, yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken,
)  # fmt: skip
_ENDS = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def load_yaml(text: str) -> tuple[Any, Any]:
    """What YAML says, and the nodes that tell its lines.

    Raises:
        yaml.YAMLError: it is none, or can be read in two ways; ``problem_mark`` says where.
        ValueError, RecursionError: it is none.
    """
    depth = 0
    for token in yaml.scan(text, Loader=_Loader):
        if isinstance(token, yaml.AliasToken):
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=token.start_mark)
        depth += isinstance(token, _BEGINS) - isinstance(token, _ENDS)
        if depth > _DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"nested too deep: {_DEEPEST} levels are most", problem_mark=token.start_mark
            )
    return yaml.load(text, Loader=_Loader), yaml.compose(text, Loader=_Loader)
