"""All the rules, in the order of the lists that people see."""

from __future__ import annotations

from sandboxworker.check import file_rules, rule, trust_rules, web_rules, worker_rules
from sandboxworker.check.rule import Finding, Found, Rule, Severity, judge

#: The modules that make them.
MODULES = (trust_rules, worker_rules, web_rules, file_rules)
#: Every rule by its id, the worst first.
RULES = {each.id: each for each in sorted(rule.RULES.values(), key=lambda each: each.order)}

__all__ = ["MODULES", "RULES", "Finding", "Found", "Rule", "Severity", "judge"]
