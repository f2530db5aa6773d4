"""Marshmallow fields and schemas that the dialects share, and how their faults become refusals.

A schema says what a route reads or answers; routing, validation and the API documentation all take it from here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from marshmallow import RAISE, Schema, ValidationError, fields, pre_load

from identity.canonical import canonical_id
from identity.errors import VALIDATION, Refused

# As much as a body can hold: the schema judges no opaque value by its length.
OPAQUE_MAX: Final = 64 * 1024
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


class Body(Schema):
    """A request body: unknown fields are refused, since they are how mass assignment starts.

    An optional field that is `""` or null was not sent: many a client writes every field of its structures. Where null has a meaning, the
    field allows it.
    """

    keeps_null: ClassVar[bool] = False

    class Meta:
        """What marshmallow does with unknown fields."""

        unknown = RAISE

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        """Have a missing field of any kind named in the same words."""
        if not isinstance(field_obj, Text):
            missing = f"Missing {field_obj.data_key or field_name} request body parameter"
            field_obj.error_messages = {**field_obj.error_messages, "required": missing, "null": missing}


class Change(Body):
    """The body of a PATCH: null clears what can be empty or nothing; it is refused for the rest, and never taken for silence."""

    keeps_null: ClassVar[bool] = True

    @pre_load
    def clear(self, data: dict[str, Any], **_options: Any) -> dict[str, Any]:
        """Read null as an empty list, an empty object or zero, where a field may hold that and has no meaning of its own for null."""
        return {name: self._empty_of(name) if value is None else value for name, value in data.items()}

    def _empty_of(self, name: str) -> list[Any] | dict[str, Any] | int | None:
        match self.fields.get(name):
            case None | fields.Field(allow_none=True):
                return None
            case fields.List():
                return []
            case fields.Dict():
                return {}
            case Whole(least=0):
                return 0
            case _:
                return None


class Text(fields.String):
    """Text of bounded length. `called` is what a message calls it when it is missing."""

    def __init__(
        self, *, called: str = "", min_length: int = 1, max_length: int = 1024, missing: str = "", **options: Any
    ) -> None:
        options.setdefault("metadata", {}).update(minLength=min_length, maxLength=max_length)
        super().__init__(**options)
        self.min_length = min_length
        self.max_length = max_length
        self.called = called
        self.missing = missing

    def _bind_to_schema(self, field_name: str, parent: Any) -> None:
        super()._bind_to_schema(field_name, parent)
        called = self.called or self.data_key or field_name
        self.error_messages = {
            **self.error_messages,
            "required": self.missing or f"Missing {called} request body parameter",
            "null": self.missing or f"Missing {called} request body parameter",
            "invalid": f"The {called} must be text",
            "length": f"The {called} needs {self.min_length} to {self.max_length} characters",
        }

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if not value and self.required and self.min_length > 0:
            raise self.make_error("required")
        if not self.min_length <= len(value) <= self.max_length:
            raise self.make_error("length")
        return value


class Opaque(Text):
    """A credential that we made. Whatever does not look like one is wrong and not malformed, however long it is."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_length=OPAQUE_MAX, **options)
        # As much as a body can hold is no limit that a reader needs to know.
        self.metadata = {name: value for name, value in self.metadata.items() if name != "maxLength"}


class Code(Opaque):
    """A code of digits or letters that a person types; as a number it is the six digits that some client took for one."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        if type(value) is int and 0 <= value < 10**6:
            value = f"{value:06}"
        return super()._deserialize(value, attr, data, **kwargs)


class Id(Opaque):
    """A UUID."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        return canonical_id(text) or text


class SaidAgain(Id):
    """An id that stands in the path already, as the parameter `of`; some clients send it in the body too. Another one is refused."""

    def __init__(self, *, of: str) -> None:
        super().__init__(metadata={"description": f"The `{of}` of the path once more; not needed"})
        self.of = of


class Whole(fields.Integer):
    """A whole number in a range; `true` and `1.0` are none."""

    def __init__(self, *, least: int = 0, most: int = 2**31 - 1, **options: Any) -> None:
        options.setdefault("metadata", {}).update(minimum=least, maximum=most)
        super().__init__(strict=True, **options)
        self.least = least
        self.most = most

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.least <= value <= self.most:
            raise ValidationError(f"It must be a whole number from {self.least} to {self.most}")
        return value


class Flag(fields.Boolean):
    """`true` or `false`, and nothing that merely looks like it."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("It must be true or false")
        return value


class Names(fields.List[str]):
    """A list of role, scope or group names."""

    def __init__(self, *, most: int = 100, **options: Any) -> None:
        super().__init__(Text(max_length=200), **options)
        self.most = most

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > self.most:
            raise ValidationError(f"It must be a list of at most {self.most}")
        return super()._deserialize(value, attr, data, **kwargs)


class Message(Schema):
    """The answer of a deed that has nothing else to say."""

    message = fields.String(required=True, metadata={"example": "acknowledged"})


def reader(schema: type[Schema]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function that loads data by `schema`, or raises Refused(VALIDATION) for its first fault in schema order."""
    instance = schema()
    quick = _quick_check(instance)
    silent = _silences(instance)

    def load(data: Mapping[str, Any]) -> dict[str, Any]:
        if quick is not None and quick(data):
            return dict(data)
        sent = {name: value for name, value in data.items() if name not in silent or value not in silent[name]}
        try:
            loaded: dict[str, Any] = instance.load(sent)
        except ValidationError as exc:
            raise _refusal(instance, exc) from exc
        return loaded

    return load


def _silences(schema: Schema) -> dict[str, tuple[Any, ...]]:
    """What each optional field may hold as if it had not been sent."""
    keeps_null = getattr(schema, "keeps_null", False)
    return {
        field.data_key or name: ("",) if keeps_null or field.allow_none else ("", None)
        for name, field in schema.fields.items()
        if not field.required
    }


def _quick_check(schema: Schema) -> Callable[[Mapping[str, Any]], bool] | None:
    """A test that passes only what a schema of plain text fields would load unchanged; None for other schemas.

    It spares the hot routes marshmallow's 40 microseconds; whatever it does not pass goes the long way.
    """
    plain = {
        name: field
        for name, field in schema.fields.items()
        if type(field) in (Text, Opaque, Code) and isinstance(field, Text) and field.data_key in (None, name)
    }
    if len(plain) != len(schema.fields) or any(
        field.validators or field.load_default is not _MISSING for field in plain.values()
    ):
        return None
    bounds = {name: (max(1, field.min_length), field.max_length) for name, field in plain.items()}
    required = frozenset(name for name, field in plain.items() if field.required)

    def passes(data: Mapping[str, Any]) -> bool:
        if not required <= data.keys():
            return False
        for name, value in data.items():
            bound = bounds.get(name)
            if bound is None or type(value) is not str or not bound[0] <= len(value) <= bound[1]:
                return False
        return True

    return passes


def _refusal(schema: Schema, exc: ValidationError) -> Refused:
    faults = exc.normalized_messages()  # type: ignore[no-untyped-call]  # marshmallow's own
    known = [field.data_key or name for name, field in schema.fields.items()]
    first = next((name for name in known if name in faults), next(iter(faults)))
    if first not in known:
        shown = first if isinstance(first, str) and _FIELD_NAME.fullmatch(first) else None
        return Refused(VALIDATION.saying("The request has a field that this route does not know"), field=shown)
    return Refused(VALIDATION.saying(_first_text(faults[first])), field=first)


def _first_text(faults: Any) -> str:
    """The first message in marshmallow's nest of them: always a text of ours, never of the client's."""
    while isinstance(faults, dict | list):
        faults = next(iter(faults.values() if isinstance(faults, dict) else faults))
    return str(faults)


_MISSING = fields.Field().load_default
