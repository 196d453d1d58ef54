"""Print every difference of two recordings: `compare.py before.json after.json`; exit code 1 if there is any.

--renames old=new,... renames keys of the first file: whole keys ("loss/l1=loss/mae"), and parts of names between dots
(tensors) or slashes (metrics), such as "quantize=quantizer". --ignore skips paths that contain a text.
"""

import argparse
import json
import re
import sys
from pathlib import Path

MISSING = object()


def renamed(tree, names):
    if isinstance(tree, dict):
        return {new_name(key, names): renamed(value, names) for key, value in tree.items()}
    return [renamed(value, names) for value in tree] if isinstance(tree, list) else tree


def new_name(key, names):
    if key in names:
        return names[key]
    return "".join(names.get(part, part) for part in re.split(r"([./])", key))


def differences(one, other, path=""):
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from differences(one.get(key, MISSING), other.get(key, MISSING), f"{path} > {key}" if path else key)
    elif isinstance(one, list) and isinstance(other, list):
        for index in range(max(len(one), len(other))):
            parts = (items[index] if index < len(items) else MISSING for items in (one, other))
            yield from differences(*parts, f"{path}[{index}]")
    # 1 differs from 1.0, and 0.0 from -0.0; a NaN equals a NaN.
    elif one is MISSING or other is MISSING or json.dumps(one) != json.dumps(other):
        yield path, one, other


def leaves(tree):
    if isinstance(tree, dict | list):
        return sum(map(leaves, tree.values() if isinstance(tree, dict) else tree))
    return 1


def shown(value):
    text = "(missing)" if value is MISSING else json.dumps(value)
    return text if len(text) < 100 else text[:97] + "..."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--renames", default="", help="old=new,... for keys of the first file")
    parser.add_argument("--ignore", action="append", default=[], help="skip paths that contain this; may be repeated")
    parser.add_argument("--only-common", action="store_true", help="skip chains that one of the files lacks")
    options = parser.parse_args()
    names = dict(pair.split("=", 1) for pair in options.renames.split(",") if pair)
    before, after = (json.loads(file.read_text()) for file in (options.before, options.after))
    before = renamed(before, names)
    if options.only_common:
        common = before.keys() & after.keys()
        before, after = ({name: tree[name] for name in common} for tree in (before, after))
    found = [found for found in differences(before, after) if not any(text in found[0] for text in options.ignore)]
    for path, one, other in found:
        print(f"{path}\n  before {shown(one)}\n  after  {shown(other)}")
    print(f"{len(found)} differences, {leaves(before)} values before, {leaves(after)} after")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
