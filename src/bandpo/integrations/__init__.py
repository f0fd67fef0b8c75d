"""Band in the frameworks that people run: one small module a framework, each importing its framework when used.

Every framework is given the same `rule` mapping ({name: band, radius: 0.05, ...}), read by
`bandpo.integrations.common.read_rule`; docs/integrations has a page each.
"""
