"""JSON schemas of the user: unusable ones are refused, and nothing is fetched."""

from typing import Any

from pipelines.settings.yaml_file import cut


def require_schema(schema: Any) -> None:
    """Refuse a schema that cannot check any answer.

    Raises:
        ValueError: not a JSON schema, an unknown draft, a reference that leads nowhere, or one that
            leads back to itself.
    """
    import jsonschema
    from jsonschema.validators import validator_for
    from referencing.exceptions import Unresolvable

    if not isinstance(schema, dict | bool):
        raise ValueError(f"not a JSON schema: got {cut(repr(schema))}; expected an object")
    dialect = schema.get("$schema") if isinstance(schema, dict) else None
    newest: Any = jsonschema.Draft202012Validator
    draft: Any = validator_for({"$schema": dialect}, default=None) if isinstance(dialect, str) else None  # type: ignore[arg-type]
    if dialect is not None and draft is None:
        raise ValueError(
            f"$schema: got {cut(repr(dialect))}; expected {newest.META_SCHEMA['$schema']}, or that of an earlier draft"
        )
    draft = draft or newest
    try:
        draft.check_schema(schema, format_checker=draft.FORMAT_CHECKER)
        checker = validator(schema)
        _require_references(schema, checker)
        for answer in ({}, [], "", 0, None, _example(schema)):
            next(checker.iter_errors(answer), None)
    except jsonschema.SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.json_path}: {cut(error.message)}") from None
    except Unresolvable as error:
        raise ValueError(
            f"{cut(repr(error.ref))} stands nowhere in it; expected a reference within the file, such as #/$defs/name: nothing is "
            "fetched"
        ) from None
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"not a JSON schema: {cut(str(error))}") from None
    except RecursionError:
        raise ValueError("a $ref leads back to itself, so it cannot check any answer") from None


def _example(schema: Any) -> Any:
    """An object with every property that the schema names at its top level."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return dict.fromkeys(properties, "x") if isinstance(properties, dict) else {}


def _require_references(schema: Any, checker: Any) -> None:
    """Raises Unresolvable at the first reference, in the schema or one nested in it, that leads
    nowhere."""
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import specification_with

    resource = specification_with(checker.META_SCHEMA["$schema"]).create_resource(schema)
    to_visit = [(resource, _known().with_resource(resource.id() or "", resource).resolver_with_root(resource))]
    for part, resolver in to_visit:
        if isinstance(part.contents, dict):
            for key in ("$ref", "$dynamicRef", "$recursiveRef"):
                if isinstance(reference := part.contents.get(key), str):
                    try:
                        resolver.lookup(reference)
                    # ValueError: an index into a list that is not a number.
                    except (Unresolvable, ValueError):
                        raise Unresolvable(ref=reference) from None
        to_visit += [(one, resolver.in_subresource(one)) for one in part.subresources()]


def validator(schema: Any) -> Any:
    """A validator for the draft that the schema names, else for the newest. It fetches nothing."""
    import jsonschema
    from jsonschema.validators import validator_for

    return validator_for(schema, default=jsonschema.Draft202012Validator)(schema, registry=_known())


def _known() -> Any:
    """The drafts of JSON Schema, which a reference may lead to.

    Without them jsonschema would fetch.
    """
    from jsonschema_specifications import REGISTRY

    return REGISTRY
