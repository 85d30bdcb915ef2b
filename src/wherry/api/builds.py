"""/builds, our own: what was built, how and why, and the door that `wherry build` comes through (build_door.py).

GET    /builds?limit=&filters=…      records, the newest first, without their steps
GET    /builds/{id}                  one record; an ID may be shortened as long as it is unique
GET    /builds/{id}/logs             its events, a document a line; of one that runs, until it ends
GET    /builds/{id}/explain          its steps, and why each of them ran or did not
DELETE /builds/{id}
POST   /builds                       build
"""

import msgspec
from aiohttp import web

from wherry.api.build_output import document
from wherry.api.call import Call
from wherry.api.connection import JSON
from wherry.builder.records.record import Record, explain

_encode = msgspec.json.Encoder().encode


async def list_(call: Call) -> web.StreamResponse:
    records = call.services.builder.records.history(call.texts("filter"), call.number("limit") or 0)
    return call.reply([_summary(record) for record in records])


async def inspect(call: Call) -> web.StreamResponse:
    record = call.services.builder.records.get(call["id"])
    fields = msgspec.to_builtins(record)
    return call.reply({**_summary(record), **{_pascal(name): value for name, value in fields.items() if name in _MORE}})


_MORE = frozenset({"attributes", "exporters", "steps", "warnings", "inputs", "results", "response", "log_complete"})


def _pascal(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _summary(record: Record) -> dict[str, object]:
    names = list(dict.fromkeys(name for each in record.results for name in each.names))
    return {
        "Id": record.ref,
        "Status": record.status,
        "Names": names,
        "Created": record.created,
        "Completed": record.completed,
        "Duration": record.duration,
        "TotalSteps": record.total_steps,
        "CachedSteps": record.cached_steps,
        "CompletedSteps": record.completed_steps,
        "Pinned": record.pinned,
        "Dockerfile": record.attributes.get("filename", ""),
        "Context": record.attributes.get("context") or record.attributes.get("sharedkey:localdir:context", ""),
        "Error": None if record.error is None else msgspec.to_builtins(record.error),
    }


async def logs(call: Call) -> web.StreamResponse:
    records = call.services.builder.records
    ref = records.get(call["id"]).ref
    response = await call.stream(JSON)
    async for batch in records.events(ref):
        await response.write(b"".join(_encode(document(event)) + b"\n" for event in batch))
    return response


async def explain_(call: Call) -> web.StreamResponse:
    record = call.services.builder.records.get(call["id"])
    return call.reply(
        [
            {
                "Name": step.name,
                "Why": why,
                "Cached": step.cached,
                "Started": step.started,
                "Completed": step.completed,
                "Error": step.error,
            }
            for step, why in explain(record)
        ]
    )


async def remove(call: Call) -> web.StreamResponse:
    records = call.services.builder.records
    await records.remove(records.get(call["id"]).ref)
    return call.empty(204)
