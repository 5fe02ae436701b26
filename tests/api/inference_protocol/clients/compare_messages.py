"""Our table of messages beside another server's generated ones; what it fails with names the difference."""

import importlib
import importlib.util
import sys

path, theirs_name = sys.argv[1:]
spec = importlib.util.spec_from_file_location("messages", path)
ours = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ours)
theirs = importlib.import_module(theirs_name)


def fields_of(message):
    """Number, type and count of each field, and what it holds."""
    return {
        each.name: (each.number, each.type, each.is_repeated, each.message_type and each.message_type.name)
        for each in message.fields
    }


def compare(name, mine, other):
    """Both know what they share alike, and at least one has no field that the other gives another meaning."""
    mine_fields, other_fields = fields_of(mine), fields_of(other)
    shared = mine_fields.keys() & other_fields.keys()
    assert shared >= mine_fields.keys() - {"double_param", "uint64_param"}, (name, mine_fields.keys() - shared)
    assert {each: mine_fields[each] for each in shared} == {each: other_fields[each] for each in shared}, name
    for inner, nested in mine.nested_types_by_name.items():
        compare(f"{name}.{inner}", nested, other.nested_types_by_name[inner])


for name in ours.MESSAGES:
    if "." not in name:
        compare(name, getattr(ours.messages(), name).DESCRIPTOR, getattr(theirs, name).DESCRIPTOR)
