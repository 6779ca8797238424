"""JSON schemas that a user wrote: what no text could be checked by is refused, and nothing is fetched over a network."""

from typing import Any

from pipelines.settings.yaml_file import cut


def require_schema(schema: Any) -> None:
    """Refuse what no answer could be checked by.

    Raises:
        ValueError: no JSON schema, one of an unknown draft, a reference to what is not there, or one that never ends.
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
        raise ValueError("a $ref leads back to itself, so that no answer could be checked") from None


def _example(schema: Any) -> Any:
    """An object with every property that the schema names at its top."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return dict.fromkeys(properties, "x") if isinstance(properties, dict) else {}


def _require_references(schema: Any, checker: Any) -> None:
    """Raises Unresolvable at the first reference of the schema, or of a schema in it, that leads nowhere."""
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
                    except (Unresolvable, ValueError):  # ValueError: a list's place that is no number
                        raise Unresolvable(ref=reference) from None
        to_visit += [(one, resolver.in_subresource(one)) for one in part.subresources()]


def validator(schema: Any) -> Any:
    """A validator of the schema's own draft, of the newest where it names none, that fetches nothing."""
    import jsonschema
    from jsonschema.validators import validator_for

    return validator_for(schema, default=jsonschema.Draft202012Validator)(schema, registry=_known())


def _known() -> Any:
    """What a reference may lead to beside the schema itself: the drafts of JSON Schema. Without it jsonschema would fetch."""
    from jsonschema_specifications import REGISTRY

    return REGISTRY
