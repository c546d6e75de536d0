"""Dashboards, alert rules and the tables of docs/metrics.md, from one list: `make dashboards`.

`model` says what a panel and a rule are; `fleet`, `instance` and `rules` are the list; `grafana`,
`prometheus` and `page` write it down; `__main__` says where. Tests hold the files against the list,
and every metric and label in it against live scrapes.
"""
