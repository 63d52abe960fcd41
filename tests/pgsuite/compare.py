#!/usr/bin/env python3
"""Compares the output of PostgreSQL's own tests on heap and on another access
method, strictly and after normalising what an access method may change: plans,
the physical order of rows and ctid values. `python3 -m doctest compare.py`
tests the normalising."""

import argparse
import collections
import difflib
import pathlib
import re
import sys

RULE = re.compile(r"^-+(\+-+)*$")
ROW_COUNT = re.compile(r"^\(\d+ rows?\)$")
TID = re.compile(r"^\(\d+,\d+\)$")
COPY_IN = re.compile(r"^\s*\\?copy\s.*\sfrom\s+stdin\b", re.IGNORECASE | re.DOTALL)
COPY_OUT = re.compile(r"^\s*copy\s.*\sto\s+stdout\b", re.IGNORECASE | re.DOTALL)
STATUS = re.compile(r"^(?:test| )\s+(\S+)\s+\.\.\. (ok|FAILED|failed)")
CRASH = re.compile(r"\[\d+\].*?(?:server process|background worker.*?) \(PID (\d+)\) (was terminated by signal.*|exited with exit code (?![01]$).*)")
QUERY = re.compile(r"DETAIL:\s+Failed process was running: (.*)")
OF_TEST = re.compile(r"\[(\d+)\] (?:pg_regress|isolation)/(\S+)")
APPLICATION = re.compile(r"\[(\d+)\] .*connection authorized: .*application_name=(?:pg_regress|isolation)/(\S+)")


def without_parentheses(sql):
    """
    >>> without_parentheses("select (select 1 order by 1) from (a (b)) c")
    'select  from  c'
    """
    depth, kept = 0, []
    for char in sql:
        if char == "(":
            depth += 1
        elif char == ")":
            depth = max(0, depth - 1)
        elif depth == 0:
            kept.append(char)
    return "".join(kept)


def is_ordered(sql):
    """Does the statement ask for an order of its result?

    >>> is_ordered("select * from t order by a;"), is_ordered("select * from (select 1 order by 1) x;")
    (True, False)
    """
    return re.search(r"\border\s+by\b", without_parentheses(sql), re.IGNORECASE) is not None


class Echo:
    """Recognises the lines of the SQL file in the output of psql -a, which
    leaves out empty lines and the data of COPY FROM STDIN."""

    def __init__(self, sql):
        self.lines = [line for line in sql.split("\n") if line.strip()]
        self.next = 0
        self.statement = ""
        self.complete = True

    def takes(self, line):
        """Is this output line the next line of the file?"""
        if self.next >= len(self.lines) or line != self.lines[self.next]:
            return False
        self.next += 1
        if self.complete:
            self.statement = ""
        self.statement += line + "\n"
        bare = re.sub(r"--.*", "", line).rstrip()
        self.complete = bare.endswith(";") or "\\" in bare or not re.sub(r"--.*", "", self.statement).strip()
        if self.complete and COPY_IN.match(self.statement):
            self.skip_copy_data()
        return True

    def skip_copy_data(self):
        for end in range(self.next, len(self.lines)):
            if self.lines[end] == "\\.":
                self.next = end + 1
                return


def split_result_set(lines, start):
    """Finds header, rows and the index behind a result set whose rule line is
    at start + 1; None when there is none."""
    if start + 1 >= len(lines) or not RULE.match(lines[start + 1]) or not lines[start].strip():
        return None
    for end in range(start + 2, len(lines)):
        if ROW_COUNT.match(lines[end]):
            return lines[start], lines[start + 2 : end], end + 1
        if RULE.match(lines[end]):
            return None
    return None


def cells(line):
    """The values of a row; + marks one that goes on in the next line.

    >>> cells(" a  | b  +|")
    ['a', 'b', '']
    """
    return [re.sub(r"\s*\+$", "", cell.strip()) for cell in line.split("|")]


def shows_plan(header, statement):
    """
    >>> shows_plan(" QUERY PLAN ", "execute p;"), shows_plan(" x ", "select explain_filter('select');"), shows_plan(" x ", "select 1;")
    (True, True, False)
    """
    return header.strip() == "QUERY PLAN" or "explain" in re.sub(r"--.*", "", statement).lower()


def normalised_rows(header, rows, statement, keep_order):
    names = cells(header)
    if shows_plan(header, statement):
        return ["<plan>"]
    shows_places = any("tid" in name for name in names) or "tid" in statement.lower()
    result = []
    for row in rows:
        values = cells(row)
        if shows_places:
            values = ["<tid>" if TID.match(value) else value for value in values]
        result.append(" | ".join(values))
    if not (keep_order and is_ordered(statement)):
        result.sort()
    return [" | ".join(names)] + result + [f"({len(rows)} lines)"]


def normalised_output(lines, statement, keep_order):
    """What one statement printed.

    >>> normalised_output([" a ", "---", " 2 ", " 1 ", "(2 rows)", ""], "select", False)
    ['a', '1', '2', '(2 lines)', '']
    >>> normalised_output([" a ", "---", " 2 ", " 1 ", "(2 rows)"], "select order by a", True)
    ['a', '2', '1', '(2 lines)']
    >>> normalised_output([" QUERY PLAN ", "----", " Seq Scan on t", "(1 row)"], "explain select", False)
    ['<plan>']
    >>> normalised_output([" ctid ", "----", " (0,7)", "(1 row)"], "select ctid from t", False)
    ['ctid', '<tid>', '(1 lines)']
    >>> normalised_output(["2", "1"], "copy t to stdout;", False)
    ['1', '2']
    """
    if COPY_OUT.match(statement):
        return sorted(lines)
    result, position = [], 0
    while position < len(lines):
        found = split_result_set(lines, position)
        if found is None:
            result.append(lines[position])
            position += 1
        else:
            header, rows, position = found
            result += normalised_rows(header, rows, statement, keep_order)
    return result


def normalised(text, sql, keep_order):
    """All lines of a test's output.

    >>> sql = "select a from t;\\ncopy t from stdin;\\n1\\n\\\\.\\nselect 1;\\n"
    >>> text = "select a from t;\\n a \\n---\\n 2 \\n 1 \\n(2 rows)\\n\\ncopy t from stdin;\\nselect 1;\\n"
    >>> normalised(text, sql, False)
    ['select a from t;', 'a', '1', '2', '(2 lines)', '', 'copy t from stdin;', 'select 1;', '']
    """
    result, output = [], []
    echo = Echo(sql)
    statement = ""

    def flush():
        result.extend(normalised_output(output, statement, keep_order))
        output.clear()

    for line in text.split("\n"):
        if sql and echo.takes(line):
            flush()
            statement = echo.statement
            result.append(line)
        elif not sql and line.startswith("step "):
            flush()
            statement = line.split(": ", 1)[-1]
            result.append(line)
        else:
            output.append(line)
    flush()
    return result


def statuses(directory):
    """Which tests ran, in order, and whether pg_regress was content. What it
    printed says so; its own regression.out goes away when all tests pass."""
    result = collections.OrderedDict()
    for line in directory.with_suffix(".log").read_text(errors="replace").split("\n"):
        found = STATUS.match(line)
        if found:
            result[found.group(1)] = found.group(2) == "ok"
    return result


def crashes(log):
    """Processes that the server lost: (test, how, what it ran)."""
    if not log.exists():
        return []
    tests, found = {}, []
    lines = log.read_text(errors="replace").split("\n")
    for number, line in enumerate(lines):
        of_test = APPLICATION.search(line) or OF_TEST.search(line)
        if of_test:
            tests[of_test.group(1)] = of_test.group(2).split("/")[0]
        crash = CRASH.search(line)
        if crash:
            query = QUERY.search(lines[number + 1]) if number + 1 < len(lines) else None
            found.append((tests.get(crash.group(1), "?"), crash.group(2), query.group(1) if query else ""))
        elif " PANIC: " in line:
            found.append(("?", line.split(" PANIC: ", 1)[1].strip(), "PANIC"))
    return found


def diff(heap, other, test):
    return list(difflib.unified_diff(heap, other, f"heap/{test}", f"other/{test}", lineterm=""))


def changed(lines):
    return sum(1 for line in lines[2:] if line[:1] in "+-")


class Comparison:
    def __init__(self, arguments):
        self.suite = arguments.suite
        self.heap = pathlib.Path(arguments.heap) / arguments.suite
        self.other = pathlib.Path(arguments.other) / arguments.suite
        self.sql = pathlib.Path(arguments.source) / "regress" / "sql"
        self.diffs = pathlib.Path(arguments.other) / "diffs" / arguments.suite
        self.heap_status = statuses(self.heap.with_suffix(".log"))
        self.other_status = statuses(self.other.with_suffix(".log"))
        self.strict, self.equal, self.reordered, self.different, self.hung = [], [], [], [], []

    def read(self, directory, test):
        path = directory / "results" / f"{test}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def sql_of(self, test):
        path = self.sql / f"{test}.sql"
        return path.read_text(errors="replace") if self.suite == "regress" and path.exists() else ""

    def compare(self, test):
        heap, other = self.read(self.heap, test), self.read(self.other, test)
        if "pgsuite: " in other:
            self.hung.append(test)
        if self.other_status.get(test) or heap == other:
            self.strict.append(test)
            self.equal.append(test)
            return
        sql = self.sql_of(test)
        lines = diff(normalised(heap, sql, False), normalised(other, sql, False), test)
        if not lines:
            self.equal.append(test)
            ordered = diff(normalised(heap, sql, True), normalised(other, sql, True), test)
            if ordered:
                self.reordered.append(test)
                (self.diffs / f"{test}.order.diff").write_text("\n".join(ordered) + "\n")
            return
        (self.diffs / f"{test}.diff").write_text("\n".join(lines) + "\n")
        self.different.append((test, changed(lines), other))

    def run(self):
        self.diffs.mkdir(parents=True, exist_ok=True)
        for old in self.diffs.iterdir():
            old.unlink()
        for test in self.heap_status:
            self.compare(test)


def note_of(output):
    if "connection to server was lost" in output or "server closed the connection unexpectedly" in output:
        return "lost its connection"
    if "terminating connection because of crash of another server process" in output:
        return "interrupted by a crash elsewhere"
    if "pgsuite: " in output:
        return "hung, or found no server"
    return ""


def report(comparison, arguments):
    total = len(comparison.heap_status)
    content = sum(comparison.heap_status.values())

    def share(part):
        return f"{len(part):4} of {total} ({100 * len(part) / max(total, 1):.1f} %)"

    print(f"\n{comparison.suite}: {arguments.name} against heap")
    unexpected = [test for test, ok in comparison.heap_status.items() if not ok]
    print(f"  heap as its expected files say  {content:4} of {total}" + (f"; not: {', '.join(unexpected)}" if unexpected else ""))
    print(f"  strictly equal                  {share(comparison.strict)}")
    print(f"  equal after normalising         {share(comparison.equal)}")
    if comparison.reordered:
        print(f"  of these, rows with an ORDER BY in another order (ties?): {', '.join(comparison.reordered)}")
    if comparison.different:
        print("  different, with the number of lines that differ after normalising:")
        for test, size, output in sorted(comparison.different, key=lambda entry: entry[1]):
            print(f"    {size:6}  {test:36} {note_of(output)}".rstrip())
        print(f"  see {comparison.diffs}")
    if comparison.hung:
        print(f"  hung or without a server: {', '.join(comparison.hung)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("suite", "source", "heap", "other", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--minimum", type=float, required=True, help="per cent of the tests that must be equal after normalising")
    arguments = parser.parse_args()
    comparison = Comparison(arguments)
    comparison.run()
    report(comparison, arguments)
    tests = set(comparison.heap_status)
    lost = [crash for crash in crashes(pathlib.Path(arguments.other) / "server.log") if crash[0] in tests or crash[0] == "?"]
    for test, how, query in lost:
        print(f"  CRASH in {test}: {how}\n      {query[:300]}")
    enough = 100 * len(comparison.equal) >= arguments.minimum * len(comparison.heap_status) and comparison.heap_status
    return 0 if enough and not lost and not comparison.hung else 1


if __name__ == "__main__":
    sys.exit(main())
