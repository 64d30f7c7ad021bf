"""Checks the alerts and the dashboard with promtool, that each alert has a firing test, a quiet test and a runbook entry, and
that every metric and label in their expressions exists.

    monitoring.py                        compares with deploy/monitoring/metrics.txt
    monitoring.py --scrape FILE|URL      compares also with a scrape of /metrics
    monitoring.py --serve BINARY         compares also with a scrape of a server that it starts
    monitoring.py --print-rules          prints the rules for Prometheus without the operator
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

import promql_parser
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
# Labels that Prometheus adds, and metrics that Slotcast does not export.
SCRAPE_LABELS = {"job", "instance", "namespace", "pod", "container", "service", "endpoint"}
FOREIGN = {"up"}
# Metrics that exist only with TLS, only after a frame has waited for its player's sync limit, or only after a mutation.
ONLY_SOMETIMES = re.compile(
    "slotcast_certificate_not_after_seconds|slotcast_sync_limit_delay_seconds_.*|slotcast_history_earliest_seconds"
)
SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?(?:\s|$)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def main():
    arguments = parse_arguments()
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]
    if arguments.print_rules:
        print(yaml.safe_dump(rules, sort_keys=False, width=200), end="")
        return 0
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    expressions = list(rule_expressions(rules)) + list(dashboard_expressions())
    problems = with_promtool(rules, alerts)
    problems += in_runbook(alerts)
    known = meters((MONITORING / "metrics.txt").read_text())
    problems += [f"metrics.txt: {problem}" for problem in unknown(expressions, known, records(rules))]
    counted = f"{len(alerts)} alerts, {len(expressions)} expressions, {len(known)} metrics"
    if text := scrape(arguments):
        scraped = meters(text)
        problems += [f"scrape: {problem}" for problem in missing(known, scraped)]
        # A running server exports all reasons, which are too many to list in metrics.txt.
        known["slotcast_refusals_total"] = scraped.get("slotcast_refusals_total", {})
        problems += [f"scrape: {problem}" for problem in unknown(expressions, known, records(rules))]
        counted += ", compared with a scrape"
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{counted}: {len(problems)} problems")
    return 1 if problems else 0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scrape", metavar="FILE|URL")
    parser.add_argument("--serve", metavar="BINARY")
    parser.add_argument("--print-rules", action="store_true")
    return parser.parse_args()


def rule_expressions(rules):
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]


def dashboard_expressions():
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$__range", "1h")
            yield f"dashboard, {panel['title']}", re.sub(r"\$\w+", "any", expression)


def records(rules):
    return {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}


def with_promtool(rules, alerts):
    """Runs promtool on the rules, on the dashboard's expressions as recording rules, and on the tests; returns the problems."""
    # BaseLoader keeps strings: YAML would read 0x40 as a number.
    written = yaml.load((MONITORING / "alerts_test.yaml").read_text(), yaml.BaseLoader)
    tests, problems = promtool_tests(alerts, written, rules)
    recorded = [{"record": f"panel{i}", "expr": expr} for i, (_, expr) in enumerate(dashboard_expressions())]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        (folder / "dashboard.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
        (folder / "test.yaml").write_text(yaml.safe_dump(tests))
        for command in (["check", "rules", "rules.yaml", "dashboard.yaml"], ["test", "rules", "test.yaml"]):
            done = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True)
            if done.returncode != 0:
                problems.append(f"promtool {' '.join(command)}:\n{done.stdout}{done.stderr}")
    return problems


def promtool_tests(alerts, written, rules):
    tests, problems = [], []
    by_name = {alert["alert"]: alert for alert in alerts}
    for name in written.keys() - by_name.keys():
        problems.append(f"alerts_test.yaml tests {name}, which is not an alert")
    for name, alert in by_name.items():
        cases = written.get(name) or {}
        if cases.keys() != {"fires", "quiet"}:
            problems.append(f"{name}: alerts_test.yaml needs `fires` and `quiet`, but has {sorted(cases)}")
            continue
        # A quiet case without the alert's own metrics would pass for any expression.
        present = {SAMPLE.match(series)[1] for series in cases["quiet"]["series"]}
        if not present & metrics_behind(alert["expr"], rules):
            problems.append(f"{name}: its quiet case has no series of the alert's metrics")
        for case in ("fires", "quiet"):
            tests.append(promtool_test(alert, case, cases[case]))
    return {"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": tests}, problems


def promtool_test(alert, case, written):
    expected = {"exp_labels": {**alert["labels"], **written.get("labels", {})}, "exp_annotations": alert["annotations"]}
    return {
        "name": f"{alert['alert']} {case}",
        "interval": "15s",
        "input_series": [{"series": series, "values": values} for series, values in written["series"].items()],
        "alert_rule_test": [
            {"eval_time": written["at"], "alertname": alert["alert"], "exp_alerts": [expected] if case == "fires" else []}
        ],
    }


def metrics_behind(expression, rules):
    """Returns the metrics of an expression, with recorded metrics expanded."""
    by_record = {name: expr for name, expr in rule_expressions(rules)}
    found = set()
    for selector in selectors(promql_parser.parse(expression)):
        found |= metrics_behind(by_record[selector.name], rules) if selector.name in by_record else {selector.name}
    return found


def in_runbook(alerts):
    book = ROOT / "docs" / "operations.md"
    headings = {line.strip("# \n").lower() for line in book.open() if line.startswith("#")} if book.exists() else set()
    for alert in alerts:
        name = alert["alert"]
        if alert["annotations"].get("runbook") != f"docs/operations.md#{name.lower()}":
            return [f"{name}: its annotation `runbook` is not docs/operations.md#{name.lower()}"]
    return [f"{alert['alert']}: docs/operations.md has no heading with this name"
            for alert in alerts if alert["alert"].lower() not in headings]


def meters(text):
    """Parses a scrape into metric -> label -> values."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#") or not (sample := SAMPLE.match(line)):
            continue
        labels = found.setdefault(sample[1], {})
        for label, value in LABEL.findall(sample[2] or ""):
            labels.setdefault(label, set()).add(value)
    return found


def selectors(node):
    """Yields all vector selectors in an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for child in ("expr", "lhs", "rhs", "param", "vector_selector"):
        inner = getattr(node, child, None)
        if inner is not None:
            yield from selectors(inner)
    for argument in getattr(node, "args", None) or []:
        yield from selectors(argument)


def unknown(expressions, known, recorded):
    """Yields metrics, labels and label values in expressions that do not exist."""
    for where, text in expressions:
        for selector in selectors(promql_parser.parse(text)):
            if selector.name in recorded or selector.name in FOREIGN:
                continue
            if selector.name not in known:
                yield f"{where}: unknown metric {selector.name}"
                continue
            yield from (f"{where}: {problem}" for problem in unknown_labels(selector, known[selector.name]))
        yield from (f"{where}: {problem}" for problem in unknown_groupings(text, known))


def unknown_labels(selector, labels):
    for matcher in selector.matchers.matchers:
        if matcher.name in SCRAPE_LABELS:
            continue
        if matcher.name not in labels:
            yield f"{selector.name} has no label {matcher.name}"
            continue
        values = {value for values in labels[matcher.name] for value in values.split("|")}
        wanted = matcher.value.split("|") if "(" not in matcher.value else [matcher.value]
        for value in wanted if "*" not in values else []:
            if not any(re.fullmatch(value, there) for there in values):
                yield f"{selector.name} has no {matcher.name} {value}"


def unknown_groupings(text, known):
    """Yields labels in `by (...)` and `on (...)` that none of the expression's metrics has."""
    names = {selector.name for selector in selectors(promql_parser.parse(text))}
    there = SCRAPE_LABELS.union(*(known.get(name, {}).keys() for name in names))
    for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", text):
        for label in filter(None, (label.strip() for label in group.split(","))):
            if label not in there:
                yield f"groups by {label}, which none of {sorted(names)} has"


def missing(known, scraped):
    """Yields metrics that a server does not export, or exports with other labels."""
    for name, labels in known.items():
        if name not in scraped:
            if not ONLY_SOMETIMES.fullmatch(name):
                yield f"{name} is not exported"
            continue
        for label in labels.keys() - scraped[name].keys() - {"error_type"}:
            yield f"{name} has no label {label}"
        for label, values in labels.items():
            allowed = {value for listed in values for value in listed.split("|")}
            for value in scraped[name].get(label, set()) - allowed if "*" not in allowed else []:
                yield f"{name} has {label}={value}, which metrics.txt does not list"
    for name in sorted(scraped.keys() - known.keys()):
        if name.startswith("slotcast_"):
            yield f"{name} is not in metrics.txt"


def scrape(arguments):
    if arguments.serve:
        return scrape_of(arguments.serve)
    if not arguments.scrape:
        return None
    if arguments.scrape.startswith("http"):
        with urllib.request.urlopen(arguments.scrape, timeout=10) as answer:
            return answer.read().decode()
    return pathlib.Path(arguments.scrape).read_text()


def scrape_of(binary):
    """Returns a scrape of a server after a recorded trace was played on it."""
    if "--admin-listen" not in subprocess.run([binary, "serve", "--help"], capture_output=True, text=True).stdout:
        print(f"{binary} has no admin port: skipping the comparison with a scrape")
        return None
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", f"--data={folder}/data"]
        service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            address = [service.stdout.readline().split()[-1] for _ in range(2)]
            subprocess.run([binary, "replay", "drop-8-in-2s", "--server", address[0]], check=True, capture_output=True)
            with urllib.request.urlopen(f"{address[1]}/metrics", timeout=10) as answer:
                return answer.read().decode()
        finally:
            service.terminate()
            service.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main())
