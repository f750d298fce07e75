"""Prints every field number, enum value and method of the wire format.

usage: proto_fields.py IMAGE.json   (of `buf build -o -#format=json`)

The output is compared with tests/golden/proto_fields.txt: a number that
changes or goes breaks clients that are already out there.
"""

import json
import sys


def message_lines(prefix, message):
    name = f"{prefix}.{message['name']}"
    for field in message.get("field", []):
        kind = field.get("typeName", field["type"].removeprefix("TYPE_").lower())
        many = "repeated " if field["label"] == "LABEL_REPEATED" else ""
        yield f"{name}.{field['name']} = {field['number']} {many}{kind}"
    for nested in message.get("nestedType", []):
        yield from message_lines(name, nested)
    for enum in message.get("enumType", []):
        yield from enum_lines(name, enum)


def enum_lines(prefix, enum):
    for value in enum["value"]:
        yield (f"{prefix}.{enum['name']}.{value['name']} = "
               f"{value.get('number', 0)}")


def service_lines(prefix, service):
    for method in service.get("method", []):
        sent = "stream " if method.get("clientStreaming") else ""
        got = "stream " if method.get("serverStreaming") else ""
        yield (f"{prefix}.{service['name']}.{method['name']}"
               f"({sent}{method['inputType']}) {got}{method['outputType']}")


def lines(image):
    for file in image["file"]:
        package = file["package"]
        if package != "qlora.v1":
            continue
        for message in file.get("messageType", []):
            yield from message_lines(package, message)
        for enum in file.get("enumType", []):
            yield from enum_lines(package, enum)
        for service in file.get("service", []):
            yield from service_lines(package, service)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as image_file:
        print("\n".join(sorted(lines(json.load(image_file)))))
